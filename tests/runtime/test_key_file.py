from pathlib import Path

import pytest

from runtime.errors import UsageError
from runtime.key_file import read_key_file


def test_a_file_has_one_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two \nthree")
    assert read_key_file(str(file)) == ("one", "two", "three")
    assert read_key_file(None) == ()


@pytest.mark.parametrize("content", ["", "\n \n", "two words", "one\nschl\u00fcssel", "tab\there"])
def test_a_file_without_keys_or_with_others_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UsageError, match=f"--api-key-file {file}"):
        read_key_file(str(file))


def test_a_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; allowed: a file with one key a line"):
        read_key_file(str(tmp_path / "nothing"))
