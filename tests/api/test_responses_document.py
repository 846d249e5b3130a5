"""The examples of docs/responses.md run, one after the other, and its events are those that are sent."""

import re
from pathlib import Path

import msgspec
import openai
import pytest

from api.model import ServedModel
from api.responses.schema import REFUSED, ResponsesBody
from tests.api.fake_client import FakeClient
from tests.api.test_openai_package import url

__all__ = ["url"]

TEXT = (Path(__file__).parents[2] / "docs" / "responses.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def model(model: ServedModel) -> ServedModel:
    return msgspec.structs.replace(model, names=("runtime-demo",))


def test_examples(url: str, client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    try:
        for example in EXAMPLES:
            exec(example.replace("http://127.0.0.1:8000/v1", url), names)
    finally:
        opened = names["client"]
        assert isinstance(opened, openai.OpenAI)
        opened.close()
    text = client.texts[0]
    printed = capsys.readouterr().out
    assert len(EXAMPLES) == 4
    assert re.fullmatch(rf"{re.escape(text)} \d+\n{re.escape(text)}completed\ncompleted completed\n", printed)


def test_every_field_is_spoken_of() -> None:
    fields = set(re.findall(r"`([a-z_]+)[`.]", TEXT.split("## Fields")[1]))
    own = {name for name in ResponsesBody.__annotations__ if name not in REFUSED}
    assert own - {"stream_options"} <= fields
