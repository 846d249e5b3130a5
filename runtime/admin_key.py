"""The key of the admin routes: given as it is, or as `@FILE`. Read before anything is loaded."""

from pathlib import Path

from runtime.errors import UsageError


def read_admin_key(given: str | None) -> str | None:
    """The key itself. Raises UsageError for a file that cannot be read or holds anything else than one key."""
    if given is None or not given.startswith("@"):
        return given
    path = Path(given[1:])
    try:
        key = path.read_text("ascii").strip()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise UsageError(f"--admin-key @{path}: {reason}; allowed: a file that holds the key") from error
    if not key or not all("!" <= character <= "~" for character in key):
        raise UsageError(f"--admin-key @{path}: allowed: a file with printable ASCII characters without blanks")
    return key
