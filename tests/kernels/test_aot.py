"""Targets that are compiled for without a TPU, and the environment that makes a process one that does so."""

import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels import aot

MXU_ROWS_PER_BUNDLE = {"v5e": 1, "v6e": 2, "tpu7x": 2}
"""Rows of bfloat16 that one matrix unit takes in a cycle."""


@pytest.mark.parametrize(
    ("text", "shape", "num_devices", "written"),
    [
        ("v6e", (1, 1), 1, "v6e:1x1"),
        ("v6e:2x2", (2, 2), 4, "v6e:2x2"),
        ("v5e:4x8", (4, 8), 32, "v5e:4x8"),
        ("tpu7x", (1, 1, 1), 2, "tpu7x:1x1x1"),
        ("tpu7x:2x2x1", (2, 2, 1), 8, "tpu7x:2x2x1"),
    ],
)
def test_a_target_is_a_generation_and_its_chips(
    text: str, shape: tuple[int, ...], num_devices: int, written: str
) -> None:
    target = aot.parse_target(text)
    assert target.shape == shape
    assert target.num_devices == num_devices
    assert str(target) == written
    assert aot.parse_target(written) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v6",
        "V6E",
        "h100:2x2",
        "v6e:",
        "v6e:2",
        "v6e:2x2x2",
        "v6e:0x2",
        "v6e:2x-2",
        "v6e:2x2 ",
        "tpu7x:2x2",
        "v6e:02x2",
    ],
)
def test_what_is_no_target_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: .*v5e:2x2, v6e:2x2, tpu7x:2x2x2") as error:
        aot.parse_target(text)
    assert repr(text) in str(error.value)


def test_the_environment_names_the_chips_and_keeps_jax_off_them() -> None:
    variables = aot.environment(aot.parse_target("v5e:2x2"))
    assert variables["TPU_ACCELERATOR_TYPE"] == "v5litepod-4"
    assert variables["JAX_PLATFORMS"] == "cpu"
    assert variables["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert "LIBTPU_INIT_ARGS" not in variables


def test_a_dump_folder_asks_for_schedules_there() -> None:
    variables = aot.environment(aot.parse_target("v6e"), "/tmp/some folder")
    assert "--xla_jf_dump_to=/tmp/some folder" in variables["LIBTPU_INIT_ARGS"]


def test_setting_the_environment_without_the_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(aot.os.environ)
    monkeypatch.setattr(aot, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"pip install 'runtime\[tpu\]'"):
        aot.set_environment(aot.parse_target("v6e"))
    assert dict(aot.os.environ) == before


@pytest.mark.parametrize("generation", aot.GENERATIONS)
def test_clocks_follow_from_the_peak_rate_and_the_matrix_units(generation: str) -> None:
    info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(aot.GENERATIONS[generation].chip_version), 1)
    flop_per_bundle = 2 * MXU_ROWS_PER_BUNDLE[generation] * info.num_mxus * info.mxu_column_size**2
    clock_hz = aot.parse_target(generation).clock_ghz * 1e9
    assert clock_hz * flop_per_bundle == pytest.approx(info.bf16_ops_per_second, rel=0.005)
