"""Accuracy through the API: asks a server every problem of a file and prints Pass@1 per level as a table.

    python -m loadtest.evaluate http://127.0.0.1:8000 --data problems.jsonl --temperature 0.6 --top-p 0.95 --repeats 3

The file has MATH-500's layout, one JSON object a line with `problem`, `answer` and `level`. An answer counts when the
text inside the last `\\boxed{}` equals the expected one after white space is taken out. Talks HTTP only.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import msgspec

PROMPT = "{query}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
BOX = "\\boxed{"


class Problem(msgspec.Struct, frozen=True):
    """One line of the data file; further fields are ignored."""

    problem: str
    answer: str
    level: int


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn. Seeds of repeat r are `seed + r`, so that a run can be repeated."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


class Result(msgspec.Struct, frozen=True):
    """One repeat: whether each problem was solved, in the file's order, and how many answers ran out of tokens."""

    solved: tuple[bool, ...]
    num_cut: int
    took_s: float


def boxed(text: str) -> str | None:
    """What stands inside the last `\\boxed{}`, braces matched; None when there is none."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOX)
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begin:end]
    return None


def is_right(text: str, answer: str) -> bool:
    """Whether the boxed answer is the expected one, white space aside."""
    found = boxed(text)
    return found is not None and "".join(found.split()) == "".join(answer.split())


async def run(
    url: str,
    model: str,
    problems: Sequence[Problem],
    sampling: Sampling,
    batch: int,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Result:
    """Asks every problem once, `batch` at a time. Raises httpx.HTTPError when the server refuses or fails."""
    gate, started = asyncio.Semaphore(batch), time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=3600.0, transport=transport) as client:

        async def ask(problem: Problem) -> tuple[bool, bool]:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": PROMPT.format(query=problem.problem)}],
                **msgspec.structs.asdict(sampling),
            }
            async with gate:
                response = await client.post("/v1/chat/completions", json=body)
            response.raise_for_status()
            choice = response.json()["choices"][0]
            return is_right(choice["message"]["content"], problem.answer), choice["finish_reason"] == "length"

        outcomes = await asyncio.gather(*(ask(problem) for problem in problems))
    num_cut = sum(cut for _, cut in outcomes)
    return Result(tuple(solved for solved, _ in outcomes), num_cut, time.monotonic() - started)


def table(model: str, dataset: str, problems: Sequence[Problem], results: Sequence[Result]) -> str:
    """The results in the form of evalscope's report: a row per level, then all of them; the mean over repeats."""
    rows = [("Model", "Dataset", "Metric", "Subset", "Num", "Score")]
    for level in sorted({problem.level for problem in problems}):
        picked = [index for index, problem in enumerate(problems) if problem.level == level]
        rows.append((model, dataset, "Pass@1", f"Level {level}", str(len(picked)), _score(picked, results)))
    everything = list(range(len(problems)))
    rows.append((model, dataset, "Pass@1", "OVERALL", str(len(everything)), _score(everything, results)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([rule, lines[0], rule.replace("-", "="), *(f"{line}\n{rule}" for line in lines[1:])])


def _score(picked: Sequence[int], results: Sequence[Result]) -> str:
    solved = sum(result.solved[index] for result in results for index in picked)
    return f"{solved / (len(picked) * len(results)):.4g}"


def served_model(url: str) -> str:
    """The server's first model."""
    response = httpx.get(f"{url}/v1/models")
    response.raise_for_status()
    return str(response.json()["data"][0]["id"])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.evaluate", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("url", help="the server, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--data", type=Path, required=True, help="problems in MATH-500's layout, one JSON object a line"
    )
    parser.add_argument("--model", help="served model (default: the server's first)")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64, help="requests at a time (default: 64)")
    parser.add_argument("--repeats", type=int, default=1, help="how often every problem is asked (default: 1)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the first repeat (default: 42)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 1 when the server fails."""
    args = parse(argv)
    problems = [msgspec.json.decode(line, type=Problem) for line in args.data.read_bytes().splitlines() if line]
    results = []
    try:
        model = args.model or served_model(args.url)
        for repeat in range(args.repeats):
            sampling = Sampling(
                temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens, seed=args.seed + repeat
            )
            result = asyncio.run(run(args.url, model, problems, sampling, args.batch))
            results.append(result)
            line = {"repeat": repeat, "pass": sum(result.solved) / len(problems), "cut": result.num_cut}
            sys.stdout.write(json.dumps(line | {"took_s": round(result.took_s, 1)}) + "\n")
    except httpx.HTTPError as error:
        sys.stderr.write(f"{args.url}: {error}\n")
        return 1
    sys.stdout.write(table(model, args.data.stem, problems, results) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
