"""Planted bugs in what is done about lost messages, deaths and hangs."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from actors.context import ArrayTable
from actors.decode import DecodePhase, Lease
from actors.deliveries import Deliveries
from actors.gateway import GatewayActor
from actors.grants import Grants
from actors.ledger import ChoiceRecord
from actors.messages import Key, SampledToken
from actors.outbox import Outbox
from actors.reports import WorkerReports
from actors.scheduler import SchedulerActor
from actors.supervisor import WorkerSupervisor
from actors.tombstones import Recent
from actors.transfer import TransferActor
from actors.worker_commands import WorkerCommands
from actors.worker_state import WorkerState
from tests.simulation.mutations.planted import Planted

# --- reports


def heartbeats_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """The scheduler hears a worker's first report and no other."""
    worker_up = SchedulerActor._worker_up

    def mutant(self: SchedulerActor, ctx: Any, message: Any) -> None:
        if message.inventory.worker not in self.workers:
            worker_up(self, ctx, message)

    patch.setattr(SchedulerActor, "_worker_up", mutant)


def lost_grants_are_kept(patch: pytest.MonkeyPatch) -> None:
    """The scheduler believes in a grant that no worker bears out."""
    patch.setattr(Grants, "lost", lambda self, workers, now: [])


def reservations_are_asked_for_once(patch: pytest.MonkeyPatch) -> None:
    """A reservation that got no answer waits for one."""
    patch.setattr(Grants, "unanswered", lambda self, now, resend_s: [])


def cancels_are_never_repeated(patch: pytest.MonkeyPatch) -> None:
    """What a worker goes on to hold although it was cancelled is left there."""
    patch.setattr(Grants, "unwanted", lambda self, up: [])


def lost_admissions_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """The gateway believes that the scheduler has what it was sent."""
    patch.setattr(GatewayActor, "_compare", lambda self, ctx, report: None)


def unwanted_grants_are_never_aborted(patch: pytest.MonkeyPatch) -> None:
    """What a scheduler has taken over, and nobody wants any more, runs to its own end."""
    compare = GatewayActor._compare

    def mutant(self: GatewayActor, ctx: Any, report: Any) -> None:
        known = {key for record in self.ledger.requests.values() for key in record.open_groups()}
        held = tuple(group for group in report.held if group.key in known)
        compare(self, ctx, msgspec.structs.replace(report, held=held))

    patch.setattr(GatewayActor, "_compare", mutant)


def prefixes_are_never_told_again(patch: pytest.MonkeyPatch) -> None:
    """A lost change of the prefix cache stays lost."""
    patch.setattr(WorkerReports, "resend_prefixes", lambda self, ctx: None)


# --- epochs


def restart_keeps_the_old_prefixes(patch: pytest.MonkeyPatch) -> None:
    """What a worker had cached in one life it is believed to have in the next."""
    _restart_keeps(patch, "prefixes")


def restart_keeps_the_old_inventory(patch: pytest.MonkeyPatch) -> None:
    """A new life is believed to have the pages and rows of the one before it, whose reports counted further."""
    _restart_keeps(patch, "inventory")


def _restart_keeps(patch: pytest.MonkeyPatch, name: str) -> None:
    """The scheduler's view of a new life has this of the old one."""
    worker_up = SchedulerActor._worker_up

    def mutant(self: SchedulerActor, ctx: Any, message: Any) -> None:
        before = self.workers.get(message.inventory.worker)
        worker_up(self, ctx, message)
        view = self.workers.get(message.inventory.worker)
        if before is not None and view is not None and view is not before:
            setattr(view, name, getattr(before, name))

    patch.setattr(SchedulerActor, "_worker_up", mutant)


def old_deaths_end_new_lives(patch: pytest.MonkeyPatch) -> None:
    """A death that is told late counts for the life that has begun since."""
    worker_down = SchedulerActor._worker_down

    def mutant(self: SchedulerActor, ctx: Any, message: Any) -> None:
        view = self.workers.get(message.worker)
        epoch = message.epoch if view is None else max(view.epoch, message.epoch)
        fields = {"worker": message.worker, "reason": message.reason, "final": message.final}
        worker_down(self, ctx, type(message)(epoch=epoch, **fields))

    patch.setattr(SchedulerActor, "_worker_down", mutant)


# --- the same thing twice


def duplicate_reserve_is_leased_twice(patch: pytest.MonkeyPatch) -> None:
    """A reservation that is asked for again takes pages again."""
    reserve = WorkerCommands._reserve

    def mutant(self: WorkerCommands, ctx: Any, message: Any) -> None:
        self._leased = Recent()
        self._state.decode.leases.pop(message.key, None)
        reserve(self, ctx, message)

    patch.setattr(WorkerCommands, "_reserve", mutant)


def duplicate_prefill_is_computed_twice(patch: pytest.MonkeyPatch) -> None:
    """A prefill that has begun, or ended, begins again."""
    start_prefill = WorkerCommands._start_prefill

    def mutant(self: WorkerCommands, ctx: Any, message: Any) -> None:
        self._begun = Recent()
        start_prefill(self, ctx, message)

    patch.setattr(WorkerCommands, "_start_prefill", mutant)


