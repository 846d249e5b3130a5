"""The list of programs that must compile: nothing documented is missing from it, and nothing is in it twice."""

import itertools

from kernels.compile import OPS
from kernels.compile.cases import PAGE_SIZES, all_cases, sample_cases
from kernels.shapes import MODELS


def test_every_op_is_compiled_for_every_model_tp_and_page_size() -> None:
    cases = all_cases()
    for op, model, tp, page_size in itertools.product(OPS, MODELS, (1, 4), PAGE_SIZES):
        found = [
            case
            for case in cases
            if case.op == op and f"{model} tp={tp}" in case.models.split(", ") and f"page {page_size} " in case.name
        ]
        assert found, (op, model, tp, page_size)


def test_decode_is_compiled_for_256_sequences_of_131072_tokens() -> None:
    for case in all_cases():
        if case.op == "paged_decode":
            queries, pool, table, lens = (arg.shape for arg in case.args)
            page_size = pool[-2]
            assert (queries[0], table[0], lens[0]) == (256, 256, 256)
            assert table[1] * page_size == 131_072


def test_no_case_is_listed_twice_and_all_layouts_and_types_occur() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases)
    for some in (cases, sample_cases()):
        assert {case.op for case in some} == set(OPS)
        for op in ("paged_decode", "chunked_prefill", "kv_write", "gather_pages", "scatter_pages"):
            assert {"H64", "H128"} <= {word for case in some if case.op == op for word in case.name.split()}
        assert any("float32" in case.name for case in some)
        assert any("window" in case.name and "soft cap" in case.name for case in some)
        assert any("H256" in case.name for case in some)


def test_a_copy_of_the_pool_would_not_pass_as_temporaries() -> None:
    for case in all_cases():
        if case.op in ("gather_pages", "scatter_pages"):
            pools = case.args[0]
        else:
            pools = [arg for arg in case.args if len(arg.shape) >= 4]
        for pool in pools:
            assert case.max_temp_bytes < pool.size * pool.dtype.itemsize / 2, case.name
