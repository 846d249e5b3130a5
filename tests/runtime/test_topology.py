"""The topology grammar: what it accepts, where slices land, and how it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.topology import Slice, default_topology, parse_topology


def test_slices_lie_on_consecutive_devices_prefill_first() -> None:
    topology = parse_topology("decode=1x2, prefill=2x1")
    assert topology.slices == (
        Slice("prefill.0", "prefill", (0,)),
        Slice("prefill.1", "prefill", (1,)),
        Slice("decode.0", "decode", (2, 3)),
    )
    assert topology.num_devices == 4
    assert [part.name for part in topology.named("decode")] == ["decode.0"]


def test_the_default_tp_goes_to_roles_without_their_own() -> None:
    assert str(parse_topology("prefill=1,decode=2x1", default_tp=4)) == "prefill=1x4,decode=2x1"


@pytest.mark.parametrize(
    ("num_devices", "tp", "expected"),
    [(1, 1, "mixed=1x1"), (2, 1, "prefill=1x1,decode=1x1"), (4, 4, "mixed=1x4"), (8, 4, "prefill=1x4,decode=1x4")],
)
def test_the_default_disaggregates_when_there_are_devices_for_it(num_devices: int, tp: int, expected: str) -> None:
    assert str(default_topology(num_devices, tp)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "prefill", "prefill=", "prefill=x2", "prefill=1x,decode=1", "prefill=0,decode=1", "mixed=1x0",
        "prefill=1", "decode=2", "mixed=1,decode=1", "prefill=1,prefill=1,decode=1", "encode=1,decode=1",
        "prefill=-1,decode=1", "prefill=1.5,decode=1", "mixed=1;mixed=1",
    ],
)  # fmt: skip
def test_a_bad_topology_is_refused_in_one_line_with_the_text_and_the_grammar(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_topology(text)
    message = str(refusal.value)
    assert message.startswith(f"--topology {text!r}: ")
    assert "allowed: prefill=P[xTP],decode=D[xTP] or mixed=N[xTP]" in message
    assert "\n" not in message


NINES = "9" * 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prefill=1000000000,decode=1", "'prefill=1000000000' has a count or TP that is not from 1 to 4096"),
        ("prefill=1,decode=4097", "'decode=4097' has a count or TP that is not from 1 to 4096"),
        ("mixed=1x4097", "'mixed=1x4097' has a count or TP that is not from 1 to 4096"),
        (f"prefill={NINES},decode=1", "999...' has a count or TP that is not from 1 to 4096"),
        (f"mixed=1x{NINES}", "999...' has a count or TP that is not from 1 to 4096"),
        ("mixed=4096x4096", "it needs more than 65536 devices"),
    ],
)
def test_a_topology_beyond_all_bounds_is_refused_before_it_is_built(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_topology(text)
    message = str(refusal.value)
    assert reason in message
    assert message.endswith("with P, D, N, TP from 1 to 4096")
    assert len(message) < 400


def test_the_largest_counts_parse() -> None:
    assert str(parse_topology("prefill=4096,decode=4096")) == "prefill=4096x1,decode=4096x1"
    assert parse_topology("mixed=1x4096").num_devices == 4096
    with pytest.raises(UsageError, match="TP that is not from 1 to 4096"):
        parse_topology("mixed=1", default_tp=4097)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
def test_what_is_printed_parses_to_the_same_and_uses_each_device_once(p: int, d: int, tp: int, td: int) -> None:
    topology = parse_topology(f"prefill={p}x{tp},decode={d}x{td}")
    assert parse_topology(str(topology)) == topology
    used = [device for part in topology.slices for device in part.devices]
    assert used == list(range(topology.num_devices))
