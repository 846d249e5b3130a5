"""What the two endpoints' answers have in common: envelope, usage, and one choice as it grows.

An endpoint adds how a choice looks, whole and as a chunk. An `Answer` belongs to one job and is fed its
deltas in order; choices are numbered prompt by prompt. What a client asked to see of a prompt stands in the answer
once, or in every choice where `prompts_in_choices` says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from actors.messages import Delta, FinishReason, TokenRecord
from api.logprobs import TokenNames, prompt_logprobs
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
    prompts_in_choices = False

    def __init__(self, job: Job, model: ServedModel) -> None:
        self.job = job
        self.model = model
        self.names = TokenNames(model.tokenizer, job.tokens_as_ids)
        self._prompt_records: dict[int, tuple[TokenRecord, ...]] = {}
        self._any_chunk = False
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

    def prompt_of(self, index: int) -> int:
        """The number of the prompt that a choice answers."""
        return index // self.job.num_choices

    def add(self, prompt: int, delta: Delta) -> None:
        """Takes a delta for the whole answer."""
        self._choices[self.index(prompt, delta.choice)].add(self._take(prompt, delta))

    def body(self, usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        choices = [self.whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        body = {**self._envelope(self.whole_object), "choices": choices, "usage": self._usage(usage)}
        return body | ({} if self.prompts_in_choices else self.prompt_fields(0)) | self._timing(usage)

    def chunks(self, prompt: int, delta: Delta) -> list[dict[str, Any]]:
        """The stream's chunks for a delta."""
        delta = self._take(prompt, delta)
        self._num_tokens += len(delta.tokens)
        choices = self.choice_chunks(self.index(prompt, delta.choice), delta)
        chunks = [self._chunk([choice], self._running_usage()) for choice in choices]
        if not (self._any_chunk or self.prompts_in_choices):
            chunks[0] |= self.prompt_fields(0)
        self._any_chunk = True
        return chunks

    def last_chunks(self, usage: Usage) -> list[dict[str, Any]]:
        """The stream's last chunk, for clients that asked for usage or stage times; none for others."""
        if not (self.job.include_usage or self.job.include_timing):
            return []
        return [self._chunk([], self._usage(usage)) | self._timing(usage)]

    def usage_details(self) -> dict[str, Any]:
        """What the endpoint adds to the usage, about the tokens so far."""
        return {}

    def stop_fields(self, stop_match: str | int | None) -> dict[str, Any]:
        """What has stopped a choice, as vLLM tells it (the model's own end of text is no reason) and as SGLang does."""
        own = stop_match in self.model.eos_token_ids
        return {"stop_reason": None if own else stop_match, "matched_stop": stop_match}

    def token_fields(self, tokens: Sequence[TokenRecord]) -> dict[str, Any]:
        """The ids of a choice's tokens, for a client that asked for them."""
        return {"token_ids": [record.token for record in tokens]} if self.job.return_token_ids else {}

    def prompt_fields(self, prompt: int) -> dict[str, Any]:
        """A prompt's ids and logprobs, for a client that asked for them; there once its first delta has come."""
        fields: dict[str, Any] = {}
        if self.job.prompt_logprobs is not None:
            records = self.prompt_records(prompt)
            fields["prompt_logprobs"] = prompt_logprobs(self.model.tokenizer, records, self.job.prompt_logprobs)
        if self.job.return_token_ids:
            fields["prompt_token_ids"] = list(self.job.requests[prompt].prompt)
        return fields

    def prompt_records(self, prompt: int) -> tuple[TokenRecord, ...]:
        """The logprobs of a prompt's tokens but the first."""
        return self._prompt_records[prompt]

    def _take(self, prompt: int, delta: Delta) -> Delta:
        """The delta as far as the client sees it; keeps what it tells of the prompt."""
        if delta.prompt_logprobs or prompt not in self._prompt_records:
            self._prompt_records[prompt] = delta.prompt_logprobs
        if not self.job.drop_tokens:
            return delta
        finish: FinishReason | None = "length" if delta.finish is not None else None
        return msgspec.structs.replace(delta, text="", tokens=(), finish=finish, stop_match=None)

    def _usage(self, usage: Usage) -> dict[str, Any]:
        shown = msgspec.structs.replace(usage, completion_tokens=0) if self.job.drop_tokens else usage
        return usage_body(shown) | self.usage_details()

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
