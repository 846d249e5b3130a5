"""The project's own files: version, pins, and what must not be in a public repository."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import runtime

ROOT = Path(__file__).parents[1]
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".jinja", ".json", ".sh", ""}
# Folders of somebody's machine, in the middle of a line or at its start.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:home|root|work|mnt|Users|tmp/[\w.-]+)/[\w.-]+")
INDEX_ADDRESS = re.compile(
    r"(?:--(?:extra-)?index-url|--find-links|--trusted-host)\b|file://|[a-z]+://[^/\s]*/simple\b"
)


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def tracked_texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.suffix in TEXT_SUFFIXES and path.is_file()]


def test_the_version_is_below_the_one_that_transformers_takes_for_another_package() -> None:
    version = project()["version"]
    assert version == runtime.__version__
    assert Version(str(version)) < Version("0.9")


@pytest.mark.timeout(120)
def test_transformers_imports_beside_our_kernels_package() -> None:
    code = (
        "import kernels, transformers\n"
        "from transformers import AutoTokenizer, PreTrainedTokenizerFast\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
        "print(kernels.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "kernels"


def test_every_dependency_is_pinned_within_its_range() -> None:
    table = project()
    wanted = [Requirement(text) for text in table["dependencies"]]  # type: ignore[attr-defined]
    wanted += [Requirement(text) for text in table["optional-dependencies"]["test"]]  # type: ignore[index]
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        versions = [next(iter(pin.specifier)).version for pin in pins() if canonicalize_name(pin.name) == name]
        assert versions, f"{name} is not in constraints.txt"
        assert all(version in requirement.specifier for version in versions), name


def test_constraints_hold_versions_and_nothing_else() -> None:
    for pin in pins():
        assert pin.url is None
        assert [part.operator for part in pin.specifier] == ["=="], pin
    assert canonicalize_name("torch") not in {canonicalize_name(pin.name) for pin in pins()}


def test_no_file_names_a_machine_or_a_package_index() -> None:
    found = []
    for path in tracked_texts():
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line) or INDEX_ADDRESS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize(
    "line", ["x = '/home/somebody/model'", "--extra-index-url https://x", "see file:///opt/wheels", "cd /root/repo"]
)
def test_a_planted_address_is_seen(line: str) -> None:
    assert MACHINE_PATH.search(line) or INDEX_ADDRESS.search(line)


@pytest.mark.parametrize("line", ["make up ARGS='--model /path/to/model'", "GET /v1/models", "tests/home/x"])
def test_an_innocent_path_is_not(line: str) -> None:
    assert not MACHINE_PATH.search(line)
    assert not INDEX_ADDRESS.search(line)
