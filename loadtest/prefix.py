"""What a server's prefix cache saves: time to first token with a shared beginning against one that nobody has sent.

    python -m loadtest.prefix http://127.0.0.1:8000 --prefix-tokens 1024 --suffix-tokens 32 --repeats 9

Each repeat sends two prompts, one after the other: one whose beginning was sent before, and one of the same length that
shares nothing. Both are drawn from a seed and sent as token ids, so that lengths are exact. Talks HTTP only.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence

import httpx
import msgspec

from loadtest.connection import parse_address
from loadtest.errors import UsageError
from loadtest.server import inspect

LOWEST_TOKEN = 10
HIGHEST_TOKEN = 250
"""Ids that every vocabulary has and that are hardly ever special."""


class Sent(msgspec.Struct, frozen=True):
    """One answered prompt: seconds from sending to the first token, and what the server says it had cached."""

    ttft_s: float
    cached_tokens: int


class Chunk(msgspec.Struct):
    """What is read of a stream's chunk."""

    class Usage(msgspec.Struct):
        """Of the last chunk."""

        class Details(msgspec.Struct):
            """Of the prompt."""

            cached_tokens: int = 0

        prompt_tokens_details: Details | None = None

    choices: list[msgspec.Raw] = []
    usage: Usage | None = None


async def send(client: httpx.AsyncClient, model: str, prompt: Sequence[int], max_tokens: int) -> Sent:
    """Streams one completion. Raises httpx.HTTPError when the server refuses or ends without a token."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first_s, cached_tokens = time.perf_counter(), None, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.is_error:
            await response.aread()
            raise httpx.HTTPError(f"{response.status_code}: {response.text[:300]}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = msgspec.json.decode(line.removeprefix("data: "), type=Chunk)
            if chunk.choices and first_s is None:
                first_s = time.perf_counter() - started
            if chunk.usage is not None and chunk.usage.prompt_tokens_details is not None:
                cached_tokens = chunk.usage.prompt_tokens_details.cached_tokens
    if first_s is None:
        raise httpx.HTTPError("the stream ended without a token")
    return Sent(first_s, cached_tokens)


async def run(
    url: str,
    model: str,
    lengths: tuple[int, int],
    repeats: int,
    seed: int,
    transport: httpx.AsyncBaseTransport | None = None,
) -> tuple[list[Sent], list[Sent]]:
    """Prompts with nothing in common and prompts with the shared beginning, in alternation, after one warm-up each."""
    rng, (prefix_tokens, suffix_tokens) = random.Random(seed), lengths

    def draw(count: int) -> list[int]:
        return [rng.randint(LOWEST_TOKEN, HIGHEST_TOKEN) for _ in range(count)]

    shared, cold, warm = draw(prefix_tokens), list[Sent](), list[Sent]()
    async with httpx.AsyncClient(base_url=url, timeout=3600.0, transport=transport) as client:
        await send(client, model, shared + draw(suffix_tokens), 2)
        for _ in range(repeats):
            cold.append(await send(client, model, draw(prefix_tokens + suffix_tokens), 2))
            warm.append(await send(client, model, shared + draw(suffix_tokens), 2))
    return cold, warm


def report(cold: Sequence[Sent], warm: Sequence[Sent]) -> str:
    """Medians with their range, and the ratio of the medians."""
    lines = [_line("nothing shared", cold), _line("shared prefix", warm)]
    ratio = statistics.median(sent.ttft_s for sent in cold) / statistics.median(sent.ttft_s for sent in warm)
    return "\n".join([*lines, f"ratio of medians {ratio:.2f}"])


def _line(name: str, sent: Sequence[Sent]) -> str:
    times = [one.ttft_s * 1e3 for one in sent]
    cached = statistics.median(one.cached_tokens for one in sent)
    return (
        f"{name:<16} TTFT {statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f}), "
        f"cached tokens {cached:g}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 1 when the server fails."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.prefix", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("url", help="the server, such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="served model (default: the server's first)")
    parser.add_argument("--prefix-tokens", type=int, default=1024, help="length of the beginning (default: 1024)")
    parser.add_argument("--suffix-tokens", type=int, default=32, help="tokens behind it (default: 32)")
    parser.add_argument("--repeats", type=int, default=9, help="prompts of each kind (default: 9)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts (default: 0)")
    args = parser.parse_args(argv)
    try:
        model = args.model or inspect(parse_address(args.url), None, None)[0]
        lengths = (args.prefix_tokens, args.suffix_tokens)
        cold, warm = asyncio.run(run(args.url, model, lengths, args.repeats, args.seed))
    except (httpx.HTTPError, UsageError) as error:
        sys.stderr.write(f"{args.url}: {error}\n")
        return 1
    sys.stdout.write(report(cold, warm) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
