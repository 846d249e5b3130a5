"""Prefix reuse in the simulator: right answers from cached KV, under eviction, across turns, tenants and setbacks."""

import msgspec
import pytest

from runtime.sampling_params import SamplingParams
from tests.simulation.expected import expected_choice
from tests.simulation.harness import run_workload
from tests.simulation.test_simulation import planned, workload
from tests.simulation.workload import PlannedRequest, draw_shared_workload

TOPOLOGIES = ("prefill=2,decode=2", "prefill=1,decode=1", "mixed=2")
PROMPT = tuple(range(2, 42))
"""Forty tokens: ten pages of four."""


def asked(name: str, at_s: float, prompt: tuple[int, ...] = PROMPT, **changes: object) -> PlannedRequest:
    return planned(name, 1, prompt=prompt, arrival_s=at_s, **changes)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_thousand_requests_over_shared_prefixes_under_eviction(topology: str) -> None:
    outcome = run_workload(draw_shared_workload(1, 1000, topology))
    assert outcome.completed > 800
    assert outcome.cached_tokens > 2000
    assert outcome.evicted_pages > 500


def test_with_the_cache_switched_off_nothing_is_reused() -> None:
    load = draw_shared_workload(1, 100, "prefill=2,decode=2")
    outcome = run_workload(msgspec.structs.replace(load, prefix_cache=False))
    assert (outcome.cached_tokens, outcome.evicted_pages) == (0, 0)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_hit_ends_at_a_page_and_before_the_last_token(topology: str) -> None:
    lengths = (40, 41, 39, 4, 5, 1)
    requests = [asked("first", 0.0, PROMPT + (50, 51, 52))]
    requests += [asked(f"r{length}", 1.0 + n, (PROMPT + (50,))[:length]) for n, length in enumerate(lengths)]
    outcome = run_workload(workload(topology, tuple(requests)))
    assert outcome.completed == len(requests)
    # one worker of each kind would give 36 + 40 + 36 + 0 + 4 + 0; with two, routing finds the one that has it
    assert outcome.cached_tokens == sum((length - 1) // 4 * 4 for length in lengths)


def test_a_hit_moves_only_the_pages_that_are_missing() -> None:
    cold = run_workload(workload("prefill=1,decode=1", (asked("first", 0.0),)))
    assert cold.moved_tokens == 40
    both = run_workload(workload("prefill=1,decode=1", (asked("first", 0.0), asked("again", 1.0))))
    assert both.moved_tokens == 40 + 4, "the last page is computed anew, nine are there"
    longer = asked("longer", 1.0, PROMPT + (50, 51))
    outcome = run_workload(workload("prefill=1,decode=1", (asked("first", 0.0), longer)))
    assert outcome.moved_tokens == 40 + 2


def test_a_prefix_that_only_the_prefill_side_has_is_moved_and_not_computed() -> None:
    """The decode side's pool is too small to keep the prefix; the prefill side computes one chunk of five anew."""
    hogs = tuple(
        asked(f"hog{n}", 1.0 + n, PROMPT[n + 1 :] + PROMPT, params=SamplingParams(seed=n, max_tokens=30))
        for n in range(2)
    )
    load = workload("prefill=1,decode=1", (asked("first", 0.0), *hogs, asked("again", 4.0)), num_pages=56)
    outcome = run_workload(load)
    assert outcome.completed == 4
    assert outcome.cached_tokens == 36
    assert outcome.moved_tokens > 3 * 40


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_equal_prompts_that_come_together_are_computed_once(topology: str) -> None:
    requests = tuple(asked(f"r{n}", 0.0) for n in range(4))
    single = {"prefill=2,decode=2": "prefill=1,decode=1", "mixed=2": "mixed=1"}.get(topology, topology)
    outcome = run_workload(workload(single, requests))
    assert outcome.completed == 4
    assert outcome.cached_tokens == 3 * 36


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_conversation_goes_on_from_its_answer(topology: str) -> None:
    first = asked("first", 0.0, params=SamplingParams(seed=1, max_tokens=20))
    answer = tuple(record.token for record in expected_choice(PROMPT, first.params, 0, ()).records)
    second = asked("second", 1.0, PROMPT + answer + (50, 51, 52))
    outcome = run_workload(workload(topology, (first, second)))
    # Sixty tokens precede the second question; the decode side has KV of 59 of them, the prefill side of its prompt.
    assert outcome.cached_tokens == (56 if topology.startswith("mixed") else 40)
    if topology == "prefill=1,decode=1":
        assert outcome.moved_tokens == 40 + (63 - 56)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_salt_keeps_tenants_apart(topology: str) -> None:
    salts = ("a", "b", None, "a")
    requests = tuple(asked(f"r{n}", float(n), cache_salt=salt) for n, salt in enumerate(salts))
    outcome = run_workload(workload(topology, requests))
    assert outcome.cached_tokens == 36, "only the last one finds its own tenant's"


def test_requests_go_where_their_prefix_is() -> None:
    texts = [tuple(range(first, first + 40)) for first in (2, 12)]
    requests = tuple(asked(f"r{n}", float(n), texts[n % 2]) for n in range(8))
    outcome = run_workload(workload("prefill=2,decode=2", requests))
    assert outcome.cached_tokens == 6 * 36
    assert outcome.moved_tokens == 2 * 40 + 6 * 4


@pytest.mark.parametrize("topology", ["prefill=1,decode=1", "mixed=1"])
def test_requests_that_share_most_of_the_pool_run_side_by_side(topology: str) -> None:
    """Four prompts of ten pages and four of answer in a pool of 31: they fit only because the prompt is shared."""
    params = SamplingParams(seed=1, max_tokens=16)
    first = asked("first", 0.0, PROMPT + (50,), params=params)
    others = tuple(asked(f"r{n}", 0.3, PROMPT + (50 + n,), params=params) for n in range(3))
    outcome = run_workload(workload(topology, (first, *others), num_pages=32))
    assert outcome.completed == 4
    assert outcome.virtual_s < 3.2
