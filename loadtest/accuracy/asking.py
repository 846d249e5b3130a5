"""Asks a server problem after problem, so many at a time, and hands over every answer as it comes.

Answers are not streamed, as in the reference: nothing is timed here, and a connection is used once.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec

from loadtest.accuracy.answers import Answer, Settings
from loadtest.accuracy.problems import Problem
from loadtest.sse import error_message, short_text

DRAIN_S = 30.0
"""What answers that are on their way are given after a request failed."""

Question = tuple[int, Problem]
"""A repeat and a problem."""


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct, frozen=True):
    choices: tuple[_Choice, ...]
    usage: _Usage | None = None


class Failure(Exception):
    """Why a question has no answer, in a line."""


class Asking:
    """The state of it: what is open, what is on its way, and the first failure."""

    def __init__(
        self, settings: Settings, questions: Sequence[Question], keep: Callable[[Answer], None], api_key: str | None
    ) -> None:
        self._settings, self._open, self._keep = settings, deque(questions), keep
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.total, self.done, self.on_their_way, self.tokens = len(questions), 0, 0, 0
        self.failure: str | None = None

    async def run(self, batch: int, timeout_s: float) -> None:
        """Until every question has its answer, or one has failed: then nothing more is asked."""
        limits = httpx.Limits(max_connections=batch, max_keepalive_connections=0)
        timeout = httpx.Timeout(timeout_s, connect=10.0, pool=None)
        verify = httpx.create_ssl_context() if self._settings.url.startswith("https") else True
        async with httpx.AsyncClient(
            limits=limits, timeout=timeout, headers=self._headers, trust_env=False, verify=verify
        ) as client:
            tasks = {asyncio.create_task(self._work(client)) for _ in range(min(batch, self.total))}
            try:
                await self._wait(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, tasks: set[asyncio.Task[None]]) -> None:
        if not tasks:
            return
        done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while rest and self.failure is None:
            more, rest = await asyncio.wait(rest, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        if rest:
            more, _ = await asyncio.wait(rest, timeout=DRAIN_S)
            done |= more
        for task in done:
            task.result()

    async def _work(self, client: httpx.AsyncClient) -> None:
        while self._open and self.failure is None:
            repeat, problem = self._open.popleft()
            self.on_their_way += 1
            try:
                answer = await self._ask(client, repeat, problem)
            except Failure as failure:
                self.failure = self.failure or f"{problem.unique_id}: {failure}"
                return
            finally:
                self.on_their_way -= 1
            self._keep(answer)
            self.done += 1
            self.tokens += answer.completion_tokens or 0

    async def _ask(self, client: httpx.AsyncClient, repeat: int, problem: Problem) -> Answer:
        started = time.monotonic()
        try:
            response = await client.post(f"{self._settings.url}/v1/chat/completions", json=self._body(repeat, problem))
        except httpx.TimeoutException as error:
            raise Failure(f"no answer in time ({type(error).__name__})") from None
        except httpx.HTTPError as error:
            raise Failure(f"{self._settings.url}: {error or type(error).__name__}") from None
        choice, usage = _read(response)
        return Answer(
            repeat=repeat,
            unique_id=problem.unique_id,
            text=choice.message.content or "",
            finish_reason=choice.finish_reason,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            took_s=round(time.monotonic() - started, 3),
        )

    def _body(self, repeat: int, problem: Problem) -> dict[str, Any]:
        settings = self._settings
        return {
            "model": settings.model,
            "messages": [{"role": "user", "content": problem.question}],
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_tokens,
            "seed": settings.seed + repeat,
        }


def _read(response: httpx.Response) -> tuple[_Choice, _Usage]:
    if not response.is_success:
        raise Failure(f"HTTP {response.status_code}: {error_message(response.content)}")
    try:
        completion = msgspec.json.decode(response.content, type=_Completion)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Failure(f"malformed answer: {short_text(response.content, 80)}") from None
    if not completion.choices:
        raise Failure("the answer has no choices")
    return completion.choices[0], completion.usage or _Usage()