def repeated_tokens_are_accepted(patch: pytest.MonkeyPatch) -> None:
    """A token that was accepted before counts as the next one."""
    accept = ChoiceRecord.accept

    def mutant(self: ChoiceRecord, sampled: SampledToken) -> Iterator[SampledToken]:
        index = max(sampled.index, len(self.accepted)) if sampled.index < len(self.accepted) else sampled.index
        return accept(self, SampledToken(sampled.key, index, sampled.record, sampled.finish))

    patch.setattr(ChoiceRecord, "accept", mutant)


def attempts_keep_their_number(patch: pytest.MonkeyPatch) -> None:
    """A new attempt cannot be told from the one before it."""

    def mutant(self: ChoiceRecord, now: float) -> Key:
        self.group = Key(self.request, self.choice, self.attempt)
        self.parked.clear()
        self.clock.give_up(now)
        return self.group

    patch.setattr(ChoiceRecord, "raise_attempt", mutant)


# --- on the way from prefill to decode


def nothing_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    """A chunk or hand-over without an answer waits for one."""
    patch.setattr(Outbox, "take_due", lambda self, now: ([], []))
    patch.setattr(Outbox, "next_due", lambda self: None)


def acknowledgements_are_not_sent(patch: pytest.MonkeyPatch) -> None:
    """The decode worker keeps to itself that a chunk has come."""
    patch.setattr(WorkerState, "acknowledge", lambda self, ctx, ready: None)


def cancel_keeps_credits(patch: pytest.MonkeyPatch) -> None:
    """The staged chunks of a cancelled group wait on for their acknowledgements."""
    patch.setattr(Deliveries, "forget", lambda self, ctx, key: None)


def moved_arrays_are_never_dropped(patch: pytest.MonkeyPatch) -> None:
    """A copy that nobody takes stays in the table."""
    ready = TransferActor._ready

    def mutant(self: TransferActor, ctx: Any, move: Any, handle: int) -> None:
        ready(self, ctx, move, handle)
        self._made.clear()

    patch.setattr(TransferActor, "_ready", mutant)


def taken_arrays_stay_in_the_table(patch: pytest.MonkeyPatch) -> None:
    """Whoever takes an array takes a copy."""
    patch.setattr(ArrayTable, "take", lambda self, handle: self._objects.get(handle))


# --- time and death


def hung_slice_is_used_at_once(patch: pytest.MonkeyPatch) -> None:
    """A slice is reset while its thread is inside a call, and what was queued there runs on."""

    async def mutant(self: WorkerSupervisor, ctx: Any) -> None:
        self._reset()

    patch.setattr(WorkerSupervisor, "_wait_for_slice", mutant)


def slow_reset_is_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """A worker is given up when its slice hangs for longer than a reset may take."""

    async def mutant(self: WorkerSupervisor, ctx: Any) -> None:
        await ctx.run_engine(ctx.address, self._reset, self._policy.reset_timeout_s)

    patch.setattr(WorkerSupervisor, "_wait_for_slice", mutant)


def leases_never_run_out_of_choices(patch: pytest.MonkeyPatch) -> None:
    """A cancel of all choices leaves their lease."""
    cancel = DecodePhase.cancel

    def mutant(self: DecodePhase, key: Key, choices: tuple[int, ...], fence: int) -> Any:
        lease: Lease | None = self.leases.get(key)
        return cancel(self, key, choices[1:] if lease is not None else choices, fence)

    patch.setattr(DecodePhase, "cancel", mutant)


RECOVERY = (
    Planted(heartbeats_are_ignored, found_at=2, seeds="faulty"),
    Planted(lost_grants_are_kept, found_at=68, seeds="faulty"),
    Planted(reservations_are_asked_for_once, found_at=84, seeds="faulty"),
    Planted(cancels_are_never_repeated, found_at=156, seeds="faulty"),
    Planted(lost_admissions_are_not_noticed, found_at=2, seeds="faulty"),
    Planted(unwanted_grants_are_never_aborted, case=("abandoned", "drop:AbortGroup:gateway:scheduler:1:0")),
    Planted(prefixes_are_never_told_again, found_at=0, seeds="faulty"),
    Planted(restart_keeps_the_old_inventory, found_at=2, seeds="faulty"),
    Planted(restart_keeps_the_old_prefixes, found_at=2, seeds="faulty"),
    Planted(old_deaths_end_new_lives, found_at=320, seeds="faulty"),
    Planted(duplicate_reserve_is_leased_twice, found_at=11, seeds="faulty"),
    Planted(
        duplicate_prefill_is_computed_twice,
        case=("disaggregated", "duplicate:StartPrefill:scheduler:prefill:1:0"),
    ),
    Planted(repeated_tokens_are_accepted, found_at=12, seeds="faulty"),
    Planted(attempts_keep_their_number, found_at=1),
    Planted(nothing_is_sent_again, found_at=11, seeds="faulty"),
    Planted(acknowledgements_are_not_sent, found_at=0),
    Planted(cancel_keeps_credits, found_at=98),
    Planted(moved_arrays_are_never_dropped, found_at=0, seeds="faulty"),
    Planted(taken_arrays_stay_in_the_table, found_at=0),
    Planted(hung_slice_is_used_at_once, found_at=88, seeds="faulty"),
    Planted(slow_reset_is_not_waited_for, found_at=63, seeds="faulty"),
    Planted(leases_never_run_out_of_choices, found_at=0),
)
