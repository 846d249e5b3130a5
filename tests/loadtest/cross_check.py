"""Measures the stub with this project's load generator and with public ones, in alternation, and compares the figures.

python -m tests.loadtest.cross_check --vllm VENV/bin/vllm --evalscope VENV/bin/evalscope

Every tool has the same closed loop: so many answers of so many tokens, a fixed number of requests at a time. Each of
its runs gets a stub of its own, so that all are sent the same delays in the same order.
"""

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TOKENIZER = Path(__file__).parents[2] / "runtime" / "demo" / "model"
LIMIT_S = 300
STUB = ("--first-s", "0.2", "--gap-s", "0.02", "--spread", "0.5")
SHOWN = ("requests/s", "tokens/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "ITL p50", "ITL p99")

Figures = dict[str, float]


class Load(argparse.Namespace):
    """What every tool is asked for."""

    requests: int
    concurrency: int
    tokens: int
    rounds: int
    vllm: Path | None
    evalscope: Path | None


def own(load: Load, url: str, folder: Path) -> Figures:
    """`loadtest run`."""
    out = folder / "own.json"
    flags = ["--requests", load.requests, "--concurrency", load.concurrency, "--output-tokens", load.tokens]
    call([sys.executable, "-m", "loadtest", "run", url, *flags, "--input-tokens", 16, "--quiet", "--out", out])
    values = json.loads(out.read_text())
    figures = {"requests/s": values["request_throughput"], "tokens/s": values["output_throughput"]}
    return figures | {f"{name} p{p}": values[f"p{p}_{name.lower()}_ms"] for name, p in percentiles()}


def vllm(load: Load, url: str, folder: Path) -> Figures:
    """`vllm bench serve`, whose definitions the project's follow."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(load.requests)))
    flags = ["--backend", "openai", "--endpoint", "/v1/completions", "--model", "stub", "--tokenizer", TOKENIZER]
    flags += ["--dataset-name", "custom", "--dataset-path", prompts, "--skip-chat-template", "--ignore-eos"]
    flags += ["--num-prompts", load.requests, "--max-concurrency", load.concurrency, "--custom-output-len", load.tokens]
    flags += ["--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99", "--disable-tqdm"]
    flags += ["--save-result", "--result-dir", folder, "--result-filename", "vllm.json"]
    call([load.vllm, "bench", "serve", "--base-url", url, *flags])
    values = json.loads((folder / "vllm.json").read_text())
    figures = {"requests/s": values["request_throughput"], "tokens/s": values["output_throughput"]}
    return figures | {f"{name} p{p}": values[f"p{p}_{name.lower()}_ms"] for name, p in percentiles()}


def evalscope(load: Load, url: str, folder: Path) -> Figures:
    """`evalscope perf`, the tool of the benchmark that this project is held against."""
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"What is {n} + {n}?\n" for n in range(load.requests)))
    flags = ["--api", "openai", "--model", "stub", "--tokenizer-path", TOKENIZER, "--stream", "--no-test-connection"]
    flags += ["--dataset", "line_by_line", "--dataset-path", prompts, "--number", load.requests]
    flags += ["--parallel", load.concurrency, "--max-tokens", load.tokens, "--outputs-dir", folder / "evalscope"]
    call([load.evalscope, "perf", "--url", f"{url}/v1/completions", *flags])
    (summary,) = (folder / "evalscope").rglob("benchmark_summary.json")
    totals = json.loads(summary.read_text())
    rows = {row["Percentiles"]: row for row in json.loads((summary.parent / "benchmark_percentile.json").read_text())}
    figures = {"requests/s": totals["Req Throughput (req/s)"], "tokens/s": totals["Output Throughput (tok/s)"]}
    return figures | {f"{name} p{p}": rows[f"{p}%"][f"{name} (ms)"] for name, p in percentiles()}


def percentiles() -> list[tuple[str, int]]:
    """What is compared apart from throughput."""
    return [(name, percent) for name in ("TTFT", "TPOT", "ITL") for percent in (50, 99)]


def call(command: Sequence[object]) -> None:
    """Runs a tool; its output is shown only when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


@contextlib.contextmanager
def stub(load: Load) -> Iterator[str]:
    """A fresh stub in a process of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    flags = ["--port", str(port), "--chunks", str(load.tokens), *STUB]
    process = subprocess.Popen([sys.executable, "-m", "tests.loadtest.stub_server", *flags])
    try:
        wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int) -> None:
    """Until somebody listens there."""
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("the stub does not start")


def table(found: dict[str, list[Figures]]) -> list[str]:
    """Markdown: medians over the rounds, and each tool's difference from this project's."""
    lines = ["| | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for name in SHOWN:
        medians = {tool: statistics.median(one[name] for one in runs) for tool, runs in found.items()}
        own_value = medians["loadtest"]
        cells = [
            f"{value:.4g}" + (f" ({value / own_value - 1:+.1%})" if tool != "loadtest" else "")
            for tool, value in medians.items()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="the vllm command")
    parser.add_argument("--evalscope", type=Path, help="the evalscope command")
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    load = parser.parse_args(namespace=Load())
    tools: dict[str, Callable[[Load, str, Path], Figures]] = {"loadtest": own}
    tools |= {"vLLM": vllm} if load.vllm else {}
    tools |= {"evalscope": evalscope} if load.evalscope else {}
    found: dict[str, list[Figures]] = {tool: [] for tool in tools}
    for _ in range(load.rounds):
        for tool, measure in tools.items():
            with tempfile.TemporaryDirectory() as folder, stub(load) as url:
                found[tool].append(measure(load, url, Path(folder)))
            sys.stderr.write(f"{tool}: {found[tool][-1]}\n")
    sys.stdout.write("\n".join(table(found)) + "\n")


if __name__ == "__main__":
    main()
