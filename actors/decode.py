"""The decode phase of a worker: leases, arriving KV, running sequences, growth and preemption.

Pure state and planning; the worker actor executes the plan and sends the messages. A lease promises pages and rows; it
becomes sequences when its KV coverage is complete and disjoint and `StartDecode` has come. This worker is the only
writer of its pool.
"""

from collections.abc import Iterable

import msgspec

from actors.constraint_calls import Bound
from actors.leases import lease_pages
from actors.messages import FinishReason, Held, Key, KvChunkReady, Reserve, StartDecode
from runtime.constraints import Constraint
from runtime.engine import EngineSpec, PageWrite, RowState
from runtime.pages import PagePool
from runtime.prefix_cache import PrefixChain, extend
from runtime.sampling_params import SamplingParams


class Lease:
    """A group's promise: `shared` pages hold the prompt's full pages, `own` each choice's tail and first growth.

    The first `cached_tokens` tokens have KV already: their pages were found in the cache and pinned. The latest of
    the chunks that have come lies on the slice since `kv_at`, 0 before any has. `constraints` are those of the choices
    that go on, None before they have been begun.
    """

    def __init__(
        self, reserve: Reserve, shared: tuple[int, ...], own: dict[int, tuple[int, ...]], cached_tokens: int
    ) -> None:
        self.reserve = reserve
        self.shared = shared
        self.own = own
        self.cached_tokens = cached_tokens
        self.rows: dict[int, int] = {}
        self.covered: list[tuple[int, int]] = [(0, cached_tokens)] if cached_tokens else []
        self.dropped: set[int] = set()
        self.start: StartDecode | None = None
        self.constraints: dict[int, Constraint] | None = None
        self.kv_at = 0.0

    @property
    def age(self) -> tuple[int, int]:
        """Sort key: the youngest is preempted first."""
        return (self.reserve.order, self.reserve.key.choice)

    def pages(self, choice: int) -> tuple[int, ...]:
        """A choice's pages in token order."""
        return self.shared + self.own[choice]

    @property
    def is_bound(self) -> bool:
        """Whether nothing has to be known of constraints before its choices go on."""
        return self.start is None or self.start.params.constraint is None or self.constraints is not None

    def complete(self) -> bool:
        """Whether inserted chunks cover all tokens, each once."""
        position = 0
        for begin, end in sorted(self.covered):
            assert begin >= position, (self.reserve.key, self.covered)
            if begin > position:
                return False
            position = end
        return position == self.reserve.num_tokens


class Sequence:
    """A running choice. `length` tokens have KV and `outputs` were sampled, counting what is dispatched.

    `tokens` are the prompt and the sampled tokens that were read; with `prefix` they name what its pages hold.
    `kv_at` is when its KV was complete, until the gateway was told of its first step; None for a local one. What the
    `constraint` allows next is known once all tokens were read.
    """

    def __init__(
        self,
        key: Key,
        group: Key,
        order: int,
        row: int,
        pages: tuple[int, ...],
        tokens: Iterable[int],
        params: SamplingParams,
        prefix: PrefixChain | None,
    ) -> None:
        self.key = key
        self.group = group
        self.order = order
        self.row = row
        self.pages = list(pages)
        self.tokens = list(tokens)
        self.length = len(self.tokens)
        self.outputs = 0
        self.params = params
        self.prefix = prefix
        self.kv_at: float | None = None
        self.constraint: Constraint | None = None

    @property
    def age(self) -> tuple[int, int]:
        """Sort key: the youngest is preempted first."""
        return (self.order, self.key.choice)


class Insert(msgspec.Struct, frozen=True):
    """An arrived chunk and where its pages go: chunk page `source[i]` to pool page `pages[i]`."""

    ready: KvChunkReady
    source: tuple[int, ...]
    pages: tuple[int, ...]


def finish_of(params: SamplingParams, token: int, index: int) -> FinishReason | None:
    """How the choice ends with this token, if it does."""
    if token in params.stop_token_ids:
        return "stop"
    return "length" if index + 1 >= params.max_tokens else None


