"""What a worker does with a step that the device has done: reads its tokens and logprobs, and tells them.

Out: `TokensSampled` to the gateway, with the logprobs of the prompts that it ends; `Released` to the scheduler for
sequences that end; `StartDecode` to the decode worker of a prompt that is prefilled.
"""

from actors.context import Context
from actors.decode import finish_of
from actors.messages import (
    SCHEDULER,
    ErrorInfo,
    FinishReason,
    Key,
    Released,
    SampledToken,
    TokenRecord,
    TokensSampled,
)
from actors.slice_calls import SliceCalls
from actors.telemetry import StepMeter
from actors.turn import Flight, Slot
from actors.worker_state import WorkerState
from runtime.engine import Sampled, Scored


class Landing:
    """See the module."""

    def __init__(self, state: WorkerState, slice_calls: SliceCalls, meter: StepMeter) -> None:
        self._state = state
        self._slice = slice_calls
        self._meter = meter

    async def land(self, ctx: Context, flight: Flight) -> None:
        """Reads a step: tokens to the gateway, finished sequences out, prefilled groups on to their decode worker."""
        state = self._state
        sampled, scores = await self._slice.call(ctx, ("fetch", flight.size), lambda: self._fetch(flight))
        self._meter.read(ctx.now())
        state.pool.retire(flight.retires)
        outcomes = await self._state.constraints.advance(ctx, flight.slots, sampled)
        tokens = list[SampledToken]()
        starts: dict[Key, list[tuple[int, int]]] = {job.key: [] for job in flight.finished_jobs}
        for slot, result in zip(flight.slots, sampled, strict=True):
            token = self._land_token(ctx, slot, result, outcomes.get(slot.key, False))
            if token is None:
                continue
            tokens.append(token)
            if slot.job is not None and token.finish is None:
                starts[slot.job.key].append((slot.key.choice, result.token))
        self._tell_tokens(ctx, flight, tuple(tokens), _land_scores(flight, scores))
        for job in flight.finished_jobs:
            state.deliveries.hand_over(ctx, job, tuple(starts[job.key]))
            if not starts[job.key] and job.key in state.prefill.jobs:
                state.prefill.end(job, state.next_fence)  # nobody wants what is still to be sent

    def _fetch(self, flight: Flight) -> tuple[tuple[Sampled, ...], tuple[tuple[Scored, ...], ...]]:
        """On the slice's thread."""
        sampled = self._state.engine.fetch(flight.handle)
        return sampled, self._state.engine.fetch_scores(flight.scores) if flight.scored else ()

    def _land_token(self, ctx: Context, slot: Slot, result: Sampled, outcome: bool | ErrorInfo) -> SampledToken | None:
        """The token for the gateway; None for the overrun of a sequence that has ended in the meantime.

        `outcome` is what the constraint says to the token: whether the choice is complete with it, or why it fails.
        """
        state = self._state
        if slot.job is not None:
            if not state.tombstones.alive(slot.key, (slot.key.choice,)):
                return None
            group, params = slot.job.key, slot.job.start.params
        else:
            sequence = state.decode.sequences.get(slot.key)
            if sequence is None:
                return None
            group, params = sequence.group, sequence.params
        if isinstance(outcome, ErrorInfo):
            state.reject(ctx, group, (slot.key.choice,), slot.index, outcome)
            return None
        finish = "stop" if outcome else finish_of(params, result.token, slot.index)
        if slot.job is None:
            self._note_token(ctx, slot, result.token, finish)
        return SampledToken(slot.key, slot.index, TokenRecord(result.token, result.logprob, result.top), finish)

    def _note_token(self, ctx: Context, slot: Slot, token: int, finish: FinishReason | None) -> None:
        """A sequence has got another token, and ends with it if it is its last."""
        state = self._state
        sequence = state.decode.sequences[slot.key]
        sequence.tokens.append(token)
        if finish is not None:
            state.decode.end(sequence, state.turn)
            ctx.post(SCHEDULER, Released(worker=state.address, key=sequence.group, choices=(slot.key.choice,)))

    def _tell_tokens(
        self,
        ctx: Context,
        flight: Flight,
        tokens: tuple[SampledToken, ...],
        scores: tuple[tuple[Key, tuple[TokenRecord, ...]], ...],
    ) -> None:
        """Logprobs of a prompt go with its first tokens, so that both are accepted or neither."""
        if tokens:
            told = TokensSampled(
                worker=self._state.address, tokens=tokens, cached=flight.cached, prompt_logprobs=scores
            )
            self._state.tell_gateway(ctx, told)


def _land_scores(
    flight: Flight, scores: tuple[tuple[Scored, ...], ...]
) -> tuple[tuple[Key, tuple[TokenRecord, ...]], ...]:
    """Keeps each chunk's logprobs with its job; returns those of prompts that the step has ended."""
    for chunk, found in zip(flight.scored, scores, strict=True):
        chunk.job.scores += [TokenRecord(score.token, score.logprob, score.top) for score in found]
    return tuple((chunk.job.key, tuple(chunk.job.scores)) for chunk in flight.scored if chunk.last)
