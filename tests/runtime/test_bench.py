import json
from pathlib import Path

import jax
import pytest

from runtime.bench import main
from runtime.bench.shapes import SHAPES
from runtime.bench.steps import decode_cost
from runtime.errors import UsageError
from runtime.models.parameters import abstract_params
from tests.golden.cases import HERE


@pytest.mark.parametrize("name", list(SHAPES))
def test_bytes_are_all_matrices_but_an_embedding_that_is_only_looked_up(name: str) -> None:
    model = SHAPES[name]
    params = abstract_params(model, model.dtype)
    if not model.tie_word_embeddings:
        params.pop("embed_tokens")
    matrices = [leaf for leaf in jax.tree.leaves(params) if len(leaf.shape) == 2]
    num_weights = sum(leaf.shape[0] * leaf.shape[1] for leaf in matrices)
    assert decode_cost(model, 4) == (2 * num_weights, 2 * 4 * num_weights)


def test_the_command_writes_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bench.json"
    flags = ["--shape", "demo", "--batches", "1,4", "--tokens", "32", "--context", "64", "--repeats", "2"]
    assert main([*flags, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert [row["batch"] for row in report["decode"]] == [1, 4]
    assert [row["tokens"] for row in report["prefill"]] == [32]
    for row in report["decode"]:
        assert row["without_attention"]["min_s"] <= row["without_attention"]["median_s"]
        assert row["ratio"] == pytest.approx(row["without_attention"]["median_s"] / row["bound_s"])
        assert row["ratio_to_products"] == pytest.approx(
            row["without_attention"]["median_s"] / row["products"]["median_s"]
        )
    printed = capsys.readouterr().out
    assert "prefill tokens" in printed
    assert "x bound" in printed
    assert "x products" in printed


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--shape", "big"], "--shape 'big': allowed: r1-1.5b, 0.3b, demo"),
        (["--batches", "1,none"], "'none': allowed: a whole number from 1 to 1024"),
        (["--dtype", "int4"], "--dtype"),
        (["--model", str(HERE / "qwen3_moe")], "qwen3_moe': allowed: a model without experts"),
        (["--repeat", "3", "--bogus"], "--bogus"),
        (["--starts", "64"], "--starts: allowed: with --step-times"),
        (["--max-running-requests", "4"], "--max-running-requests: allowed: with --step-times"),
        (["--step-times", "x.json", "--json", "y.json"], "--json: allowed: without --step-times"),
        (["--step-times", "x.json", "--context", "512"], "--context: allowed: without --step-times"),
        (["--step-times", "none/x.json"], "--step-times 'none/x.json': allowed: a file in a folder that exists"),
        (["--step-times", "x.json", "--shape", "demo", "--max-context", "8000"], "at most the model's 4096 tokens"),
        (["--step-times", "x.json", "--contexts", "8,5000"], "--contexts 5000: allowed: at most --max-context 4096"),
        (["--step-times", "x.json", "--starts", "3900"], "--starts 3900: allowed: at most --max-context 4096 less a "),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        main(flags)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