class DecodePhase:
    """Leases and sequences of one worker."""

    def __init__(self, spec: EngineSpec, pool: PagePool, free_rows: list[int]) -> None:
        self._spec = spec
        self._pool = pool
        self._free_rows = free_rows
        self.leases: dict[Key, Lease] = {}
        self.sequences: dict[Key, Sequence] = {}

    # --- leases

    def reserve(self, message: Reserve) -> Lease | None:
        """Leases pages and rows for the group, or takes nothing and returns None. Cached pages are pinned first."""
        count = len(message.choices)
        shared, own = lease_pages(self._spec.page_size, message.num_tokens, message.reserve_tokens, count)
        matched = self._match(message)
        new = shared - len(matched)
        if new + own * count > self._pool.available_beside(matched) or count > len(self._free_rows):
            return None
        self._pool.pin(matched, refs=count)
        lease = Lease(
            message,
            matched + self._pool.lease(new, refs=count),
            {choice: self._pool.lease(own) for choice in message.choices},
            len(matched) * self._spec.page_size,
        )
        lease.rows = {choice: self._free_rows.pop() for choice in message.choices}
        self.leases[message.key] = lease
        return lease

    def _match(self, message: Reserve) -> tuple[int, ...]:
        prefix = message.prefix
        return self._pool.match(prefix.reusable(message.num_tokens, self._spec.page_size)) if prefix is not None else ()

    def rematch(self, lease: Lease, fence: int) -> None:
        """Exchanges pages of a lease into which nothing was written for cached ones that have come since."""
        matched, page = self._match(lease.reserve), self._spec.page_size
        known = lease.cached_tokens // page
        if len(matched) <= known:
            return
        count = len(lease.own)
        self._pool.pin(matched[known:], refs=count)
        for _ in range(count):
            self._pool.release(lease.shared[known : len(matched)], fence)
        lease.shared = matched + lease.shared[len(matched) :]
        lease.cached_tokens = len(matched) * page
        lease.covered = [(0, lease.cached_tokens)]

    def wants(self, ready: KvChunkReady) -> bool:
        """Whether somebody waits for the chunk, and nothing of it is there already."""
        lease = self.leases.get(ready.key)
        return lease is not None and all(
            ready.token_end <= begin or end <= ready.token_start for begin, end in lease.covered
        )

    def place(self, ready: KvChunkReady) -> Insert | None:
        """Where an arrived chunk goes; None when nobody waits for it (any more)."""
        if not self.wants(ready):
            return None
        lease = self.leases[ready.key]
        page = self._spec.page_size
        first = ready.token_start // page
        source, pages = list[int](), list[int]()
        for column in range(first, self._spec.pages_for(ready.token_end)):
            targets = (
                [lease.shared[column]]
                if column < len(lease.shared)
                else [own[column - len(lease.shared)] for own in lease.own.values()]
            )
            source += [column - first] * len(targets)
            pages += targets
        self._pool.hold(pages)
        if lease.reserve.prefix is not None:
            full = slice(first, ready.token_end // page)
            self._pool.register(lease.shared[full], lease.reserve.prefix.digests[full])
        lease.covered.append((ready.token_start, ready.token_end))
        lease.kv_at = max(lease.kv_at, ready.moved_at)
        return Insert(ready, tuple(source), tuple(pages))

    def start(self, message: StartDecode, fence: int) -> tuple[int, ...]:
        """Notes that prefill is done with the group; returns the choices that end here because prefill ended them."""
        lease = self.leases.get(message.key)
        if lease is None or lease.start is not None:
            return ()
        lease.start = message
        going_on = {choice for choice, _ in message.starts} - lease.dropped
        ended = tuple(choice for choice in lease.reserve.choices if choice not in going_on)
        lease.dropped.update(ended)
        if not going_on:
            self.drop(lease, fence)
        return ended

    def begin_covered(self, fence: int) -> list[RowState]:
        """Turns leases whose KV is complete into sequences; choices that ended in prefill give up their part."""
        begun = list[RowState]()
        for lease in list(self.leases.values()):
            if lease.start is None or not lease.complete() or not lease.is_bound:
                continue
            for choice, token in lease.start.starts:
                if choice not in lease.dropped:
                    begun.append(self._begin(lease, lease.start, choice, token))
            self.drop(lease, fence)
        return begun

    def _begin(self, lease: Lease, start: StartDecode, choice: int, token: int) -> RowState:
        sequence = self._sequence(lease, choice, start.tokens, start.params)
        sequence.tokens.append(token)
        sequence.kv_at = lease.kv_at
        sequence.constraint = lease.constraints[choice] if lease.constraints is not None else None
        output = (*start.tokens[start.prompt_tokens :], token)
        sequence.outputs = len(output)
        return RowState(
            row=sequence.row,
            sampling=start.params,
            choice=choice,
            prompt=start.tokens[: start.prompt_tokens],
            output=output,
            pages=tuple(sequence.pages),
            length=sequence.length,
            last_token=token,
        )

    def begin_local(
        self,
        lease: Lease,
        choices: list[int],
        tokens: tuple[int, ...],
        params: SamplingParams,
        bound: Bound | None,
        fence: int,
    ) -> list[RowState]:
        """Turns a lease into sequences whose first token the same worker's next step samples (mixed role)."""
        prompt_tokens = lease.reserve.prompt_tokens
        begun = list[RowState]()
        for choice in choices:
            sequence = self._sequence(lease, choice, tokens, params)
            sequence.outputs = len(tokens) - prompt_tokens + 1
            sequence.constraint = bound.constraints[choice] if bound is not None else None
            row = RowState(
                row=sequence.row,
                sampling=params,
                choice=choice,
                prompt=tokens[:prompt_tokens],
                output=tokens[prompt_tokens:],
                pages=tuple(sequence.pages),
                length=sequence.length,
                last_token=0,
                mask=bound.mask if bound is not None else None,
            )
            begun.append(row)
        self.drop(lease, fence)
        return begun

    def _sequence(self, lease: Lease, choice: int, tokens: tuple[int, ...], params: SamplingParams) -> Sequence:
        reserve = lease.reserve
        pages = lease.pages(choice)
        sequence = Sequence(
            reserve.key.sibling(choice), reserve.key, reserve.order, lease.rows.pop(choice), pages, tokens, params,
            reserve.prefix,
        )  # fmt: skip
        self._pool.hold(pages)
        del lease.own[choice]
        self.sequences[sequence.key] = sequence
        return sequence

    def drop(self, lease: Lease, fence: int) -> None:
        """Removes the lease and gives up the pages and rows that no sequence took over."""
        del self.leases[lease.reserve.key]
        for own in lease.own.values():
            self._pool.release(lease.shared, fence)
            self._pool.release(own, fence)
        self._free_rows.extend(lease.rows.values())

    # --- running

    def plan(self, fence: int) -> tuple[list[Sequence], list[PageWrite], list[Lease | Sequence]]:
        """Sequences of the next step (oldest first), their page-table deltas, and what had to be preempted for them.

        A sequence that needs a page when none is free sits the step out while pages are in quarantine; with none there
        either, the youngest lease or sequence is preempted.
        """
        chosen, writes, preempted = list[Sequence](), list[PageWrite](), list[Lease | Sequence]()
        for sequence in sorted(self.sequences.values(), key=lambda sequence: sequence.age):
            if sequence.key not in self.sequences or sequence.outputs >= sequence.params.max_tokens:
                continue
            if sequence.length >= len(sequence.pages) * self._spec.page_size:
                if not self._pool.available_pages:
                    if not self._pool.quarantined_pages:
                        preempted.append(self._preempt_youngest(fence))
                    continue
                (page,) = self._pool.lease(1)
                self._pool.hold((page,))
                writes.append(PageWrite(sequence.row, len(sequence.pages), page))
                sequence.pages.append(page)
            chosen.append(sequence)
        return chosen, writes, preempted

    def dispatched(self, sequence: Sequence) -> int:
        """The sequence is part of a dispatched step; returns the output index that the step samples."""
        index = sequence.outputs
        sequence.length += 1
        sequence.outputs += 1
        return index

    def _preempt_youngest(self, fence: int) -> Lease | Sequence:
        holders: list[Lease | Sequence] = [*self.leases.values(), *self.sequences.values()]
        youngest = max(holders, key=lambda holder: holder.age)
        if isinstance(youngest, Lease):
            self.drop(youngest, fence)
        else:
            self.end(youngest, fence)
        return youngest

    def end(self, sequence: Sequence, fence: int) -> None:
        """Removes a sequence; its pages go back once `fence` retires, its row at once (rows are rewritten in order).

        Pages that its answer has filled enter the prefix cache, for a conversation that goes on.
        """
        del self.sequences[sequence.key]
        self._register_answer(sequence)
        self._pool.release(sequence.pages, fence)
        self._free_rows.append(sequence.row)

    def _register_answer(self, sequence: Sequence) -> None:
        """Names the full pages behind the prompt's by tokens that were read; an unread one's page stays nameless."""
        prefix, page = sequence.prefix, self._spec.page_size
        if prefix is None:
            return
        known = len(prefix.digests)
        full = min(len(sequence.tokens), sequence.length) // page
        parent = prefix.digests[-1] if prefix.digests else prefix.root
        digests = extend(parent, sequence.tokens[known * page : full * page], page)
        self._pool.register(sequence.pages[known : known + len(digests)], digests)

    def group(self, key: Key) -> tuple[int, ...]:
        """Choices of the group that are held, as a lease or as sequences."""
        lease = self.leases.get(key)
        waiting = [choice for choice in lease.reserve.choices if choice not in lease.dropped] if lease else []
        running = [sequence.key.choice for sequence in self.sequences.values() if sequence.group == key]
        return tuple(sorted({*waiting, *running}))

    def held(self) -> tuple[tuple[Held, ...], tuple[Held, ...]]:
        """Groups that have not begun, and those that run."""
        running = dict[Key, list[int]]()
        for sequence in self.sequences.values():
            running.setdefault(sequence.group, []).append(sequence.key.choice)
        return (
            tuple(
                Held(key, tuple(choice for choice in lease.reserve.choices if choice not in lease.dropped))
                for key, lease in self.leases.items()
            ),
            tuple(Held(key, tuple(sorted(choices))) for key, choices in running.items()),
        )

    def cancel(self, key: Key, choices: tuple[int, ...], fence: int) -> None:
        """Drops choices of a group, as a lease or as sequences."""
        lease = self.leases.get(key)
        if lease is not None:
            lease.dropped.update(choices)
            if lease.dropped >= set(lease.reserve.choices):
                self.drop(lease, fence)
        for choice in choices:
            sequence = self.sequences.get(key.sibling(choice))
            if sequence is not None:
                self.end(sequence, fence)

    def next_deadline(self) -> float | None:
        """When the first lease that has not started runs out."""
        return min((lease.reserve.deadline for lease in self.leases.values()), default=None)

    def expired(self, now: float) -> list[Lease]:
        """Leases past their deadline: what was to fill them will not come."""
        return [lease for lease in self.leases.values() if lease.reserve.deadline <= now]
