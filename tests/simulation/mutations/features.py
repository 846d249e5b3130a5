"""Planted bugs in constraints, in logprobs of prompts, in priorities and in deadlines."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from actors import landing
from actors.constraint_calls import ConstraintCalls
from actors.constraint_work import ConstraintWork
from actors.gateway import GatewayActor
from actors.ledger import RequestRecord
from actors.messages import SampledToken
from actors.prefill import PrefillJob
from actors.turn_planner import TurnPlanner
from actors.waiting import WaitingGroups
from actors.worker import WorkerActor
from actors.worker_state import WorkerState
from runtime.prefix_cache import chain_of
from tests.simulation.mutations.planted import Planted


def mask_is_of_the_step_before(patch: pytest.MonkeyPatch) -> None:
    """A step is sampled with the masks that were made before the last tokens were known."""
    masks = ConstraintCalls.masks

    async def mutant(self: ConstraintCalls, ctx: Any, constraints: Sequence[Any]) -> list[Any]:
        found = await masks(self, ctx, constraints)
        before = [getattr(constraint, "before", mask) for constraint, mask in zip(constraints, found, strict=True)]
        for constraint, mask in zip(constraints, found, strict=True):
            constraint.before = mask
        return before

    patch.setattr(ConstraintCalls, "masks", mutant)


def constraint_is_not_replayed(patch: pytest.MonkeyPatch) -> None:
    """A constraint that begins again knows nothing but the last of the accepted tokens."""
    begin = ConstraintCalls.begin

    async def mutant(self: ConstraintCalls, ctx: Any, params: Any, output: tuple[int, ...], choices: Any) -> Any:
        return await begin(self, ctx, params, output[-1:], choices)

    patch.setattr(ConstraintCalls, "begin", mutant)


def choices_share_a_constraint(patch: pytest.MonkeyPatch) -> None:
    """All choices of a group tell their tokens to the same one."""
    begin = ConstraintCalls.begin

    async def mutant(self: ConstraintCalls, ctx: Any, params: Any, output: Any, choices: Sequence[int]) -> Any:
        bound = await begin(self, ctx, params, output, choices)
        if hasattr(bound, "constraints"):
            bound.constraints.update(dict.fromkeys(choices, bound.constraints[choices[0]]))
        return bound

    patch.setattr(ConstraintCalls, "begin", mutant)


def deferred_sample_is_skipped(patch: pytest.MonkeyPatch) -> None:
    """A step that waits for its masks is never sampled."""

    async def mutant(self: WorkerActor, ctx: Any, flight: Any) -> Any:
        return msgspec.structs.replace(flight, deferred=())

    patch.setattr(WorkerActor, "_sample", mutant)


def constrained_rows_are_not_deferred(patch: pytest.MonkeyPatch) -> None:
    """They are sampled with the mask that their row began with."""
    plan = TurnPlanner.plan

    def mutant(self: TurnPlanner, inserts: Any, fence: int) -> Any:
        turn, preempted = plan(self, inserts, fence)
        if turn is not None and turn.step is not None:
            turn.step = msgspec.structs.replace(turn.step, deferred=False)
            turn.deferred = ()
        return turn, preempted

    patch.setattr(TurnPlanner, "plan", mutant)


def complete_constraint_goes_on(patch: pytest.MonkeyPatch) -> None:
    """A choice is not ended where nothing can follow."""
    advance = ConstraintWork.advance

    async def mutant(self: ConstraintWork, ctx: Any, slots: Any, sampled: Any) -> Any:
        outcomes = await advance(self, ctx, slots, sampled)
        return {key: outcome for key, outcome in outcomes.items() if not isinstance(outcome, bool)}

    patch.setattr(ConstraintWork, "advance", mutant)


def failed_constraint_is_kept(patch: pytest.MonkeyPatch) -> None:
    """The worker gives up a choice whose constraint fails and tells nobody why."""

    def mutant(self: WorkerState, ctx: Any, key: Any, choices: Any, index: int, error: Any) -> None:
        self.prefill.cancel(key, choices, self.next_fence)
        self.decode.cancel(key, choices, self.next_fence)
        self.give_up(ctx, key, choices, error.message)

    patch.setattr(WorkerState, "reject", mutant)


def scores_come_with_every_token(patch: pytest.MonkeyPatch) -> None:
    """Logprobs of the prompt are told again and again."""
    deliver = GatewayActor._deliver

    def mutant(self: GatewayActor, ctx: Any, record: Any, choice: Any, sampled: SampledToken) -> None:
        deliver(self, ctx, record, choice, SampledToken(sampled.key, 0, sampled.record, sampled.finish))

    patch.setattr(GatewayActor, "_deliver", mutant)


def scores_of_early_chunks_are_lost(patch: pytest.MonkeyPatch) -> None:
    """Only the last chunk of a prompt has logprobs."""
    land = landing._land_scores

    def mutant(flight: Any, scores: Any) -> Any:
        for chunk in flight.scored:
            chunk.job.scores.clear()
        return land(flight, scores)

    patch.setattr(landing, "_land_scores", mutant)


def scores_are_lost_with_their_attempt(patch: pytest.MonkeyPatch) -> None:
    """Only a first attempt asks for the logprobs of its prompt, whatever became of it."""
    score = PrefillJob.score.fget  # type: ignore[attr-defined]

    def mutant(self: PrefillJob) -> int | None:
        return score(self) if self.key.attempt == 1 else None  # type: ignore[no-any-return]

    patch.setattr(PrefillJob, "score", property(mutant))


def scored_prompts_use_the_cache(patch: pytest.MonkeyPatch) -> None:
    """A prompt that is to get logprobs skips what is cached of it."""

    def mutant(self: WaitingGroups, admit: Any, page_size: int) -> Any:
        return chain_of(admit.tokens, page_size, admit.cache_salt) if self._prefix_cache else None

    patch.setattr(WaitingGroups, "prefix", mutant)


def deadlines_end_with_the_first_token(patch: pytest.MonkeyPatch) -> None:
    """What has begun may last as long as it likes."""
    deadline = RequestRecord.deadline.fget  # type: ignore[attr-defined]

    def mutant(self: RequestRecord) -> float:
        if not self.started:
            return deadline(self)  # type: ignore[no-any-return]
        return self.progressed + self.submit.progress_timeout_s

    patch.setattr(RequestRecord, "deadline", property(mutant))


FEATURES = (
    Planted(mask_is_of_the_step_before, found_at=5),
    Planted(constraint_is_not_replayed, found_at=52),
    Planted(choices_share_a_constraint, found_at=5),
    Planted(deferred_sample_is_skipped, found_at=5),
    Planted(constrained_rows_are_not_deferred, found_at=5),
    Planted(complete_constraint_goes_on, found_at=5),
    Planted(failed_constraint_is_kept, found_at=15),
    Planted(scores_come_with_every_token, found_at=5),
    Planted(scores_of_early_chunks_are_lost, found_at=5),
    Planted(scores_are_lost_with_their_attempt, found_at=193),
    Planted(scored_prompts_use_the_cache, found_at=6),
    Planted(deadlines_end_with_the_first_token, found_at=62),
)
