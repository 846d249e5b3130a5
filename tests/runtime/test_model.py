from pathlib import Path

import numpy as np
import pytest

from runtime.model_config import load_model_config
from runtime.weights import load_weights
from tests.checkpoints import write_checkpoint
from tests.golden.make_golden import CASES, HERE, random_sequences, reference_logits
from tests.paged_model import PagedModel

TOLERANCE = 1e-4


def worst_difference(folder: Path, sequences: list[np.ndarray], want: list[np.ndarray], **how: int) -> float:
    config = load_model_config(folder)
    params = load_weights(folder, config, "float32")
    model = PagedModel(params, config, num_sequences=len(sequences), max_tokens=max(map(len, sequences)), page_size=8)
    got = model.logits(sequences, **how)
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(got, want, strict=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [{"chunk": 13}, {"chunk": 64}, {"chunk": 1, "num_prefill": 0}], ids=str)
def test_logits_equal_the_golden_ones(case: str, how: dict[str, int]) -> None:
    with np.load(HERE / case / "logits.npz") as golden:
        count = len(golden.files) // 2
        sequences = [golden[f"tokens_{i}"] for i in range(count)]
        want = [golden[f"logits_{i}"] for i in range(count)]
    assert np.std(want[0]) > 1
    assert worst_difference(HERE / case, sequences, want, **how) <= TOLERANCE


def test_golden_files_stay_small() -> None:
    assert sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file()) < 1.5e6


@pytest.mark.parametrize("tied", [False, True])
def test_logits_equal_hugging_face_live(tmp_path: Path, tied: bool) -> None:
    pytest.importorskip("torch")
    folder = write_checkpoint(tmp_path, tie_word_embeddings=tied, num_shards=2, seed=5)
    sequences = random_sequences(272, (150, 31))
    want = reference_logits(folder, sequences)
    assert worst_difference(folder, sequences, want, chunk=40, num_prefill=100) <= TOLERANCE
