"""How every kind of broken answer ends: in a record with its reason, within the limits."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from loadtest.client import Client, prepare
from loadtest.connection import parse_address
from loadtest.driver import MAX_REFUSED, Phase, Plan
from loadtest.errors import UsageError
from loadtest.record import Record, spread_tokens
from loadtest.request import Request
from loadtest.sse import EventBuffer, error_message, short_text
from tests.loadtest.loads import drive, requests, send, target
from tests.loadtest.stub import (
    DONE,
    END,
    Body,
    Cut,
    Raw,
    Step,
    Stub,
    Wait,
    answer,
    event,
    head,
    plain,
    text_chunk,
    usage_chunk,
)
from tests.loadtest.virtual import VirtualLoop, run_virtual


def ask(steps: Sequence[Step], **options: object) -> Record:
    records, _ = send(lambda number, body: steps, requests(1), Plan(), target(**options))
    return records[0]


BROKEN: dict[str, tuple[Sequence[Step], str]] = {
    "500": (plain(500, {"error": {"message": "boom"}}), "HTTP 500: boom"),
    "404": (plain(404, {"detail": "Not Found"}), "HTTP 404: Not Found"),
    "text": (plain(503, b"<h1>try\nlater</h1>", "text/html"), "HTTP 503: <h1>try later</h1>"),
    "no stream": (plain(200, {"choices": []}), "the answer is no stream but 'application/json'"),
    "no json": ([head(), event(b'{"choices": [')], 'malformed chunk: {"choices": ['),
    "wrong type": ([head(), event({"choices": 5})], 'malformed chunk: {"choices": 5}'),
    "error chunk": ([head(), text_chunk(), event({"error": {"message": "lost"}})], "error in the stream: lost"),
    "cut": ([head(), text_chunk(), Wait(1), Cut()], "the server closed the connection in mid-stream"),
    "cut before": ([Wait(1), Cut()], "the server closed the connection before the answer"),
    "no http": ([Raw(b"SSH-2.0-OpenSSH\r\n\r\n")], "not HTTP/1.1: illegal status line"),
    "no end": ([head(), text_chunk(), END], "the stream ended without a finish reason or [DONE]"),
    "no token": ([head(), DONE, END], "the stream ended without a token"),
    "silence": ([Wait(50)], "stalled: nothing came for 10 s after it was sent"),
    "half": ([head(), text_chunk(), Wait(50)], "stalled: nothing came for 10 s in mid-stream"),
    "endless": ([head(), *[Wait(1), text_chunk()] * 50], "not complete 30 s after it was sent"),
}


@pytest.mark.parametrize(("steps", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_answer_is_a_record_with_its_reason(steps: Sequence[Step], reason: str) -> None:
    record = ask(steps)
    assert record.outcome == "failed"
    assert (record.error or "").startswith(reason)
    assert record.ended_s <= 30.0 + 1e-6


def test_a_server_that_is_gone_ends_the_run() -> None:
    phase = run_virtual(drive(requests(50), Plan(arrivals_s=tuple(map(float, range(50)))), target()), None)
    assert len(phase.records) == MAX_REFUSED
    assert phase.stopped == "the server is gone: cannot connect: Connection refused"


def test_a_server_that_is_starting_again_is_waited_for() -> None:
    async def restarted() -> Phase:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.call_later(4.0, setattr, loop, "serve", Stub(lambda number, body: answer(body, 0.1, [0.1])))
        return await drive(requests(200), Plan(arrivals_s=tuple(index / 20 for index in range(200))), target())

    phase = run_virtual(restarted(), None)
    assert phase.stopped is None
    assert Counter(record.outcome for record in phase.records) == {"failed": 80, "ok": 120}


def test_a_stop_ends_what_is_on_its_way_and_keeps_it() -> None:
    async def stopped() -> list[Record]:
        plan = Plan(arrivals_s=tuple(index / 2 for index in range(20)))
        to = target()
        phase = Phase(Client(to.address, to.limits), [prepare(to, request) for request in requests(20)], plan)
        asyncio.get_running_loop().call_later(2.15, phase.stop, "Ctrl-C")
        return await phase.run()

    records = run_virtual(stopped(), Stub(lambda number, body: answer(body, 0.3, [0.1] * 9)))
    assert [record.outcome for record in records] == ["ok"] * 2 + ["interrupted"] * 3
    assert records[3].chunk_times_s == pytest.approx([1.8, 1.9, 2.0, 2.1], abs=1e-6)


def test_connections_are_used_again_and_a_stale_one_is_nobodys_failure() -> None:
    def script(number: int, body: Body) -> Sequence[Step]:
        steps = answer(body, 0.1, [0.1])
        return [*steps, Wait(0.5), Cut()] if number == 1 else steps

    records, stub = send(script, requests(4, 2), Plan(arrivals_s=(0.0, 1.0, 2.0, 3.0)))
    assert [record.outcome for record in records] == ["ok"] * 4
    assert (stub.num_connections, [record.connected_s is None for record in records]) == (2, [False, True, False, True])


def test_a_request_over_a_connection_that_dies_at_once_is_sent_again() -> None:
    def script(number: int, body: Body) -> Sequence[Step]:
        return [Cut()] if number == 1 else answer(body, 0.1, [0.1])

    records, stub = send(script, requests(2, 2), Plan(arrivals_s=(0.0, 1.0)))
    assert [record.outcome for record in records] == ["ok"] * 2
    assert len(stub.bodies) == 3


def test_a_missing_end_after_done_is_forgiven() -> None:
    record = ask([head(), text_chunk(finish="stop"), DONE, Wait(50)])
    assert (record.outcome, record.usage_tokens, record.counted_by) == ("ok", None, "chunks")
    assert ask([head(), text_chunk(finish="stop"), DONE, Cut()]).outcome == "ok"


def test_an_end_token_without_text_is_counted() -> None:
    record = ask([head(), text_chunk(), Wait(1), text_chunk("", "stop"), usage_chunk({}, 2), DONE, END])
    assert (record.chunk_tokens, record.e2e_s) == ((1, 1), pytest.approx(1.0))
    alone = ask([head(), text_chunk("", "stop"), usage_chunk({}, 1), DONE, END])
    assert (alone.outcome, alone.chunk_tokens) == ("ok", (1,))


def test_what_is_sent() -> None:
    records, stub = send(
        lambda number, body: answer(body, 0.1, []), requests(1), Plan(), target(extra_body={"top_p": 0.5})
    )
    assert stub.bodies == [
        {
            "model": "stub",
            "prompt": [11, 12, 13],
            "max_tokens": 16,
            "temperature": 0.0,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
            "top_p": 0.5,
        }
    ]
    assert (records[0].wanted_output_tokens, records[0].output_tokens) == (16, 1)
    quiet = prepare(target(usage="none", api="chat", ignore_eos=False, api_key="k"), Request(prompt="hi", max_tokens=1))
    assert b"stream_options" not in quiet.body
    assert b"ignore_eos" not in quiet.body
    assert b'"messages":[{"role":"user","content":"hi"}]' in quiet.body
    assert (b"authorization", b"Bearer k") in quiet.head.headers
    assert quiet.head.target == b"/v1/chat/completions"


def test_events_are_put_together_from_any_pieces() -> None:
    text = b': ping\n\ndata: {"a": 1}\r\n\r\nevent: x\ndata:{"b": 2}\n\ndata: [DONE]\n\n'
    for size in (1, 2, 7, len(text)):
        buffer = EventBuffer()
        found = [payload for at in range(0, len(text), size) for payload in buffer.feed(text[at : at + size])]
        assert found == [b'{"a": 1}', b'{"b": 2}', b"[DONE]"]


def test_messages_fit_a_line() -> None:
    assert error_message(b'{"error": "flat"}') == "flat"
    assert error_message(b'{"message": "outer"}') == "outer"
    assert error_message(b"[1, 2]") == "[1, 2]"
    assert short_text(b"a\n\x1b[31mb") == "a \N{REPLACEMENT CHARACTER}[31mb"
    assert len(short_text(b"x" * 5000)) == 200


def test_tokens_are_spread_evenly() -> None:
    assert spread_tokens(20, 5) == (4, 4, 4, 4, 4)
    assert spread_tokens(7, 3) == (2, 2, 3)
    assert spread_tokens(2, 4) == (0, 1, 0, 1)


@pytest.mark.parametrize("url", ["http://h:8", "http://h:8/", "http://h:8/v1", "http://h:8/v1/"])
def test_addresses(url: str) -> None:
    assert parse_address(url).path == ""
    assert parse_address(url).authority == "h:8"
    assert parse_address("https://h/api/v1").port == 443
    assert parse_address("http://[::1]:8/a/v1").path == "/a"


@pytest.mark.parametrize("url", ["", "h:8", "ftp://h", "http://", "http://h:x", "http://h/?a=1", "http://[::1"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="allowed: a server's address"):
        parse_address(url)
