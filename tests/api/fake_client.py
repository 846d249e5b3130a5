"""A scripted gateway: answers requests with prepared tokens, and remembers how each request ended."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from actors.client import ClientEvent, GenerateRequest
from actors.messages import Completed, Delta, ErrorInfo, Failed, FinishReason, Status, TokenRecord
from actors.stage_clock import StageTimes
from runtime.text_stream import TextStream
from runtime.tokens import Tokenizer

Script = Callable[[GenerateRequest], AsyncIterator[ClientEvent]]


class FakeClient:
    """Plays `script` for every request; by default each choice answers with `texts[choice]`."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str] = ("The answer is 95.",)) -> None:
        self.tokenizer = tokenizer
        self.texts = texts
        self.script: Script = self.answer
        self.requests: list[GenerateRequest] = []
        self.ended: dict[str, str] = {}
        self.on_begin: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None
        self._changed = anyio.Event()

    @asynccontextmanager
    async def stream(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[ClientEvent]]:
        self.requests.append(request)
        self.on_begin()
        self._notify()
        ending = "aborted"

        async def events() -> AsyncIterator[ClientEvent]:
            nonlocal ending
            async for event in self.script(request):
                if not isinstance(event, Delta):
                    ending = type(event).__name__
                yield event

        try:
            yield events()
        finally:
            self.ended[request.request] = ending
            self.on_end()
            self._notify()

    async def status(self) -> Status:
        return Status(running=len(self.requests) - len(self.ended), draining=False, workers_down=())

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits for a state of this client; fails after five seconds."""
        with anyio.fail_after(5):
            while not condition():
                await self._changed.wait()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def answer(self, request: GenerateRequest) -> AsyncIterator[ClientEvent]:
        """The default script: all choices in turn, one token each."""
        choices = [self.deltas(request, choice) for choice in range(request.num_choices)]
        for step in range(max(map(len, choices))):
            for deltas in choices:
                if step < len(deltas):
                    yield deltas[step]
        yield completed(request, sum(len(delta.tokens) for deltas in choices for delta in deltas))

    def deltas(self, request: GenerateRequest, choice: int) -> list[Delta]:
        """One delta per token; the last one ends the choice."""
        tokens = self.tokenizer.encode(self.texts[choice % len(self.texts)])
        finish: FinishReason = "length" if len(tokens) > request.params.max_tokens else "stop"
        tokens = tokens[: request.params.max_tokens]
        stream = TextStream(self.tokenizer, request.text)
        match: str | int | None
        deltas = []
        for position, token in enumerate(tokens):
            ends = token in request.params.stop_token_ids
            text, match = (stream.end(token), token) if ends else stream.push(token)
            last = match is not None or position == len(tokens) - 1
            deltas.append(
                Delta(
                    request=request.request,
                    choice=choice,
                    text=text + (stream.finish() if last and not ends else ""),
                    tokens=(record(token, request.params.logprobs),),
                    finish=("stop" if match is not None else finish) if last else None,
                    stop_match=match,
                    prompt_logprobs=prompt_records(request) if position == 0 else (),
                )
            )
            if last:
                break
        return deltas


def record(token: int, logprobs: int | None) -> TokenRecord:
    """Made-up logprobs: the chosen token first, then the ids after it."""
    if logprobs is None:
        return TokenRecord(token)
    top = tuple((token + rank, -0.25 * (rank + 1)) for rank in range(logprobs))
    return TokenRecord(token, -0.25, top)


def prompt_records(request: GenerateRequest) -> tuple[TokenRecord, ...]:
    """Made-up logprobs of the prompt's tokens: the likeliest is the id after each, and some are among the likely."""
    count = request.params.prompt_logprobs
    if count is None:
        return ()
    return tuple(
        TokenRecord(token, -0.5 - position, tuple((max(token + 1 - rank, 0), 0.0 - rank) for rank in range(count)))
        for position, token in enumerate(request.prompt[1:])
    )


def completed(request: GenerateRequest, num_tokens: int) -> Completed:
    return Completed(
        request=request.request,
        prompt_tokens=len(request.prompt),
        completion_tokens=num_tokens,
        cached_tokens=min(4, len(request.prompt) - 1),
        timings=tuple(stage_times(request, choice) for choice in range(request.num_choices)),
    )


def stage_times(request: GenerateRequest, choice: int) -> StageTimes:
    """Made-up stage times, by which tests know the choice and the length of its prompt."""
    return StageTimes(
        queue_s=float(len(request.prompt)),
        prefill_s=float(choice),
        transfer_s=0.125,
        handoff_s=0.25,
        decode_s=0.5,
        attempts=1 + choice,
        prefill_worker="prefill.0",
        decode_worker=f"decode.{choice}" if choice else None,
    )


def failed(request: GenerateRequest, status: int = 429, retry_after_s: int | None = 7) -> Failed:
    error = ErrorInfo(status=status, message="the queue is full", code="queue_full", retry_after_s=retry_after_s)
    return Failed(request=request.request, error=error)


async def nothing(request: GenerateRequest) -> AsyncIterator[ClientEvent]:
    """A request that stays queued for ever."""
    await anyio.sleep_forever()
    yield failed(request)
