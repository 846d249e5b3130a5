"""The scheduler's grants: which worker was asked to hold or holds which group, compared with what workers report.

A grant is no more than a belief. Workers tell again and again what they hold; a grant that none of them bears out for a
while is lost, and what they hold without a grant is either cancelled again or, by a scheduler that has just come back,
taken over. Nothing here sends messages.
"""

from collections.abc import Iterable, Mapping

from actors.messages import Address, Admit, Held, Key, WorkerUp
from actors.placement import WorkerView
from actors.reconcile import Overdue
from actors.tombstones import Tombstones
from runtime.prefix_cache import PrefixChain

BURIED_S = 60.0
"""By then nothing of a group that has ended is reported any more."""


class Grant:
    """A group that the decode worker was asked to hold (`asked` is when) or, once `answered`, holds.

    `prefill` is set once it was told to begin. A grant that was taken over from a worker's report has no `admit`.
    """

    def __init__(
        self, key: Key, choices: Iterable[int], deadline: float, decode: Address, asked: float, admit: Admit | None
    ) -> None:
        self.key = key
        self.open = set(choices)
        self.deadline = deadline
        self.decode = decode
        self.asked = asked
        self.admit = admit
        self.prefix: PrefixChain | None = None
        self.prefill: Address | None = None
        self.answered = False

    @property
    def held(self) -> Held:
        """What it stands for."""
        return Held(self.key, tuple(sorted(self.open)))


class Grants:
    """All grants by group. `tombstones` remember what was ended, so that it is not taken over when it is reported."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self.by_key: dict[Key, Grant] = {}
        self.tombstones = Tombstones()
        self._missing = Overdue()
        self._orphans = Overdue()

    def end(self, key: Key, choices: tuple[int, ...], until: float, now: float) -> Grant | None:
        """Choices have ended; returns the grant when it ends with them."""
        self.tombstones.bury(key, choices, until, now)
        grant = self.by_key.get(key)
        if grant is None:
            return None
        grant.open.difference_update(choices)
        if grant.open:
            return None
        return self.by_key.pop(key)

    # --- what a worker reports

    def unwanted(self, up: WorkerUp) -> list[tuple[Held, bool]]:
        """Groups of the report that have ended or belong elsewhere; whether nothing of the group is wanted here."""
        unwanted = list[tuple[Held, bool]]()
        for held in _by_group((*up.leases, *up.running)):
            grant = self.by_key.get(held.key)
            wanted = self._wanted(held, grant, up.inventory.worker)
            choices = tuple(choice for choice in held.choices if choice not in wanted)
            if choices:
                unwanted.append((Held(held.key, choices), not wanted))
        for key in up.prefills:
            if key not in self.by_key and not self.tombstones.alive(key, (key.choice,)):
                unwanted.append((Held(key, (key.choice,)), True))
        return unwanted

    def _wanted(self, held: Held, grant: Grant | None, worker: Address) -> set[int]:
        if grant is None:
            return set(self.tombstones.alive(held.key, held.choices))
        return set(held.choices) & grant.open if grant.decode == worker else set()

    def adopt(self, up: WorkerUp, now: float) -> None:
        """Takes over what the worker holds without a grant and what was not cancelled."""
        running = {held.key for held in up.running}
        for held in _by_group((*up.leases, *up.running)):
            grant = self.by_key.get(held.key)
            if grant is None:
                choices = self.tombstones.alive(held.key, held.choices)
                if choices:
                    grant = Grant(held.key, choices, now + BURIED_S, up.inventory.worker, now, None)
                    grant.answered = True
                    self.by_key[held.key] = grant
            elif held.key in running and grant.decode == up.inventory.worker:
                grant.answered = True
        for key in up.prefills:
            grant = self.by_key.get(key)
            if grant is not None and grant.answered and grant.prefill is None:
                grant.prefill = up.inventory.worker

    # --- what no report bears out

    def unanswered(self, now: float, resend_s: float) -> list[Grant]:
        """Grants whose reservation is to be asked for again; the question may have been lost, or the answer."""
        due = [grant for grant in self.by_key.values() if not grant.answered and now - grant.asked >= resend_s]
        for grant in due:
            grant.asked = now
        return due

    def lost(self, workers: Mapping[Address, WorkerView], now: float) -> list[tuple[Grant, tuple[int, ...]]]:
        """Grants, or choices of them, that have been missing from the reports of those who should hold them."""
        missing, grants = dict[Key, int](), dict[Key, Grant]()
        for grant in self.by_key.values():
            if grant.decode in workers:
                for choice, reads in _missing_choices(grant, workers).items():
                    key = grant.key.sibling(choice)
                    missing[key], grants[key] = reads, grant
        lost = dict[Key, tuple[Grant, list[int]]]()
        for key in self._missing.note(missing, now, self._grace_s):
            lost.setdefault(grants[key].key, (grants[key], []))[1].append(key.choice)
        return [(grant, tuple(sorted(choices))) for grant, choices in lost.values()]

    def orphans(self, workers: Mapping[Address, WorkerView], now: float) -> list[tuple[Address, Key]]:
        """Prefills for which nobody holds a lease any more."""
        odd, holders = dict[Key, int](), dict[Key, Address]()
        for view in workers.values():
            for key in view.prefills if view.alive else ():
                grant = self.by_key.get(key)
                if grant is None or grant.prefill != view.address:
                    odd[key], holders[key] = view.reads, view.address
        return [(holders[key], key) for key in self._orphans.note(odd, now, self._grace_s)]


def _by_group(held: Iterable[Held]) -> list[Held]:
    """One entry for each group."""
    groups = dict[Key, tuple[int, ...]]()
    for part in held:
        groups[part.key] = (*groups.get(part.key, ()), *part.choices)
    return [Held(key, choices) for key, choices in groups.items()]


def _missing_choices(grant: Grant, workers: Mapping[Address, WorkerView]) -> dict[int, int]:
    """Open choices that are not where they should be, with the reads of the worker that lacks them.

    A lease whose prefill worker has nothing of it (any more) will never begin.
    """
    decode = workers[grant.decode]
    missing = {choice: decode.reads for choice in grant.open if grant.key.sibling(choice) not in decode.held}
    if grant.answered and grant.key in decode.leases:
        prefill = workers.get(grant.prefill) if grant.prefill is not None else None
        if prefill is None:
            missing.update((choice, decode.reads) for choice in grant.open)
        elif grant.key not in prefill.prefills:
            missing.update((choice, prefill.reads) for choice in grant.open)
    return missing
