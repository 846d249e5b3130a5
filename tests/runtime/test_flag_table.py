"""One table describes every flag: nothing that is made from it can leave a flag or a setting out."""

import re
from pathlib import Path

import pytest

from runtime.cli.flag import Flag, field_default
from runtime.cli.flag_table import FLAGS, SETTINGS_FLAGS
from runtime.cli.help_text import WIDTH, help_text
from runtime.cli.reference import reference
from runtime.kv_cache import CPU_POOL_BYTES, DEFAULT_MEM_FRACTION
from runtime.settings import PLATFORM_DEFAULTS, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_setting_has_one_flag_and_every_name_one_meaning() -> None:
    assert sorted(str(flag.field) for flag in SETTINGS_FLAGS) == sorted(Settings.__struct_fields__)
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.key)
def test_help_and_documents_tell_names_effect_and_default(flag: Flag) -> None:
    assert flag.default_text not in ("", "None")
    about = words(f"{flag.usage} {flag.effect} (default: {flag.default_text})")
    assert about in words(help_text())
    row = next(line for line in reference().splitlines() if f"`{flag.name}" in line)
    assert flag.effect.replace("|", "\\|") in row


@pytest.mark.parametrize("flag", SETTINGS_FLAGS, ids=lambda flag: flag.key)
def test_a_default_is_stated_where_the_setting_has_none_and_only_there(flag: Flag) -> None:
    assert flag.field is not None
    assert bool(flag.default) is (field_default(flag.field) in (None, ()))


def test_stated_defaults_are_those_of_the_platforms_and_the_pool() -> None:
    texts = {flag.field: flag.default for flag in FLAGS}
    for field in ("page_size", "chunked_prefill_size", "max_running_requests"):
        cpu, tpu, gpu = (getattr(PLATFORM_DEFAULTS[platform], field) for platform in ("cpu", "tpu", "gpu"))
        assert tpu == gpu
        assert texts[field] == f"{cpu} on cpu, else {tpu}"
    assert (
        texts["mem_fraction_static"]
        == f"{DEFAULT_MEM_FRACTION}; on cpu at most {CPU_POOL_BYTES >> 30} GiB of KV per slice"
    )


def test_help_fits_a_terminal_and_is_grouped() -> None:
    lines = help_text().splitlines()
    assert max(len(line) for line in lines) <= WIDTH + 10
    groups = [line for line in lines if re.fullmatch(r"[a-z ]+:", line)]
    assert groups[:6] == [
        "model:", "devices and slices:", "memory and batching:", "sampling:", "server:", "this command:"
    ]  # fmt: skip


def test_the_document_holds_the_table_as_it_is() -> None:
    """`python -m runtime.cli.reference` prints what belongs there."""
    assert reference() in DOCUMENT.read_text(encoding="utf-8")
