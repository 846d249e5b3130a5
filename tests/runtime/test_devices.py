"""The platform is chosen, and a CPU split into devices, through the environment and before jax is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import devices
from runtime.devices import check_fits, choose_platform, free_host_bytes
from runtime.errors import UsageError
from runtime.settings import DeviceKind
from runtime.topology import parse_topology

COUNT = "--xla_force_host_platform_device_count"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No platform, no flags; both are put back afterwards, also when the code under test set them."""
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "_probe", lambda: "cpu")


def test_a_cpu_gets_a_device_for_each_slice() -> None:
    assert choose_platform("cpu", parse_topology("prefill=2,decode=3")) == "cpu"
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["XLA_FLAGS"] == f"{COUNT}=5"


def test_without_a_topology_there_are_two_for_the_default_one() -> None:
    assert choose_platform("auto", None) == "cpu"
    assert os.environ["XLA_FLAGS"] == f"{COUNT}=2"


def test_flags_that_are_there_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    choose_platform("cpu", parse_topology("mixed=3"))
    assert os.environ["XLA_FLAGS"] == f"--xla_cpu_enable_fast_math=false {COUNT}=3"
    monkeypatch.setenv("XLA_FLAGS", f"{COUNT}=7")
    choose_platform("cpu", parse_topology("mixed=3"))
    assert os.environ["XLA_FLAGS"] == f"{COUNT}=7"


@pytest.mark.parametrize(("kind", "value"), [("tpu", "tpu,cpu"), ("gpu", "cuda,cpu")])
def test_an_accelerator_is_named_and_the_cpu_left_whole(kind: DeviceKind, value: str) -> None:
    assert choose_platform(kind, None) == kind
    assert os.environ["JAX_PLATFORMS"] == value
    assert "XLA_FLAGS" not in os.environ


def test_the_operators_platform_wins_over_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert choose_platform("auto", None) == "gpu"
    assert os.environ["JAX_PLATFORMS"] == "cuda"
    with pytest.raises(UsageError, match="--device cpu: JAX_PLATFORMS is 'cuda'"):
        choose_platform("cpu", None)


def test_too_few_devices_are_told() -> None:
    topology = parse_topology("prefill=2,decode=2")
    check_fits(topology, 4, "tpu")
    with pytest.raises(UsageError, match=r"needs 4 devices, allowed: at most the 3 tpu devices"):
        check_fits(topology, 3, "tpu")
    with pytest.raises(UsageError, match="at most 64 virtual ones"):
        choose_platform("cpu", parse_topology("mixed=65"))


def test_free_memory_is_known() -> None:
    assert free_host_bytes() > 1 << 20


def test_nothing_imports_jax_before_the_platform_is_chosen() -> None:
    code = "import sys, runtime.cli.up, runtime.cli.flags; assert 'jax' not in sys.modules, 'jax'"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
