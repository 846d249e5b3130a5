"""Asks a running server for answers to random schemas and says how many end by stop and how many of those validate.

`python -m tests.constraints.campaign --url http://127.0.0.1:8000 --schemas 1000`
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from typing import Any

import httpx
import jsonschema

from tests.constraints.schemas import bounded, random_schema

PROMPT = "What is 37 + 58? Answer as JSON."


async def ask(client: httpx.AsyncClient, seed: int, options: argparse.Namespace) -> str:
    """How one answer came out: `valid`, `invalid`, `long`, or `failed`."""
    schema = random_schema(seed) if options.unbounded else bounded(random_schema(seed))
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": PROMPT}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": seed,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        print(f"seed {seed}: {answer.status_code} {answer.text[:300]}", file=sys.stderr)
        return "failed"
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] != "stop":
        return "long"
    text = choice["message"]["content"]
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"seed {seed}: {text[:200]!r}: {str(error)[:200]}", file=sys.stderr)
        return "invalid"
    return "valid"


async def run(options: argparse.Namespace) -> Counter[str]:
    """All answers, `--concurrency` at a time."""
    limit = asyncio.Semaphore(options.concurrency)
    async with httpx.AsyncClient(base_url=options.url, timeout=600) as client:

        async def one(seed: int) -> str:
            async with limit:
                return await ask(client, seed, options)

        seeds = range(options.first, options.first + options.schemas)
        return Counter(await asyncio.gather(*(one(seed) for seed in seeds)))


def main() -> int:
    """0 when every answer that ended by stop validates and at least 95 % ended by stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True)
    parser.add_argument("--schemas", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--unbounded", action="store_true", help="leave strings, lists and numbers without an end")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=600)
    parser.add_argument("--temperature", type=float, default=1.0)
    options = parser.parse_args()
    found = asyncio.run(run(options))
    num_stopped = found["valid"] + found["invalid"]
    stopped = 100 * num_stopped / options.schemas
    valid = 100 * found["valid"] / max(num_stopped, 1)
    print(f"{options.schemas} schemas: {stopped:.1f} % ended by stop, of which {valid:.1f} % validate; {dict(found)}")
    return 0 if stopped >= 95 and found["invalid"] == found["failed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
