"""`/v1/completions`: prompts as text or tokens, deltas become plain text."""

from collections.abc import Sequence
from typing import Any

from actors.messages import Delta, TokenRecord
from api.answer import Answer, Choice
from api.checks import whole_in_range
from api.legacy_logprobs import LegacyLogprobs, joined
from api.model import ApiSettings, ServedModel
from api.schema import CompletionBody, decode_body
from api.truncation import cut_tokens, resolve_cut
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
    max_tokens = MaxTokens(
        param="max_tokens", asked=body.max_tokens, default=DEFAULT_MAX_TOKENS, least=0 if body.echo else 1
    )
    prompts = _prompts(body, resolve_cut(body.truncate_prompt_tokens, body.max_tokens, model), model)
    return make_job("cmpl", body, prompts, max_tokens, logprobs, model, settings, echo=bool(body.echo))


def _prompts(body: CompletionBody, cut: int | None, model: ServedModel) -> list[Prompt]:
    """One prompt per text or list of token ids; a plain list of ids is a single prompt."""
    prompt, special = body.prompt, body.add_special_tokens is not False
    if not prompt:
        raise RequestError("prompt: must not be empty", param="prompt")
    if isinstance(prompt, str):
        return [_prompt("prompt", prompt, model, special, cut)]
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) == len(prompt):
        return [Prompt("prompt", cut_tokens(ids, cut))]
    if ids or len({type(item) for item in prompt}) > 1:
        raise RequestError("prompt: texts, token ids and lists of token ids cannot be mixed", param="prompt")
    if len(prompt) > model.max_answers:
        raise RequestError(
            f"prompt: at most {model.max_answers} prompts in one request, got {len(prompt)}", param="prompt"
        )
    return [_prompt(f"prompt[{index}]", item, model, special, cut) for index, item in enumerate(prompt)]


def _prompt(param: str, item: str | int | list[int], model: ServedModel, special: bool, cut: int | None) -> Prompt:
    if isinstance(item, str):
        return encode_prompt(param, item, model, add_special_tokens=special, cut=cut)
    return Prompt(param, cut_tokens(item if isinstance(item, list) else [item], cut))


class CompletionAnswer(Answer):
    """Answers in the completions shape."""

    whole_object = "text_completion"
    chunk_object = "text_completion"
    prompts_in_choices = True

    def __init__(self, job: Job, model: ServedModel) -> None:
        super().__init__(job, model)
        self._logprobs: dict[int, LegacyLogprobs] = {}
        self._begun: set[int] = set()

    def whole_choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A finished choice with its text, behind the prompt's if that is echoed."""
        return {
            "index": index,
            "text": self._echo(index) + "".join(choice.texts),
            "logprobs": self._whole_logprobs(index, choice.tokens),
            "finish_reason": choice.finish,
            **self.stop_fields(choice.stop_match),
            **self.token_fields(choice.tokens),
            **self.prompt_fields(self.prompt_of(index)),
        }

    def choice_chunks(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The delta's chunk; before a choice's first, the one that has the prompt if that is echoed."""
        chunks: list[dict[str, Any]] = []
        first = index not in self._begun
        self._begun.add(index)
        if first and self.job.echo is not None:
            logprobs = self._prompt_logprobs(index) if self.job.logprobs is not None else None
            chunks.append({"index": index, "text": self._echo(index), "logprobs": logprobs, "finish_reason": None})
        chunk = {
            "index": index,
            "text": delta.text,
            "logprobs": self._token_logprobs(index, delta.tokens) if self.job.logprobs is not None else None,
            "finish_reason": delta.finish,
            **self.token_fields(delta.tokens),
        }
        if delta.finish is not None:
            chunk |= self.stop_fields(delta.stop_match)
        chunks.append(chunk)
        if first:
            chunks[0] |= self.prompt_fields(self.prompt_of(index))
        return chunks

    def _echo(self, index: int) -> str:
        return "" if self.job.echo is None else self.job.echo[self.prompt_of(index)].text

    def _whole_logprobs(self, index: int, tokens: Sequence[TokenRecord]) -> dict[str, Any] | None:
        if self.job.logprobs is None:
            return None
        prompt = [self._prompt_logprobs(index)] if self.job.echo is not None else []
        return joined(*prompt, self._token_logprobs(index, tokens))

    def _prompt_logprobs(self, index: int) -> dict[str, Any]:
        prompt = self.prompt_of(index)
        assert self.job.echo is not None
        tokens, records = self.job.requests[prompt].prompt, self.prompt_records(prompt)
        return self._of_choice(index).render_prompt(tokens, records, self.job.echo[prompt])

    def _token_logprobs(self, index: int, tokens: Sequence[TokenRecord]) -> dict[str, Any]:
        return self._of_choice(index).render(tokens)

    def _of_choice(self, index: int) -> LegacyLogprobs:
        if index not in self._logprobs:
            assert self.job.logprobs is not None
            text = self.job.requests[self.prompt_of(index)].text
            self._logprobs[index] = LegacyLogprobs(self.names, self.job.logprobs, text)
        return self._logprobs[index]
