"""`/v1/completions`: prompts as text or tokens, deltas become plain text."""

from collections.abc import Sequence
from typing import Any

from actors.messages import Delta, TokenRecord
from api.answer import Answer, Choice
from api.checks import whole_in_range
from api.logprobs import LegacyLogprobs
from api.model import ApiSettings, ServedModel
from api.schema import CompletionBody, decode_body
from api.validate import Job, MaxTokens, Prompt, check_model, encode_prompt, make_job
from runtime.errors import RequestError
from runtime.sampling_params import MAX_LOGPROBS

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


def prepare_completion(data: bytes, model: ServedModel, settings: ApiSettings) -> Job:
    """From a request's bytes to a job. Runs in a worker thread."""
    body = decode_body(data, CompletionBody)
    check_model(body.model, model)
    logprobs = body.logprobs
    if logprobs is not None:
        whole_in_range("logprobs", logprobs, 0, MAX_LOGPROBS, 0)
    prompts = _prompts(body.prompt, model)
    max_tokens = MaxTokens(param="max_tokens", asked=body.max_tokens, default=DEFAULT_MAX_TOKENS)
    return make_job("cmpl", body, prompts, max_tokens, logprobs, model, settings)


def _prompts(prompt: str | list[str | int | list[int]] | None, model: ServedModel) -> list[Prompt]:
    """One prompt per text or list of token ids; a plain list of ids is a single prompt."""
    if not prompt:
        raise RequestError("prompt: must not be empty", param="prompt")
    if isinstance(prompt, str):
        return [_prompt("prompt", prompt, model)]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [Prompt("prompt", ids)]
    if ids or len({type(item) for item in prompt}) > 1:
        raise RequestError("prompt: texts, token ids and lists of token ids cannot be mixed", param="prompt")
    if len(prompt) > model.max_answers:
        raise RequestError(
            f"prompt: at most {model.max_answers} prompts in one request, got {len(prompt)}", param="prompt"
        )
    return [_prompt(f"prompt[{index}]", item, model) for index, item in enumerate(prompt)]


def _prompt(param: str, item: str | int | list[int], model: ServedModel) -> Prompt:
    if isinstance(item, str):
        return encode_prompt(param, item, model, add_special_tokens=True)
    return Prompt(param, item if isinstance(item, list) else [item])


class CompletionAnswer(Answer):
    """Answers in the completions shape."""

    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, job: Job, model: ServedModel) -> None:
        super().__init__(job, model)
        self._logprobs: dict[int, LegacyLogprobs] = {}

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice with its text."""
        return {
            "index": index,
            "text": "".join(choice.texts),
            "logprobs": self._render_logprobs(index, choice.tokens),
            "finish_reason": choice.finish,
            "stop_reason": self.stop_reason(choice.stop_match),
        }

    def choice_chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The delta's chunk."""
        chunk: dict[str, Any] = {
            "index": index,
            "text": delta.text,
            "logprobs": self._render_logprobs(index, delta.tokens),
            "finish_reason": delta.finish,
        }
        if delta.finish is not None:
            chunk["stop_reason"] = self.stop_reason(delta.stop_match)
        return [chunk]

    def _render_logprobs(self, index: int, tokens: Sequence[TokenRecord]) -> dict[str, Any] | None:
        if self.job.logprobs is None:
            return None
        if index not in self._logprobs:
            self._logprobs[index] = LegacyLogprobs(self.model.tokenizer)
        return self._logprobs[index].render(tokens)
