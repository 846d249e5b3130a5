"""lm_eval: log-likelihoods of right and wrong answers, and generated answers. Needs lm_eval[api] and transformers.

The first task goes through `/v1/completions` with token ids, `echo` and `logprobs`: the model has to find the right
result more likely than wrong ones, and the numbers have to be those of its tokens. The second goes through
`/v1/chat/completions` and looks for the result in the text.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from problems import DEMO, problems, wrong

COUNT = 20
LIKELIHOOD = """
task: demo_likelihood
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
GENERATION = """
task: demo_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{problem}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["<|im_end|>"], max_gen_toks: 200, temperature: 0}}
filter_list:
  - name: boxed
    filter: [{{function: regex, regex_pattern: 'boxed\\{{(-?[0-9]+)\\}}'}}, {{function: take_first}}]
metric_list: [{{metric: exact_match}}]
"""


def write_tasks(folder: Path) -> None:
    """Both tasks and their data."""
    rows = [
        {
            "problem": one["problem"],
            "answer": one["answer"],
            "context": f"<|im_start|>user\n{one['problem']}<|im_end|>\n<|im_start|>assistant\n"
            f"<think>\n{one['solution'].rpartition(chr(10))[0]}\n</think>\nThe answer is \\boxed{{",
            "choices": [f"{choice}}}." for choice in (one["answer"], *wrong(one["answer"]))],
        }
        for one in problems(1, COUNT)
    ]
    data = folder / "problems.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, text in (("likelihood", LIKELIHOOD), ("generation", GENERATION)):
        (folder / f"{name}.yaml").write_text(text.format(data=data), encoding="utf-8")


def run(folder: Path, kind: str, task: str, arguments: dict[str, object], *flags: str) -> dict[str, Any]:
    """One task's scores."""
    output = folder / task
    command = [
        str(Path(sys.executable).parent / "lm_eval"), "--model", kind, "--tasks", task, "--include_path", str(folder),
        "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items()), "--output_path", str(output),
        *flags,
    ]  # fmt: skip
    environment = os.environ | {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "c")}
    subprocess.run(command, check=True, env=environment)
    (report,) = output.rglob("results_*.json")
    scores: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["results"][task]
    return scores


def main() -> int:
    """Runs both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    url = parser.parse_args().url
    common = {"model": "runtime-demo", "num_concurrent": 4, "max_retries": 1}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        completions = {"base_url": f"{url}/v1/completions", "tokenizer_backend": "huggingface", "max_length": 512}
        by_files = run(
            folder, "local-completions", "demo_likelihood", common | completions | {"tokenizer": DEMO / "model"}
        )
        chat = {"base_url": f"{url}/v1/chat/completions"}
        generated = run(folder, "local-chat-completions", "demo_generation", common | chat, "--apply_chat_template")
    likely, exact = by_files["acc,none"], generated["exact_match,boxed"]
    sys.stdout.write(f"lm_eval {version('lm_eval')}: likelihood {likely:.2f}, generation {exact:.2f}\n")
    return 0 if likely >= 0.9 and exact >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
