"""What is known of one setting: its names, what its value may be, its default and its effect."""

from typing import Any

import msgspec

from runtime.cli.values import Value
from runtime.errors import UsageError
from runtime.settings import Settings

_MAX_SHOWN = 200


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table that command line, configuration file, help and documents are made from.

    `field` is the setting's name in `Settings`; flags that only steer the command have None. A `metavar` stands for
    the value in the help, a switch has none. `default` is for people; without one it is what `Settings` says.
    """

    names: tuple[str, ...]
    field: str | None
    group: str
    value: Value
    effect: str
    metavar: str = ""
    default: str = ""
    is_secret: bool = False

    @property
    def name(self) -> str:
        """The name that documents use."""
        return next(name for name in self.names if name.startswith("--"))

    @property
    def key(self) -> str:
        """The name in a configuration file."""
        return self.name.removeprefix("--")

    @property
    def label(self) -> str:
        """All names, for messages."""
        return " or ".join(self.names)

    @property
    def usage(self) -> str:
        """All names and the value, for help."""
        return ", ".join(self.names) + (f" {self.metavar}" if self.metavar else "")

    @property
    def is_switch(self) -> bool:
        """Whether it stands alone."""
        return not self.metavar

    @property
    def default_text(self) -> str:
        """What holds when nothing is said."""
        if self.default or self.field is None:
            return self.default
        value = field_default(self.field)
        if isinstance(value, bool):
            return "on" if value else "off"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def refuse(self, where: str, given: Any, allowed: str | None = None) -> UsageError:
        """The error for a value; `where` names the setting as the operator wrote it. A secret is not repeated."""
        shown = "" if self.is_secret else f" {_shown(given)}"
        return UsageError(f"{where}{shown}: allowed: {allowed or self.value.allowed}")


def field_default(field: str) -> Any:
    """The default of one of the settings."""
    return getattr(_DEFAULTS, field)


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_DEFAULTS = Settings()
