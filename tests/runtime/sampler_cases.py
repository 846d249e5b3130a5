"""Shared by the sampler's tests: rows from requests, and the comparison with the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from runtime.sampler import SamplerRows, process
from runtime.sampler_rows import row_values
from runtime.sampling_params import SamplingParams
from tests.runtime import numpy_sampler

# A mass this close to a cut may fall on either side of it in float32.
CUT_MARGIN = 1e-5

run_process = jax.jit(process, static_argnames="use_sort")

Request = tuple[SamplingParams, list[int], list[int]]


def pack(allowed: np.ndarray) -> bytes:
    words = np.zeros(-(-len(allowed) // 32), "<u4")
    for token in np.flatnonzero(allowed):
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words.tobytes()


def stack(requests: list[Request], vocab_size: int) -> SamplerRows:
    rows = [row_values(params, 0, prompt, output, vocab_size) for params, prompt, output in requests]
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)


def check_rows(logits: np.ndarray, requests: list[Request], *, use_sort: bool) -> int:
    """Compares every row with the truth; returns how many rows hung on rounding and were not compared."""
    processed = np.asarray(run_process(logits, stack(requests, logits.shape[1]), use_sort=use_sort))
    num_close = 0
    for row, (params, prompt, output) in enumerate(requests):
        truth = numpy_sampler.distribution(logits[row], params, prompt, output)
        if truth.margin < CUT_MARGIN:
            num_close += 1
            continue
        if params.temperature == 0:
            actual = np.eye(logits.shape[1])[np.argmax(processed[row])]
        else:
            actual = scipy.special.softmax(processed[row].astype(np.float64))
            np.testing.assert_array_equal(processed[row] > -np.inf, truth.is_kept, err_msg=f"{params}")
        np.testing.assert_allclose(actual, truth.probabilities, rtol=2e-5, atol=1e-7, err_msg=f"{params}")
    return num_close
