from pathlib import Path

import pytest

from runtime.admin_key import read_admin_key
from runtime.errors import UsageError


def test_a_key_is_given_as_it_is_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("open-sesame\n")
    assert read_admin_key(None) is None
    assert read_admin_key("plain") == "plain"
    assert read_admin_key(f"@{file}") == "open-sesame"


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "schlüssel"])
def test_a_file_must_hold_one_key(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(UsageError, match=f"--admin-key @{file}: "):
        read_admin_key(f"@{file}")


def test_a_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; allowed: a file that holds the key"):
        read_admin_key(f"@{tmp_path / 'nothing'}")
