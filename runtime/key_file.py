"""The file of `--api-key-file`: one key a line. Read before anything is loaded."""

from pathlib import Path

from runtime.errors import UsageError

_FLAG = "--api-key-file"


def read_key_file(path: str | None) -> tuple[str, ...]:
    """The keys. Raises UsageError for a file that cannot be read, or that holds no key or anything else.

    An empty file is refused, for without keys everybody would be let in.
    """
    if path is None:
        return ()
    try:
        lines = Path(path).read_text("ascii").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not ASCII"
        raise UsageError(f"{_FLAG} {path}: {reason}; allowed: a file with one key a line") from error
    keys = tuple(line.strip() for line in lines if line.strip())
    for number, line in enumerate(lines, 1):
        if not all("!" <= character <= "~" for character in line.strip()):
            raise UsageError(f"{_FLAG} {path}, line {number}: allowed: printable ASCII characters without blanks")
    if not keys:
        raise UsageError(f"{_FLAG} {path}: no key; allowed: a file with one key a line")
    return keys
