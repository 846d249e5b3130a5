"""`docs/api.md`: its tables are current, and its examples run."""

import contextlib
import io
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from starlette.applications import Starlette

from api.app import create_app
from api.model import ApiSettings, Readiness, ServedModel
from api.openapi_fields import NOTES
from api.reference import filled
from tests.api.fake_client import FakeClient
from tests.api.served import served

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, re.M | re.S)
ADDRESS = "http://127.0.0.1:8000"


def test_the_tables_are_as_the_code_is() -> None:
    """`python -m api.reference docs/api.md` puts them there."""
    assert filled(PAGE) == PAGE


def test_every_request_type_has_a_table() -> None:
    assert set(NOTES) | {"routes"} == set(re.findall(r"<!-- begin: (\w+) -->", PAGE))


def test_every_type_of_the_tables_has_a_heading() -> None:
    links = set(re.findall(r"\]\(#([a-z]+)\)", PAGE))
    headings = {line.strip("# ").lower() for line in PAGE.splitlines() if line.startswith("#")}
    assert links <= headings


@pytest.fixture
def url(model: ServedModel, client: FakeClient) -> Iterator[str]:
    """A server that goes by the name of the examples."""
    named = msgspec.structs.replace(model, names=("runtime-demo",))
    app: Starlette = create_app(named, client, lambda: Readiness(state="ready"), ApiSettings(ping_interval_s=3600))
    with served(app) as address:
        yield address


@pytest.mark.parametrize(("language", "text"), EXAMPLES, ids=[text.split("\n")[0][:60] for _, text in EXAMPLES])
def test_an_example_runs(url: str, language: str, text: str) -> None:
    assert ADDRESS in text
    here = text.replace(ADDRESS, url)
    if language == "sh":
        command = here.replace("curl ", "curl --fail-with-body --silent --show-error --max-time 20 ")
        ran = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert ran.stdout.startswith(("{", "data: {")), ran.stdout
        return
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(here, "docs/api.md", "exec"), {})
    assert printed.getvalue().strip()
