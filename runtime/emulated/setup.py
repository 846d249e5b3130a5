"""`--engine emulated:FILE`: the settings as the table completes them, checked before anything is loaded.

A table stands for devices and weights, so flags about those are refused, and sizes beyond what it covers as well.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from runtime.emulated.table import StepTable, load_table
from runtime.engine import SENTINEL_PAGE
from runtime.errors import UsageError
from runtime.settings import PLATFORM_DEFAULTS, Settings
from runtime.topology import Topology, parse_topology

_MEANINGLESS = {
    "device": "--device",
    "dtype": "--dtype",
    "attention_backend": "--attention-backend",
    "mem_fraction_static": "--mem-fraction-static",
    "use_sort_for_toppk_minp": "--use-sort-for-toppk-minp",
}
"""Settings of devices and programs that are not there: their flags, for messages."""


class Emulation(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the place of devices. The times of `table` are stretched already.

    `settings` are those of the operator with every size filled in.
    """

    table: StepTable
    topology: Topology
    settings: Settings

    @property
    def page_bytes(self) -> int:
        """Bytes that a page of KV would take on a slice."""
        assert self.settings.page_size is not None
        return self.table.kv_bytes_per_token * self.settings.page_size

    @property
    def num_pages(self) -> int:
        """KV pages of each slice, the sentinel counted."""
        assert self.settings.num_pages is not None
        return self.settings.num_pages


def emulation_of(settings: Settings) -> Emulation | None:
    """The emulation that was asked for, None for a real engine.

    Raises UsageError for a bad table and for settings that mean nothing to an emulated slice or go beyond the table.
    """
    if settings.table_file is None:
        return None
    _refuse_meaningless(settings)
    table = load_table(Path(settings.table_file))
    topology = settings.parsed_topology() or parse_topology("prefill=1,decode=1", settings.tp_size)
    _check_widths(settings, topology)
    sizes = _sizes(settings, table, topology)
    return Emulation(
        table=table.stretched(settings.emulation_stretch),
        topology=topology,
        settings=msgspec.structs.replace(settings, **sizes),
    )


def _refuse_meaningless(settings: Settings) -> None:
    default = Settings()
    for field, flag in _MEANINGLESS.items():
        value, usual = getattr(settings, field), getattr(default, field)
        if value != usual:
            shown = "" if value is True else f" {value}"
            allowed = f"{usual}, or no such flag" if isinstance(usual, str) else "no such flag"
            raise UsageError(f"{flag}{shown} with --engine {settings.engine!r}: allowed: {allowed}")


def _check_widths(settings: Settings, topology: Topology) -> None:
    wide = next((part for part in topology.slices if len(part.devices) > 1), None)
    if wide is not None:
        asked = f"--tp-size {settings.tp_size}" if settings.topology is None else f"--topology {settings.topology!r}"
        raise UsageError(
            f"{asked} with --engine {settings.engine!r}: {wide.name} has {len(wide.devices)} devices; "
            "allowed: slices of one device, for which the table's times are"
        )


def _sizes(settings: Settings, table: StepTable, topology: Topology) -> Mapping[str, int]:
    """Sizes that were asked for, completed with the platform's as far as the table goes. Raises UsageError."""
    sizes = settings.sizes_for(table.platform)
    page, (most_tokens, most_rows) = sizes.page_size, _largest_step(table, topology)
    most_pages = table.pool_tokens // page + SENTINEL_PAGE + 1
    if page > most_tokens or page > table.pool_tokens:
        raise _beyond("--page-size", page, min(most_tokens, table.pool_tokens), "tokens")
    context = _asked("--context-length", settings.context_length, table.max_context_tokens, "tokens")
    chunk = most_tokens // page * page
    if settings.chunked_prefill_size is None:
        chunk = min(chunk, sizes.chunk_tokens(context))
    else:
        chunk = _asked("--chunked-prefill-size", sizes.chunk_tokens(context), chunk, "tokens")
    usual_rows = min(most_rows, PLATFORM_DEFAULTS[table.platform].max_running_requests)
    return {
        "page_size": page,
        "chunked_prefill_size": chunk,
        "max_running_requests": _asked(
            "--max-running-requests", settings.max_running_requests or usual_rows, most_rows, "requests"
        ),
        "context_length": context,
        "num_pages": _asked("--num-pages", settings.num_pages, most_pages, "pages"),
    }


def _largest_step(table: StepTable, topology: Topology) -> tuple[int, int]:
    """Prompt tokens and decode rows of the largest step of which the table knows the time."""
    tokens, rows = table.prefill.tokens[-1], table.decode.rows[-1]
    if topology.named("mixed"):
        return min(tokens, table.mixed.tokens[-1]), min(rows, table.mixed.rows[-1])
    return tokens, rows


def _asked(flag: str, value: int | None, most: int, unit: str) -> int:
    """The value, or the most that there is. Raises UsageError for more."""
    if value is not None and value > most:
        raise _beyond(flag, value, most, unit)
    return value or most


def _beyond(flag: str, value: int, most: int, unit: str) -> UsageError:
    return UsageError(f"{flag} {value}: allowed: at most the {most} {unit} of the step-time table")
