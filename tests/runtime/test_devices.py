"""The platform is chosen, and a CPU split into devices, through the environment and before jax is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import devices
from runtime.devices import check_fits, choose_platform, free_host_bytes, resolve_platform
from runtime.errors import UsageError
from runtime.settings import DeviceKind
from runtime.topology import parse_topology

COUNT = "--xla_force_host_platform_device_count"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No platform, no flags, every accelerator; all is put back afterwards, also what the code under test set."""
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "_probe", lambda: "cpu")
    monkeypatch.setattr(devices, "_is_there", lambda platform: True)


def test_a_cpu_gets_a_device_for_each_slice() -> None:
    assert choose_platform("cpu", parse_topology("prefill=2,decode=3")) == "cpu"
    assert os.environ["JAX_PLATFORMS"] == "cpu"
    assert os.environ["XLA_FLAGS"] == f"{COUNT}=5"


def test_without_a_topology_there_are_two_for_the_default_one() -> None:
    assert choose_platform("auto", None) == "cpu"
    assert os.environ["XLA_FLAGS"] == f"{COUNT}=2"


@pytest.mark.parametrize(("tp", "count"), [(2, 4), (4, 8), (32, 64), (40, 64)])
def test_a_cpu_is_split_for_two_slices_of_the_default_tp_if_it_can_be(tp: int, count: int) -> None:
    assert choose_platform("cpu", None, tp) == "cpu"
    assert os.environ["XLA_FLAGS"] == f"{COUNT}={count}"


def test_a_default_tp_beyond_the_devices_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'mixed=1x65': needs 65 devices; allowed: at most 64 virtual ones"):
        resolve_platform("cpu", None, 65)
    monkeypatch.setenv("XLA_FLAGS", f"{COUNT}=3")
    assert resolve_platform("cpu", None, 3) == "cpu"
    with pytest.raises(UsageError, match=r"'mixed=1x4': needs 4 devices, allowed: at most the 3 cpu devices"):
        resolve_platform("cpu", None, 4)


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


def test_fewer_virtual_devices_than_slices_are_told_before_jax_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"{COUNT}=8 {COUNT}=3")
    with pytest.raises(UsageError, match=r"needs 4 devices, allowed: at most the 3 cpu devices"):
        resolve_platform("cpu", parse_topology("prefill=2,decode=2"))
    monkeypatch.setenv("XLA_FLAGS", f"{COUNT}=100")
    assert resolve_platform("cpu", parse_topology("mixed=100")) == "cpu"


def test_resolving_changes_nothing() -> None:
    assert resolve_platform("cpu", parse_topology("mixed=3")) == "cpu"
    assert "JAX_PLATFORMS" not in os.environ
    assert "XLA_FLAGS" not in os.environ


def test_an_accelerator_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_is_there", lambda platform: False)
    with pytest.raises(UsageError, match=r"--device tpu: this machine shows no tpu or jax has no plugin"):
        resolve_platform("tpu", None)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    with pytest.raises(UsageError, match=r"--device gpu, which JAX_PLATFORMS=cuda,cpu names: this machine shows no"):
        resolve_platform("auto", None)


def test_free_memory_is_known() -> None:
    assert free_host_bytes() > 1 << 20


def test_nothing_imports_jax_before_the_platform_is_chosen() -> None:
    code = "import sys, runtime.cli.up, runtime.cli.flags; assert 'jax' not in sys.modules, 'jax'"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
