"""What the two endpoints' answers have in common: envelope, usage, and one choice as it grows.

An endpoint adds how a choice looks, whole and as a chunk. An `Answer` belongs to one job and is fed its
deltas in order; choices are numbered prompt by prompt.
"""

from abc import ABC, abstractmethod
from typing import Any

from actors.messages import Delta, FinishReason, TokenRecord
from api.model import ServedModel
from api.run import Usage
from api.timing import TIMING_KEY, timing_body
from api.validate import Job


class Choice:
    """One choice of a whole answer."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.tokens: list[TokenRecord] = []
        self.finish: FinishReason | None = None
        self.stop_match: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Takes the next delta."""
        self.texts.append(delta.text)
        self.tokens.extend(delta.tokens)
        self.finish = delta.finish
        self.stop_match = delta.stop_match


class Answer(ABC):
    """An answer being assembled. Either whole, by `add` and `body`, or in chunks, by `chunks` and `last_chunks`."""

    whole_object: str
    chunk_object: str

    def __init__(self, job: Job, model: ServedModel) -> None:
        self.job = job
        self.model = model
        self._choices = [Choice() for _ in range(job.num_choices * len(job.requests))]
        self._num_tokens = 0
        self._num_prompt_tokens = sum(len(request.prompt) for request in job.requests)

    @abstractmethod
    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice."""

    @abstractmethod
    def choice_chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks by which a delta of this choice reaches the client, to be sent together."""

    def index(self, prompt: int, choice: int) -> int:
        """The choice's number in the answer."""
        return prompt * self.job.num_choices + choice

    def add(self, prompt: int, delta: Delta) -> None:
        """Takes a delta for the whole answer."""
        self._choices[self.index(prompt, delta.choice)].add(delta)

    def body(self, usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        choices = [self.whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        body = {**self._envelope(self.whole_object), "choices": choices, "usage": self._usage(usage)}
        return body | self._timing(usage)

    def chunks(self, prompt: int, delta: Delta) -> list[dict[str, Any]]:
        """The stream's chunks for a delta."""
        self._num_tokens += len(delta.tokens)
        chunks = self.choice_chunks(self.index(prompt, delta.choice), delta)
        return [self._chunk([choice], self._running_usage()) for choice in chunks]

    def last_chunks(self, usage: Usage) -> list[dict[str, Any]]:
        """The stream's last chunk, for clients that asked for usage or stage times; none for others."""
        if not (self.job.include_usage or self.job.include_timing):
            return []
        return [self._chunk([], self._usage(usage)) | self._timing(usage)]

    def usage_details(self) -> dict[str, Any]:
        """What the endpoint adds to the usage, about the tokens so far."""
        return {}

    def stop_reason(self, stop_match: str | int | None) -> str | int | None:
        """The stop string or id that the client asked for; the model's own end of text is no reason."""
        return None if stop_match in self.model.eos_token_ids else stop_match

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return usage_body(usage) | self.usage_details()

    def _timing(self, usage: Usage) -> dict[str, Any]:
        return {TIMING_KEY: timing_body(usage.timings)} if self.job.include_timing else {}

    def _running_usage(self) -> dict[str, Any] | None:
        if not self.job.continuous_usage:
            return None
        return _counts(self._num_prompt_tokens, self._num_tokens) | self.usage_details()

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> dict[str, Any]:
        chunk = {**self._envelope(self.chunk_object), "choices": choices}
        if self.job.include_usage:
            chunk["usage"] = usage
        return chunk

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.job.id,
            "object": kind,
            "created": self.job.created,
            "model": self.job.model,
            "system_fingerprint": self.model.system_fingerprint,
        }


def _counts(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Usage as clients read it."""
    return {
        **_counts(usage.prompt_tokens, usage.completion_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
