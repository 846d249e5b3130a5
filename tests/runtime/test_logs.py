"""How log lines look."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import uvicorn
from structlog.contextvars import bound_contextvars

from runtime.logs import configure_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(form: str, level: str = "info") -> list[str]:
    stream = io.StringIO()
    configure_logging(level, form, stream)
    logger = logging.getLogger("uvicorn.error")
    with bound_contextvars(request_id="r-1"):
        logger.info("took %d s", 3, extra={"status": 200, "route": "/v1 x"})
        logger.debug("unheard")
    try:
        secret = "swordfish"  # noqa: F841
        raise ValueError("it broke")
    except ValueError:
        logger.exception("failed")
    return stream.getvalue().splitlines()


def test_json_is_one_object_a_line_with_what_was_bound_and_brought() -> None:
    told, failed = (json.loads(line) for line in written("json"))
    assert told.pop("timestamp").endswith("Z")
    assert told == {
        "level": "info", "logger": "uvicorn.error", "event": "took 3 s", "request_id": "r-1", "status": 200,
        "route": "/v1 x",
    }  # fmt: skip
    assert "ValueError: it broke" in failed["exception"]
    assert "request_id" not in failed
    assert "swordfish" not in failed["exception"].replace('secret = "swordfish"', "")


def test_text_is_one_line_and_a_stack_trace_behind_it() -> None:
    told, failed, *trace = written("text")
    assert told.partition(" ")[2] == "INFO uvicorn.error: took 3 s request_id=r-1 route='/v1 x' status=200"
    assert failed.partition(" ")[2] == "ERROR uvicorn.error: failed"
    assert trace[-1] == "ValueError: it broke"


def test_what_is_less_severe_is_not_written() -> None:
    assert len([line for line in written("json", "error") if line]) == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_library_cannot_keep_its_lines_to_itself(form: str) -> None:
    """As a server of the same process does that set up uvicorn's loggers in uvicorn's way."""
    names = ("uvicorn", "uvicorn.error", "uvicorn.access")
    before = {name: logging.getLogger(name).level for name in names}
    uvicorn.Config(lambda: None)
    own = logging.getLogger("uvicorn").handlers
    try:
        assert own
        assert not logging.getLogger("uvicorn").propagate
        assert len([line for line in written(form) if "took 3 s" in line]) == 1
        assert not own
        assert not [line for line in written(form, "error") if "took 3 s" in line]
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def test_a_value_cannot_begin_a_line() -> None:
    stream = io.StringIO()
    configure_logging("info", "text", stream)
    logging.getLogger("a").info("request", extra={"route": "x\n2026 ERROR forged"})
    assert len(stream.getvalue().splitlines()) == 1
