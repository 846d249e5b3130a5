"""`runtime up --print-config`: every setting that is in force and where it comes from, as TOML.

Reads the model's descriptions when the model is on this machine, downloads and loads nothing. What is only known once
the devices are (or not set at all) stands as a comment. The text is a configuration file for the same settings, but
for keys: those are never printed.
"""

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from runtime.cli.flag import Flag, field_default
from runtime.cli.flag_table import GROUPS, SETTINGS_FLAGS
from runtime.cli.flags import Options
from runtime.devices import resolve_platform
from runtime.emulated.setup import Emulation, emulation_of
from runtime.model_source import find_local
from runtime.plan import plan_for
from runtime.settings import Settings

_HEAD = "# The settings of `runtime up` that are in force, and where each comes from.\n"
_ORIGIN_COLUMN = 44
_VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")
"""Others that change what a start does; told when they are set."""


class _Known(msgspec.Struct, frozen=True):
    """A value and where it comes from."""

    value: Any
    origin: str


def config_in_force(options: Options) -> str:
    """The text. Raises UsageError for everything that `runtime up` would refuse without loading the model."""
    settings = options.settings
    known = {field: _Known(getattr(settings, field), origin) for field, origin in options.origins.items()}
    emulation = emulation_of(settings)
    where = _of_devices(settings) if emulation is None else _of_table(emulation)
    for field, derived in (where | _of_model(settings, emulation)).items():
        if field not in known:
            known[field] = derived
        elif known[field].value == "auto":
            known[field] = _Known(derived.value, f"{derived.origin}, as auto says: {known[field].origin}")
    groups = [
        "\n".join([f"# {group}", *(_line(flag, known) for flag in SETTINGS_FLAGS if flag.group == group)])
        for group in GROUPS
        if any(flag.group == group for flag in SETTINGS_FLAGS)
    ]
    return "\n\n".join([_HEAD.rstrip(), *groups, _environment()]) + "\n"


def _of_devices(settings: Settings) -> dict[str, _Known]:
    platform = resolve_platform(settings.device, settings.parsed_topology())
    settings.check_attention_backend(platform)
    sizes = settings.sizes_for(platform)
    default = f"default on {platform}"
    named = os.environ.get("JAX_PLATFORMS")
    derived = {
        "device": _Known(platform, f"environment JAX_PLATFORMS={named}" if named else "this machine"),
        "page_size": _Known(sizes.page_size, default),
        "max_running_requests": _Known(sizes.max_running_requests, default),
    }
    if sizes.chunked_prefill_size is not None:
        derived["chunked_prefill_size"] = _Known(sizes.chunked_prefill_size, default)
    return derived


def _of_table(emulation: Emulation) -> dict[str, _Known]:
    return {
        field: _Known(getattr(emulation.settings, field), "step-time table")
        for field in ("page_size", "chunked_prefill_size", "max_running_requests", "context_length", "num_pages")
    }


def _of_model(settings: Settings, emulation: Emulation | None) -> dict[str, _Known]:
    """What the model's descriptions say; nothing for a hub model that is not on this machine yet."""
    source = find_local(settings)
    if source.folder is None:
        return {"served_model_name": _Known(source.name, "model")}
    plan = plan_for(settings, source.name, source.folder)
    if emulation is not None:
        return {"served_model_name": _Known(plan.name, "model")}
    return {
        "served_model_name": _Known(plan.name, "model"),
        "dtype": _Known(plan.config.dtype, "model"),
        "context_length": _Known(plan.max_context_tokens, "model"),
    }


def _held(secret: str | tuple[str, ...]) -> str:
    return "given, not shown" if isinstance(secret, str) else f"{len(secret)}, not shown"


def _line(flag: Flag, known: dict[str, _Known]) -> str:
    assert flag.field is not None
    found = known.get(flag.field) or _Known(field_default(flag.field), "default")
    if flag.is_secret:
        held = _held(found.value) if found.value else flag.default_text
        return _with_origin(f"# {flag.key}: {held}", found.origin)
    if found.value is None:
        return _with_origin(f"# {flag.key}: {flag.default_text}", found.origin)
    return _with_origin(f"{flag.key} = {_toml(found.value)}", found.origin)


def _with_origin(text: str, origin: str) -> str:
    return f"{text:<{_ORIGIN_COLUMN}}  # {_printable(origin)}"


def _environment() -> str:
    from runtime.compile_cache import CACHE_VARIABLE, default_cache_dir

    given = os.environ.get(CACHE_VARIABLE)
    folder = Path(given) if given else default_cache_dir()
    lines = [_with_origin(f"# {CACHE_VARIABLE}: {_printable(str(folder))}", "environment" if given else "default")]
    others = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    lines += [_with_origin(f"# {name}: {_printable(value)}", "environment") for name, value in others.items()]
    return "\n".join(["# environment", *lines])


def _toml(value: Any) -> str:
    """A value in TOML, which spells strings as JSON does but for one control character."""
    if isinstance(value, str):
        return _printable(json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f"))
    return json.dumps(value)


def _printable(text: str) -> str:
    """Without control characters, which a comment must not hold, and bytes that are no UTF-8."""
    plain = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return plain.encode(errors="backslashreplace").decode()
