"""What flags do to the engines of a server, from the command line on, with a recorder in the engine's place."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

from runtime import slices
from runtime.cli.console import Report
from runtime.cli.flags import parse_up
from runtime.composition import seed_source
from runtime.engine import EngineSpec
from runtime.model_config import ModelConfig
from runtime.plan import make_plan
from runtime.topology import parse_topology


class Recorder:
    """In place of an engine: keeps what it is made with."""

    made: list["Recorder"] = []

    def __init__(self, model: ModelConfig, params: Any, spec: EngineSpec, **options: Any) -> None:
        self.model, self.spec, self.options = model, spec, options
        Recorder.made.append(self)

    def warm_up(self, progress: Callable[[str, int, int], None]) -> None:
        progress("all", 1, 1)


@pytest.fixture(autouse=True)
def _no_real_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "JaxEngine", Recorder)
    monkeypatch.setattr(slices, "load_weights", lambda *_: {})
    monkeypatch.setattr(slices, "place", lambda params, target: params)
    monkeypatch.setattr(slices, "free_host_bytes", lambda: 1 << 30)
    monkeypatch.setattr(Recorder, "made", [])


def engine(line: str) -> Recorder:
    """The decode slice's engine of a server with these flags."""
    settings = parse_up(f"--device cpu {line}".split())
    assert settings is not None
    plan = make_plan(settings)
    topology = settings.parsed_topology() or parse_topology("prefill=1,decode=1")
    slices.Slices(plan=plan, topology=topology, devices=tuple(jax.devices()), platform="cpu").build(Report())
    assert len(Recorder.made) == len(topology.slices)
    return Recorder.made[-1]


def test_without_flags_the_platform_and_the_model_decide() -> None:
    made = engine("")
    assert (made.spec.page_size, made.spec.chunk_tokens, made.spec.num_rows) == (16, 256, 32)
    assert made.spec.max_context_tokens == 4096
    assert (made.model.dtype, made.options["use_sort"]) == ("bfloat16", False)
    assert made.options["checksums"] is False


def test_checksums_are_made_on_demand() -> None:
    assert engine("--verify-kv").options["checksums"] is True


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("--page-size 64", "page_size", 64),
        ("--num-pages 77", "num_pages", 77),
        ("--chunked-prefill-size 64", "chunk_tokens", 64),
        ("--chunked-prefill-size -1", "chunk_tokens", 4096),
        ("--chunked-prefill-size -1 --context-length 1000", "chunk_tokens", 1008),
        ("--max-running-requests 256", "num_rows", 256),
        ("--context-length 1000", "max_context_tokens", 1000),
    ],
)
def test_a_size_reaches_the_engine(line: str, field: str, value: int) -> None:
    assert getattr(engine(line).spec, field) == value


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_type_is_the_engines(dtype: str) -> None:
    assert engine(f"--dtype {dtype}").model.dtype == dtype


def test_the_sampler_is_told_to_sort() -> None:
    assert engine("--use-sort-for-toppk-minp").options["use_sort"] is True


def test_a_topology_makes_its_slices() -> None:
    engine("--topology prefill=2,decode=3")
    assert [made.options["role"] for made in Recorder.made] == ["prefill"] * 2 + ["decode"] * 3


def test_the_share_of_a_cpus_free_memory_is_divided_among_the_slices() -> None:
    spec = engine("--mem-fraction-static 0.01 --topology prefill=1,decode=1").spec
    assert (spec.num_pages - 1) * spec.page_bytes <= 0.01 * (1 << 30) / 2 < (spec.num_pages + 1) * spec.page_bytes
    assert engine_with_more().spec.num_pages > spec.num_pages


def engine_with_more() -> Recorder:
    Recorder.made.clear()
    return engine("--mem-fraction-static 0.02 --topology prefill=1,decode=1")


def test_a_random_seed_repeats_the_seeds_of_requests_and_another_gives_others() -> None:
    def draws(seed: int | None) -> list[int]:
        draw = seed_source(seed)
        return [draw() for _ in range(4)]

    assert draws(7) == draws(7) != draws(8)
    assert len(set(draws(7))) == 4
    assert draws(None) != draws(None)
