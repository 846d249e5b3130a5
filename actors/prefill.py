"""The prefill phase of a worker: prompts become KV pages, chunk by chunk, and leave for their decode worker.

Pure state and planning; the worker actor executes the plan and sends the messages. A job takes all its prompt's pages
at once, oldest job first, so that no two jobs ever hold half of what they need. A chunk is planned only with a staging
credit for its destination in hand, so a decode worker that does not take chunks blocks only its own requests.
"""

from collections import Counter
from collections.abc import Callable, Sequence, Set

import msgspec

from actors.constraint_calls import Bound
from actors.messages import Address, Key, StartPrefill, TokenRecord
from runtime.engine import EngineSpec
from runtime.pages import PagePool
from runtime.prefix_cache import Digest


class Staged(msgspec.Struct, frozen=True):
    """A gathered chunk that its decode worker has not acknowledged; it occupies one credit of `decode`."""

    handle: int
    decode: Address
    decode_epoch: int
    choices: tuple[int, ...]
    deadline: float


class PrefillJob:
    """One group's prompt on its way. `done` tokens are dispatched, `sent` tokens are staged or need no transfer.

    The first `cached` tokens were found in this worker's cache: they are done from the start, but still to be sent if
    the decode side lacks them. Before it has pages, `expected` of them have been seen there. A local job (mixed worker)
    writes into the pages of the lease and transfers nothing. `bound` is the state of its constraint, None before it has
    been begun; `scores` are the prompt's logprobs as far as they were read.
    """

    def __init__(self, start: StartPrefill, choices: tuple[int, ...], local_pages: tuple[int, ...] | None) -> None:
        self.start = start
        self.choices = list(choices)
        self.local = local_pages is not None
        self.pages: tuple[int, ...] = local_pages or ()
        self.cached = start.cached_tokens if self.local else 0
        self.done = self.cached
        self.expected = 0
        self.begun = False
        self.told = False
        self.sent = start.cached_tokens
        self.next_sequence = 0
        self.bound: Bound | None = None
        self.scores: list[TokenRecord] = []

    @property
    def key(self) -> Key:
        """The group."""
        return self.start.key

    @property
    def remaining(self) -> int:
        """Tokens that are not dispatched yet."""
        return len(self.start.tokens) - self.done

    @property
    def is_bound(self) -> bool:
        """Whether nothing has to be known of a constraint before its first tokens are sampled."""
        return self.start.params.constraint is None or self.bound is not None

    @property
    def score(self) -> int | None:
        """How many alternatives go with the logprobs of the prompt; None where they were accepted before, or unasked.

        They are accepted together with the first token.
        """
        is_first = len(self.start.tokens) == self.start.prompt_tokens
        return self.start.params.prompt_logprobs if is_first else None

    def reusable(self, page_size: int) -> tuple[Digest, ...]:
        """Digests of the prompt's pages that a cache may provide."""
        prefix = self.start.prefix
        return prefix.reusable(len(self.start.tokens), page_size) if prefix is not None else ()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to compute or to send."""
        return not self.remaining and (self.local or self.sent == len(self.start.tokens))


class PlannedChunk(msgspec.Struct, frozen=True):
    """One job's share of the next turn: tokens `begin..end-1` to compute, none where all are done.

    `send` is the token range that leaves afterwards.
    """

    job: PrefillJob
    begin: int
    end: int
    send: tuple[int, int] | None

    @property
    def last(self) -> bool:
        """Whether computing the prompt ends with it."""
        return self.begin < self.end == len(self.job.start.tokens)


class PrefillPhase:
    """Jobs, staged chunks and credits of one worker."""

    def __init__(
        self, spec: EngineSpec, pool: PagePool, staged_per_decode: int, rematch: Callable[[PrefillJob], None]
    ) -> None:
        """`rematch` lets a local job that has not begun take over prefixes that were cached after its lease."""
        self._spec = spec
        self._pool = pool
        self._staged_per_decode = staged_per_decode
        self._rematch = rematch
        self.jobs: dict[Key, PrefillJob] = {}
        self.staged: dict[tuple[Key, int], Staged] = {}
        self._used: Counter[Address] = Counter()

    @property
    def queued_tokens(self) -> int:
        """Tokens that all jobs have before them, as far as is known less what they will find cached."""
        return sum(job.remaining - (0 if job.pages else job.expected) for job in self.jobs.values())

    def add(self, job: PrefillJob) -> None:
        """Takes a job in; it waits for pages and credits."""
        self.jobs[job.key] = job
        if not job.local:
            self._expect(job)

    def plan(self) -> tuple[PlannedChunk, ...]:
        """The next turn's chunks, oldest job first, within the token budget, the segment limit and the credits."""
        budget, segments, planned = self._spec.chunk_tokens, 0, list[PlannedChunk]()
        credits = Counter(self._used)
        coming = self._coming(credits)
        short_of_pages = False
        for job in sorted(self.jobs.values(), key=lambda job: (job.start.order, job.key)):
            if not job.is_bound:
                continue
            if segments == self._spec.max_prefill_segments:
                budget = 0
            if not job.begun and (budget < min(self._spec.page_size, job.remaining) or self._waits_for(job, coming)):
                continue
            if not job.pages and credits[job.start.decode] >= self._staged_per_decode:
                continue  # it could send nothing, and by the time that it can more may be cached
            if not job.pages and (short_of_pages or not self._give_pages(job)):
                short_of_pages = True  # younger jobs that hold pages go on, or the older one would wait for ever
                continue
            chunk = self._next_chunk(job, budget)
            if chunk is None:
                continue
            if chunk.send is not None:
                if credits[job.start.decode] >= self._staged_per_decode:
                    continue
                credits[job.start.decode] += 1
            planned.append(chunk)
            budget -= chunk.end - chunk.begin
            segments += chunk.begin < chunk.end
            coming.update(self._filled(chunk))
        return tuple(planned)

    def _coming(self, credits: Counter[Address]) -> set[Digest]:
        """What jobs that have begun will compute next, unless they are stuck."""
        coming, step = set[Digest](), self._spec.chunk_tokens
        for job in self.jobs.values():
            if job.begun and job.remaining and credits[job.start.decode] < self._staged_per_decode:
                coming.update(self._filled(PlannedChunk(job, job.done, job.done + step, None)))
        return coming

    def _waits_for(self, job: PrefillJob, coming: Set[Digest]) -> bool:
        """Whether the job had better wait a turn, because another one is computing the page that it would begin with.

        Equal prompts that arrive together are so computed once. A local job takes over what has come since its lease.
        """
        reusable = job.reusable(self._spec.page_size)
        if job.local:
            self._rematch(job)
            begin = job.cached // self._spec.page_size
        else:
            begin = self._expect(job) // self._spec.page_size
        return begin < len(reusable) and reusable[begin] in coming

    def _expect(self, job: PrefillJob) -> int:
        """Looks how many of its tokens a job would find cached now."""
        page = self._spec.page_size
        job.expected = len(self._pool.match(job.reusable(page))) * page
        return job.expected

    def _filled(self, chunk: PlannedChunk) -> tuple[Digest, ...]:
        """Digests of the pages that the chunk completes."""
        prefix, page = chunk.job.start.prefix, self._spec.page_size
        return prefix.digests[chunk.begin // page : chunk.end // page] if prefix is not None else ()

    def _give_pages(self, job: PrefillJob) -> bool:
        """Pins what is cached of the prompt and leases the rest, or does nothing and returns False."""
        matched = self._pool.match(job.reusable(self._spec.page_size))
        need = self._spec.pages_for(len(job.start.tokens)) - len(matched)
        if need > self._pool.available_beside(matched):
            return False
        self._pool.pin(matched)
        leased = self._pool.lease(need)
        self._pool.hold(leased)
        job.pages = matched + leased
        job.cached = job.done = len(matched) * self._spec.page_size
        return True

    def _next_chunk(self, job: PrefillJob, budget: int) -> PlannedChunk | None:
        """Chunks end on page boundaries, or with the prompt, so that every page is sent exactly once.

        Cached pages that the decode side lacks leave as fast as others do: at most a chunk's worth at a time.
        """
        page = self._spec.page_size
        size = job.remaining if job.remaining <= budget else budget // page * page
        end = job.done + size
        covered = end if end == len(job.start.tokens) else end // page * page
        covered = min(covered, job.sent + self._spec.chunk_tokens)
        send = (job.sent, covered) if not job.local and covered > job.sent else None
        return PlannedChunk(job, job.done, end, send) if size or send is not None else None

    def dispatched(self, chunk: PlannedChunk) -> None:
        """The chunk's work is on its way: whoever is planned from now on may read the pages that it fills."""
        job, page = chunk.job, self._spec.page_size
        job.done = chunk.end
        job.begun = True
        if chunk.send is not None:
            job.sent = chunk.send[1]
        filled = self._filled(chunk)
        self._pool.register(job.pages[chunk.begin // page :][: len(filled)], filled)

    def stage(self, chunk: PlannedChunk, handle: int) -> int:
        """Takes a credit for the gathered chunk; returns its sequence number within the job."""
        job = chunk.job
        sequence, job.next_sequence = job.next_sequence, job.next_sequence + 1
        start = job.start
        staged = Staged(handle, start.decode, start.decode_epoch, tuple(job.choices), start.deadline)
        self.staged[job.key, sequence] = staged
        self._used[job.start.decode] += 1
        return sequence

    def unstage(self, key: Key, sequence: int) -> Staged | None:
        """Gives the credit back; returns what was staged, or None when it was given back before."""
        staged = self.staged.pop((key, sequence), None)
        if staged is not None:
            self._used[staged.decode] -= 1
        return staged

    def forget_decode(self, decode: Address, epoch: int, drop: Callable[[int], None]) -> None:
        """The decode worker died with that epoch: it will acknowledge nothing that was meant for it."""
        for (key, sequence), staged in list(self.staged.items()):
            if staged.decode == decode and staged.decode_epoch <= epoch:
                self.unstage(key, sequence)
                drop(staged.handle)

    def sweep(self, now: float, drop: Callable[[int], None]) -> None:
        """Takes back staged chunks past their deadline: nobody will acknowledge them any more."""
        for (key, sequence), staged in list(self.staged.items()):
            if staged.deadline <= now:
                self.unstage(key, sequence)
                drop(staged.handle)

    def next_deadline(self) -> float | None:
        """When the first staged chunk runs out."""
        return min((staged.deadline for staged in self.staged.values()), default=None)

    def end(self, job: PrefillJob, fence: int) -> None:
        """Removes the job; its own pages go back once `fence` retires. Staged chunks stay until acknowledged."""
        self.jobs.pop(job.key, None)
        if job.pages and not job.local:
            self._pool.release(job.pages, fence)
        job.pages = ()

    def cancel(self, key: Key, choices: Sequence[int], fence: int) -> None:
        """Drops choices from a job, and the job with its last one."""
        job = self.jobs.get(key)
        if job is None:
            return
        job.choices = [choice for choice in job.choices if choice not in choices]
        if not job.choices:
            self.end(job, fence)

    @property
    def credits_used(self) -> int:
        """Credits in use over all destinations."""
        return sum(self._used.values())
