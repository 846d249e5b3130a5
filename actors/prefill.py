"""The prefill phase of a worker: prompts become KV pages, chunk by chunk, and leave for their decode worker.

Pure state and planning; the worker actor executes the plan and sends the messages. A job takes all its prompt's pages
at once, oldest job first, so that no two jobs ever hold half of what they need. A chunk is planned only with a staging
credit for its destination in hand, so a decode worker that does not take chunks blocks only its own requests.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from actors.messages import Address, Key, StartPrefill
from runtime.engine import EngineSpec
from runtime.pages import PagePool


class Staged(msgspec.Struct, frozen=True):
    """A gathered chunk that its decode worker has not acknowledged; it occupies one credit of `decode`."""

    handle: int
    decode: Address
    choices: tuple[int, ...]
    deadline: float


class PrefillJob:
    """One group's prompt on its way. `done` tokens are dispatched, `sent` tokens are staged or need no transfer.

    A local job (mixed worker) writes into the pages of the lease and transfers nothing.
    """

    def __init__(self, start: StartPrefill, choices: tuple[int, ...], local_pages: tuple[int, ...] | None) -> None:
        self.start = start
        self.choices = list(choices)
        self.local = local_pages is not None
        self.pages: tuple[int, ...] = local_pages or ()
        self.done = 0
        self.sent = start.cached_tokens
        self.next_sequence = 0

    @property
    def key(self) -> Key:
        """The group."""
        return self.start.key

    @property
    def remaining(self) -> int:
        """Tokens that are not dispatched yet."""
        return len(self.start.tokens) - self.done


class PlannedChunk(msgspec.Struct, frozen=True):
    """One job's share of the next step: tokens `begin..end-1`; `send` is the token range that leaves afterwards."""

    job: PrefillJob
    begin: int
    end: int
    send: tuple[int, int] | None

    @property
    def last(self) -> bool:
        """Whether the prompt ends with it."""
        return self.end == len(self.job.start.tokens)


class PrefillPhase:
    """Jobs, staged chunks and credits of one worker."""

    def __init__(self, spec: EngineSpec, pool: PagePool, staged_per_decode: int) -> None:
        self._spec = spec
        self._pool = pool
        self._staged_per_decode = staged_per_decode
        self.jobs: dict[Key, PrefillJob] = {}
        self.staged: dict[tuple[Key, int], Staged] = {}
        self._used: Counter[Address] = Counter()

    @property
    def queued_tokens(self) -> int:
        """Tokens that all jobs have before them."""
        return sum(job.remaining for job in self.jobs.values())

    def add(self, job: PrefillJob) -> None:
        """Takes a job in; it waits for pages and credits."""
        self.jobs[job.key] = job

    def plan(self) -> tuple[PlannedChunk, ...]:
        """The next step's chunks, oldest job first, within the token budget, the segment limit and the credits."""
        budget, planned = self._spec.chunk_tokens, list[PlannedChunk]()
        credits = Counter(self._used)
        short_of_pages = False
        for job in sorted(self.jobs.values(), key=lambda job: (job.start.order, job.key)):
            if budget <= 0 or len(planned) == self._spec.max_prefill_segments:
                break
            if not job.remaining:
                continue
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
        return tuple(planned)

    def _give_pages(self, job: PrefillJob) -> bool:
        if job.pages:
            return True
        need = self._spec.pages_for(len(job.start.tokens))
        if need > self._pool.free_pages:
            return False
        job.pages = self._pool.lease(need)
        self._pool.hold(job.pages)
        return True

    def _next_chunk(self, job: PrefillJob, budget: int) -> PlannedChunk | None:
        """Chunks end on page boundaries, or with the prompt, so that every page is sent exactly once."""
        page = self._spec.page_size
        size = job.remaining if job.remaining <= budget else budget // page * page
        if size == 0:
            return None
        end = job.done + size
        last = end == len(job.start.tokens)
        covered = end if last else end // page * page
        send = (job.sent, covered) if not job.local and covered > job.sent else None
        return PlannedChunk(job, job.done, end, send)

    def dispatched(self, chunk: PlannedChunk) -> None:
        """The chunk's forward pass is on its way."""
        chunk.job.done = chunk.end
        if chunk.send is not None:
            chunk.job.sent = chunk.send[1]

    def stage(self, chunk: PlannedChunk, handle: int) -> int:
        """Takes a credit for the gathered chunk; returns its sequence number within the job."""
        job = chunk.job
        sequence, job.next_sequence = job.next_sequence, job.next_sequence + 1
        self.staged[job.key, sequence] = Staged(handle, job.start.decode, tuple(job.choices), job.start.deadline)
        self._used[job.start.decode] += 1
        return sequence

    def unstage(self, key: Key, sequence: int) -> Staged | None:
        """Gives the credit back; returns what was staged, or None when it was given back before."""
        staged = self.staged.pop((key, sequence), None)
        if staged is not None:
            self._used[staged.decode] -= 1
        return staged

    def forget_decode(self, decode: Address, drop: Callable[[int], None]) -> None:
        """The decode worker died: it will acknowledge nothing."""
        for (key, sequence), staged in list(self.staged.items()):
            if staged.decode == decode:
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
