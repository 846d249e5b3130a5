"""evalscope: its MATH-500 benchmark over the demo model's own problems, whole and streamed. Needs evalscope."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from problems import DEMO

COUNT = 4


def score(url: str, folder: Path, *flags: str) -> float:
    """The mean accuracy over the five levels."""
    data, output = folder / "data", folder / "-".join(("out", *flags))
    data.mkdir(exist_ok=True)
    shutil.copy(DEMO / "test.jsonl", data / "test.jsonl")
    dataset = {"math_500": {"dataset_id": str(data), "prompt_template": "{question}"}}
    command = [
        str(Path(sys.executable).parent / "evalscope"), "eval", "--model", "runtime-demo", "--api-url", f"{url}/v1",
        "--api-key", "none", "--eval-type", "openai_api", "--datasets", "math_500", "--dataset-args",
        json.dumps(dataset), "--generation-config", json.dumps({"temperature": 0, "max_tokens": 400}),
        "--limit", str(COUNT), "--eval-batch-size", "4", "--work-dir", str(output), "--no-timestamp", *flags,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (report,) = output.rglob("reports/*/math_500.json")
    return float(json.loads(report.read_text(encoding="utf-8"))["metrics"][0]["score"])


def main() -> int:
    """Runs it twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    url = parser.parse_args().url
    with tempfile.TemporaryDirectory() as name:
        whole, streamed = score(url, Path(name)), score(url, Path(name), "--stream")
    sys.stdout.write(f"evalscope {version('evalscope')}: {whole:.3f} whole, {streamed:.3f} streamed\n")
    return 0 if whole >= 0.9 and whole == streamed else 1


if __name__ == "__main__":
    sys.exit(main())
