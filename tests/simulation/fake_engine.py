"""A slice without a device: its pages hold tokens and its work is lazy.

Device operations are queued and run in order, but only when `fetch` or `wait` asks for them or when
`catch_up` runs at a later virtual time: the worst moment for a page that was freed too early. Each step reads
its whole prefix from pages (`fake_pages`) and samples with a pure function of what it read (`fake_tokens`).
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from runtime.engine import EngineSpec, KvChunk, PrefillSegment, RowState, Sampled, Scored, Step, StepHandle
from tests.simulation.fake_pages import NO_PAGE, FakePages, KvViolation, PageRef, Slot
from tests.simulation.fake_tokens import TokenRule, bag, fingerprint, score


class DeviceError(Exception):
    """A planted failure of the device."""


class FakeChunk:
    """Gathered pages; `contents` is filled when the device gets there."""

    def __init__(self, engine: "FakeEngine", fence: int) -> None:
        self.engine = engine
        self.fence = fence
        self.contents: list[list[Slot | None]] | None = None


class _Row:
    """Device-side state of one row."""

    def __init__(self, state: RowState, table: list[PageRef]) -> None:
        self.state = state
        self.rule = TokenRule(state.sampling)
        self.table = table
        self.tokens = [*state.prompt, *state.output]
        self.length = state.length
        self.last_token = state.last_token
        self.num_output = len(state.output)
        self.bags = (bag(state.prompt), bag(state.output))

    def sample(self, prefix: int, mask: bytes | None) -> Sampled:
        prompt_len = len(self.state.prompt)
        record = self.rule.choose(prefix, self.state.choice, self.num_output, prompt_len, self.bags, mask)
        self.tokens.append(record.token)
        self.last_token = record.token
        self.num_output += 1
        self.bags = (self.bags[0], (self.bags[1] + bag((record.token,))) & (1 << 64) - 1)
        return Sampled(row=self.state.row, token=record.token, logprob=record.logprob, top=record.top)

    def __str__(self) -> str:
        state = self.state
        return (
            f"row {state.row} (choice {state.choice}, seed {state.sampling.seed}, "
            f"{len(state.prompt)} prompt tokens {state.prompt[:4]}.., {self.num_output} sampled)"
        )


class _Pass:
    """One forward pass: what it fed, which a deferred step samples later, and what came of it."""

    def __init__(self) -> None:
        self.fed: list[tuple[_Row, bool]] = []
        self.sampled: list[Sampled] = []
        self.scores: list[tuple[Scored, ...]] = []


class FakeEngine:
    """`runtime.engine.Engine` for the simulator.

    `later` is called with `catch_up` after each enqueued operation and may run it at any later moment.
    `violations` keeps every KvViolation, also those that an actor survived. Steps whose numbers are in `failing_steps`
    raise a DeviceError.
    """

    def __init__(self, name: str, spec: EngineSpec, later: Callable[[Callable[[], None]], None] | None = None) -> None:
        self.name = name
        self.pages = FakePages(name, spec)
        self.violations: list[KvViolation] = []
        self.num_steps = 0
        self.failing_steps: set[int] = set()
        self._spec = spec
        self._later = later
        self._fence = 0
        self._done = 0
        self._work: deque[Callable[[], None]] = deque()
        self._broken: Exception | None = None
        self._rows: dict[int, _Row] = {}
        self._unsampled: _Pass | None = None

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    @property
    def fence(self) -> int:
        return self._fence

    # --- the contract -------------------------------------------------------------------------------

    def set_rows(self, rows: Sequence[RowState]) -> None:
        self._check_sampled("rows are written")
        built: dict[int, _Row] = {}
        for state in rows:
            assert 0 <= state.row < self._spec.num_rows, state
            assert state.length < self._spec.max_context_tokens, state
            built[state.row] = _Row(state, self._refs(state.pages))
        self._enqueue(lambda: self._rows.update(built))

    def dispatch(self, step: Step) -> StepHandle:
        self._check_sampled("a step is dispatched")
        self._check_step(step)
        self.num_steps += 1
        table = [(write.row, write.column, self._refs((write.page,))[0]) for write in step.table]
        segments = [(segment, self._refs(segment.pages)) for segment in step.prefill]
        done = _Pass()
        fails = self.num_steps in self.failing_steps

        def run() -> None:
            if fails:
                raise DeviceError(self.name)
            for number, column, ref in table:
                row = self._row(number)
                row.table.extend([NO_PAGE] * (column + 1 - len(row.table)))
                row.table[column] = ref
            for segment, refs in segments:
                self._write_segment(segment, refs)
            done.fed = [(row, self._feed(row)) for row in map(self._row, step.decode)]
            for segment, refs in segments:
                done.sampled.extend(self._sample_segment(segment, refs))
                if segment.score is not None:
                    done.scores.append(self._score_segment(segment, refs, segment.score))
            if not step.deferred:
                done.sampled.extend(self._sample_decode(row, has_page, row.state.mask) for row, has_page in done.fed)

        self._enqueue(run)
        self._unsampled = done if step.deferred else None
        return StepHandle(fence=self._fence, payload=done)

    def sample(self, handle: StepHandle, masks: Mapping[int, bytes]) -> StepHandle:
        done: _Pass = handle.payload
        if done is not self._unsampled:
            self._report(KvViolation(f"{self.name}: a step is sampled that was not deferred, or is not the last"))
        self._unsampled = None
        mine = dict(masks)

        def run() -> None:
            unknown = mine.keys() - {row.state.row for row, _ in done.fed}
            if unknown:
                raise KvViolation(f"{self.name}: masks for rows {unknown}, which the step does not decode")
            for row, has_page in done.fed:
                mask = mine.get(row.state.row)
                done.sampled.append(self._sample_decode(row, has_page, mask))

        self._enqueue(run)
        return StepHandle(fence=self._fence, payload=done)

    def fetch(self, handle: StepHandle) -> tuple[Sampled, ...]:
        done: _Pass = handle.payload
        if done is self._unsampled:
            self._report(KvViolation(f"{self.name}: a deferred step is fetched before it was sampled"))
        self.run_to(handle.fence)
        return tuple(done.sampled)

    def fetch_scores(self, handle: StepHandle) -> tuple[tuple[Scored, ...], ...]:
        self.run_to(handle.fence)
        done: _Pass = handle.payload
        return tuple(done.scores)

    def gather(self, pages: Sequence[int]) -> KvChunk:
        refs = self._refs(pages)
        chunk = FakeChunk(self, self._fence + 1)

        def run() -> None:
            chunk.contents = [list(self.pages.content(ref, "a gather")) for ref in refs]

        self._enqueue(run)
        return KvChunk(chunk)

    def insert(self, chunk: KvChunk, source: Sequence[int], pages: Sequence[int]) -> None:
        assert isinstance(chunk, FakeChunk)
        assert len(source) == len(pages), (source, pages)
        if chunk.engine is not self:
            self._report(KvViolation(f"{self.name}: inserts a chunk that lies on {chunk.engine.name}"))
        refs = self._refs(pages)

        def run() -> None:
            assert chunk.contents is not None
            for index, ref in zip(source, refs, strict=True):
                self.pages.replace(ref, chunk.contents[index], "an insert")

        self._enqueue(run)

    def checksum(self, chunk: KvChunk) -> tuple[int, ...]:
        assert isinstance(chunk, FakeChunk)
        chunk.engine.run_to(chunk.fence)
        assert chunk.contents is not None
        return tuple(fingerprint([slot.prefix if slot else 0 for slot in page]) for page in chunk.contents)

    def wait(self) -> int:
        self.run_to(self._fence)
        return self._fence

    def reset(self) -> None:
        self._work.clear()
        self._rows.clear()
        self._broken = None
        self._unsampled = None
        self._done = self._fence
        self.pages.poison_all()

    # --- the device ---------------------------------------------------------------------------------

    @property
    def done_fence(self) -> int:
        """The last operation that the device has finished."""
        return self._done

    def run_to(self, fence: int) -> None:
        """Lets the device finish everything up to `fence`; raises what went wrong since the last reset."""
        while self._done < fence and self._broken is None:
            self.catch_up()
        if self._broken is not None:
            raise self._broken

    def catch_up(self) -> None:
        """Lets the device run its next operation, if there is one."""
        if self._broken is not None or not self._work:
            return
        work = self._work.popleft()
        self._done += 1
        try:
            work()
        except KvViolation as violation:
            self.violations.append(violation)
            self._broken = violation
        except DeviceError as error:
            self._broken = error

    def _enqueue(self, work: Callable[[], None]) -> None:
        self._work.append(work)
        self._fence += 1
        if self._later is not None:
            self._later(self.catch_up)

    def _report(self, violation: KvViolation) -> None:
        self.violations.append(violation)
        raise violation

    def _refs(self, pages: Sequence[int]) -> list[PageRef]:
        try:
            return self.pages.refs(pages)
        except KvViolation as violation:
            self.violations.append(violation)
            raise

    def _check_sampled(self, what: str) -> None:
        if self._unsampled is not None:
            self._report(KvViolation(f"{self.name}: {what} before the deferred step was sampled"))

    def _check_step(self, step: Step) -> None:
        spec = self._spec
        rows = [*step.decode, *(row for segment in step.prefill for row in segment.sample_rows)]
        assert len(set(rows)) == len(rows), f"a row appears twice in {step}"
        assert len(step.prefill) <= spec.max_prefill_segments, step
        assert sum(len(segment.tokens) for segment in step.prefill) <= spec.chunk_tokens, step
        for segment in step.prefill:
            assert segment.tokens, step
            ends = segment.score is None or bool(segment.sample_rows)
            assert ends == (segment.next_token is None), segment
            assert len(segment.pages) >= spec.pages_for(segment.start + len(segment.tokens)), segment

    # --- a step -------------------------------------------------------------------------------------

    def _row(self, row: int) -> _Row:
        if row not in self._rows:
            raise KvViolation(f"{self.name}: row {row} is used before it was set")
        return self._rows[row]

    def _write_segment(self, segment: PrefillSegment, refs: list[PageRef]) -> None:
        who = f"a prefill segment at {segment.start}+{len(segment.tokens)}"
        _, prefix = self.pages.read_prefix(refs, segment.start, who)
        for position, token in enumerate(segment.tokens, segment.start):
            prefix = fingerprint((token,), prefix)
            if not self.pages.write(refs, Slot(token, position, prefix), who):
                raise KvViolation(f"{self.name}: {who} writes position {position} to the sentinel page")

    def _sample_segment(self, segment: PrefillSegment, refs: list[PageRef]) -> list[Sampled]:
        length = segment.start + len(segment.tokens)
        sampled = []
        for row in map(self._row, segment.sample_rows):
            tokens, prefix = self.pages.read_prefix(refs, length, row)
            if tokens != row.tokens or (row.table and row.length != length):
                raise KvViolation(f"{self.name}: {row}, length {row.length}, samples after {tokens}")
            sampled.append(row.sample(prefix, row.state.mask))
        return sampled

    def _feed(self, row: _Row) -> bool:
        """Writes the KV of the row's last token; False when its place is no page, as for an overrun token."""
        prefix = fingerprint([*row.tokens[: row.length], row.last_token])
        has_page = self.pages.write(row.table, Slot(row.last_token, row.length, prefix), row)
        row.length += 1
        return has_page

    def _sample_decode(self, row: _Row, has_page: bool, mask: bytes | None) -> Sampled:
        if not has_page:
            _, prefix = self.pages.read_prefix(row.table, row.length - 1, row)
            return row.sample(~prefix, mask)
        tokens, prefix = self.pages.read_prefix(row.table, row.length, row)
        if tokens != row.tokens:
            raise KvViolation(f"{self.name}: {row} decodes after {tokens}, not {row.tokens}")
        return row.sample(prefix, mask)

    def _score_segment(self, segment: PrefillSegment, refs: list[PageRef], count: int) -> tuple[Scored, ...]:
        """Behind each of the chunk's tokens, the one that follows it in the prompt."""
        length = segment.start + len(segment.tokens)
        tokens, _ = self.pages.read_prefix(refs, length, "a score")
        known = tokens if segment.next_token is None else [*tokens, segment.next_token]
        return tuple(score(fingerprint(known[:end]), known[end], count) for end in range(segment.start + 1, len(known)))


class FakeMover:
    """`runtime.engine.KvMover` between fake engines: a move waits for the source's gather, as a real copy does."""

    def __init__(self, engines: dict[str, FakeEngine]) -> None:
        self._engines = engines

    def move(self, chunk: KvChunk, target: str) -> KvChunk:
        assert isinstance(chunk, FakeChunk)
        chunk.engine.run_to(chunk.fence)
        assert chunk.contents is not None
        moved = FakeChunk(self._engines[target], 0)
        moved.contents = [list(page) for page in chunk.contents]
        return KvChunk(moved)


def alter(chunk: KvChunk) -> None:
    """Changes one token of a chunk that was moved, as a broken wire would."""
    assert isinstance(chunk, FakeChunk)
    assert chunk.contents is not None
    slot = chunk.contents[0][0]
    chunk.contents[0][0] = Slot(0, 0, 1) if slot is None else Slot(slot.token, slot.position, slot.prefix ^ 1)
