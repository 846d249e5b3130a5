"""Planning of the prefill and decode phases on plain data."""

from actors.decode import DecodePhase, Lease, finish_of
from actors.messages import Address, Key, KvChunkReady, Reserve, StartDecode, StartPrefill
from actors.prefill import PrefillJob, PrefillPhase, Staged
from runtime.engine import EngineSpec, PageWrite
from runtime.pages import PagePool
from runtime.prefix_cache import PrefixChain, chain_of
from runtime.sampling_params import SamplingParams

SPEC = EngineSpec(
    page_size=4,
    num_pages=17,
    num_rows=4,
    max_context_tokens=64,
    vocab_size=100,
    chunk_tokens=16,
    max_prefill_segments=4,
    page_bytes=1,
)
PARAMS = SamplingParams(seed=0, max_tokens=20, stop_token_ids=(99,))


def _job(
    name: str, num_tokens: int, order: int, decode: str = "decode.0", cached_tokens: int = 0, first: int = 0
) -> PrefillJob:
    tokens = tuple(range(first, first + num_tokens))
    start = StartPrefill(
        epoch=1,
        key=Key(name, 0, 1),
        choices=(0,),
        order=order,
        tokens=tokens,
        prompt_tokens=num_tokens,
        cached_tokens=cached_tokens,
        prefix=chain_of(tokens, SPEC.page_size),
        params=PARAMS,
        decode=Address(decode),
        decode_epoch=1,
        deadline=1.0,
    )
    return PrefillJob(start, (0,), None)


def _prefill(staged: int = 4) -> PrefillPhase:
    return PrefillPhase(SPEC, PagePool(SPEC.num_pages), staged, rematch=lambda job: None)


def test_a_step_carries_several_prompts_and_cuts_on_page_borders() -> None:
    phase = _prefill()
    phase.add(_job("b", 30, order=2))
    phase.add(_job("a", 5, order=1, first=50))
    first, second = phase.plan()
    assert (first.job.key.request, first.begin, first.end, first.send, first.last) == ("a", 0, 5, (0, 5), True)
    assert (second.job.key.request, second.begin, second.end) == ("b", 0, 8), "11 tokens left, two pages"
    assert second.send == (0, 8)


def test_every_token_is_sent_exactly_once() -> None:
    phase, job = _prefill(), _job("a", 45, order=0)
    phase.add(job)
    sent = []
    while job.remaining:
        (chunk,) = phase.plan()
        phase.dispatched(chunk)
        sent.append(chunk.send)
    assert sent == [(0, 16), (16, 32), (32, 45)]


def test_no_credit_no_chunk_for_that_destination_alone() -> None:
    phase = _prefill(staged=1)
    phase.add(_job("stuck", 8, order=0))
    phase.add(_job("fine", 8, order=1, decode="decode.1", first=10))
    (stuck, fine) = phase.plan()
    phase.dispatched(stuck)
    assert phase.stage(stuck, handle=7) == 0
    phase.dispatched(fine)
    phase.stage(fine, handle=8)
    assert phase.unstage(fine.job.key, 0) == Staged(8, Address("decode.1"), 1, (0,), 1.0)
    phase.add(_job("stuck2", 8, order=2, first=20))
    phase.add(_job("fine2", 8, order=3, decode="decode.1", first=30))
    assert [chunk.job.key.request for chunk in phase.plan()] == ["fine2"]
    assert phase.unstage(stuck.job.key, 0) == Staged(7, Address("decode.0"), 1, (0,), 1.0)
    assert phase.unstage(stuck.job.key, 0) is None, "a credit comes back once"
    assert [chunk.job.key.request for chunk in phase.plan()] == ["stuck2", "fine2"]


def test_pages_are_given_whole_and_in_order() -> None:
    phase = _prefill()
    phase.add(_job("a", 40, order=0))
    phase.add(_job("b", 28, order=1, first=1))
    phase.add(_job("c", 4, order=2, first=2))
    (chunk,) = phase.plan()
    phase.dispatched(chunk)
    assert [chunk.job.key.request for chunk in phase.plan()] == ["a"], "it uses the whole budget"
    for _ in range(3):
        for chunk in phase.plan():
            phase.dispatched(chunk)
    assert [job.key.request for job in phase.jobs.values() if job.pages] == ["a"], "b does not fit, c does not overtake"


def test_a_job_that_waits_for_pages_does_not_hold_up_younger_ones_that_have_theirs() -> None:
    phase = _prefill()
    phase.add(_job("young", 40, order=2))
    (chunk,) = phase.plan()
    phase.dispatched(chunk)
    phase.add(_job("old", 32, order=1, first=50))
    assert [(chunk.job.key.request, chunk.begin) for chunk in phase.plan()] == [("young", 16)]


def _all_chunks(phase: PrefillPhase) -> list[tuple[str, int, int, tuple[int, int] | None, bool]]:
    """Every turn's chunks until nothing is planned any more; each job ends when it is complete."""
    chunks = []
    while planned := phase.plan():
        for chunk in planned:
            phase.dispatched(chunk)
            chunks.append((chunk.job.key.request, chunk.begin, chunk.end, chunk.send, chunk.last))
            if chunk.job.complete:
                phase.end(chunk.job, fence=0)
    return chunks


def test_what_is_cached_is_not_computed_and_what_the_other_side_has_is_not_sent() -> None:
    phase = _prefill()
    phase.add(_job("cold", 40, order=0))
    _all_chunks(phase)
    phase.add(_job("warm", 42, order=1, cached_tokens=40))
    assert _all_chunks(phase) == [("warm", 40, 42, (40, 42), True)]


def test_cached_pages_that_the_other_side_lacks_follow_the_first_token_a_chunk_at_a_time() -> None:
    phase = _prefill()
    phase.add(_job("cold", 40, order=0))
    _all_chunks(phase)
    phase.add(_job("warm", 42, order=1))
    assert _all_chunks(phase) == [
        ("warm", 40, 42, (0, 16), True),
        ("warm", 42, 42, (16, 32), False),
        ("warm", 42, 42, (32, 42), False),
    ]


def test_the_queue_is_told_without_what_is_cached() -> None:
    phase = _prefill()
    phase.add(_job("cold", 40, order=0))
    assert phase.queued_tokens == 40
    _all_chunks(phase)
    phase.add(_job("warm", 42, order=1))
    phase.add(_job("other", 20, order=2, first=50))
    assert phase.queued_tokens == 2 + 20


def test_a_prompt_that_another_is_computing_waits_for_it() -> None:
    phase = _prefill()
    phase.add(_job("first", 30, order=0))
    phase.add(_job("equal", 30, order=1, decode="decode.1"))
    phase.add(_job("other", 8, order=2, first=50))
    assert _all_chunks(phase) == [
        ("first", 0, 16, (0, 16), False),
        ("first", 16, 30, (16, 30), True),
        ("equal", 28, 30, (0, 16), True),
        ("other", 0, 8, (0, 8), True),
        ("equal", 30, 30, (16, 30), False),
    ]


def _reserve(
    name: str, num_tokens: int, choices: tuple[int, ...] = (0,), order: int = 0, prefix: PrefixChain | None = None
) -> Reserve:
    return Reserve(
        epoch=1,
        key=Key(name, 0, 1),
        choices=choices,
        order=order,
        num_tokens=num_tokens,
        prompt_tokens=num_tokens,
        reserve_tokens=1,
        prefix=prefix,
        deadline=1.0,
    )


def _ready(name: str, begin: int, end: int, sequence: int = 0, moved_at: float = 0.0) -> KvChunkReady:
    return KvChunkReady(
        key=Key(name, 0, 1), sequence=sequence, token_start=begin, token_end=end, handle=1,
        sender=Address("prefill.0"), moved_at=moved_at,
    )  # fmt: skip


def _start(name: str, num_tokens: int, starts: tuple[tuple[int, int], ...]) -> StartDecode:
    return StartDecode(
        key=Key(name, 0, 1),
        order=0,
        starts=starts,
        tokens=(1,) * num_tokens,
        prompt_tokens=num_tokens,
        params=PARAMS,
        sender=Address("prefill.0"),
        deadline=1.0,
    )


def _decode() -> tuple[DecodePhase, PagePool, list[int]]:
    pool, rows = PagePool(SPEC.num_pages), list(range(SPEC.num_rows))
    return DecodePhase(SPEC, pool, rows), pool, rows


def test_choices_share_full_pages_and_each_gets_the_tail() -> None:
    phase, _, _ = _decode()
    lease = phase.reserve(_reserve("a", 6, choices=(0, 1)))
    assert isinstance(lease, Lease)
    insert = phase.place(_ready("a", 0, 6))
    assert insert is not None
    assert insert.source == (0, 1, 1)
    assert insert.pages == (lease.shared[0], lease.own[0][0], lease.own[1][0])


def test_decode_starts_when_coverage_is_complete_and_not_before() -> None:
    phase, _, _ = _decode()
    phase.reserve(_reserve("a", 10))
    assert phase.start(_start("a", 10, ((0, 42),)), fence=1) == ()
    assert phase.place(_ready("a", 8, 10, sequence=1)) is not None
    assert phase.begin_covered(1) == [], "a hole at the beginning"
    assert phase.place(_ready("a", 0, 8)) is not None
    assert phase.place(_ready("a", 0, 8)) is None, "a duplicate is not wanted"
    (row,) = phase.begin_covered(1)
    assert (row.length, row.last_token, row.output) == (10, 42, (42,))
    assert not phase.leases


def test_a_sequence_knows_when_the_last_of_its_kv_came() -> None:
    phase, _, _ = _decode()
    phase.reserve(_reserve("a", 10, choices=(0, 1)))
    phase.start(_start("a", 10, ((0, 42), (1, 43))), fence=1)
    phase.place(_ready("a", 8, 10, sequence=1, moved_at=7.0))
    phase.place(_ready("a", 0, 8, moved_at=5.0))
    phase.begin_covered(1)
    assert [sequence.kv_at for sequence in phase.sequences.values()] == [7.0, 7.0], "they may come in any order"


def test_a_lease_pins_what_is_cached_and_covers_it() -> None:
    phase, pool, _ = _decode()
    prefix = chain_of((1,) * 10, SPEC.page_size)
    first = phase.reserve(_reserve("a", 10, prefix=prefix))
    assert first is not None
    assert first.cached_tokens == 0
    phase.place(_ready("a", 0, 10))
    second = phase.reserve(_reserve("b", 10, choices=(0, 1), prefix=prefix))
    assert second is not None
    assert (second.cached_tokens, second.shared) == (8, first.shared)
    assert phase.place(_ready("b", 8, 10)) is not None
    assert second.complete()
    phase.start(_start("b", 10, ((0, 1), (1, 2))), fence=0)
    assert [row.pages[:2] for row in phase.begin_covered(0)] == [first.shared, first.shared]
    pool.check_integrity()


def test_choices_that_ended_in_prefill_give_their_part_back() -> None:
    phase, pool, rows = _decode()
    phase.reserve(_reserve("a", 6, choices=(0, 1)))
    phase.place(_ready("a", 0, 6))
    assert phase.start(_start("a", 6, ((1, 42),)), fence=0) == (0,)
    phase.begin_covered(0)
    assert (len(phase.sequences), len(rows)) == (1, SPEC.num_rows - 1)
    assert pool.counts().held == 2
    pool.check_integrity()


def test_all_ended_in_prefill_waits_for_no_chunk() -> None:
    phase, pool, rows = _decode()
    phase.reserve(_reserve("a", 6))
    assert phase.start(_start("a", 6, ()), fence=0) == (0,)
    assert pool.available_pages == SPEC.usable_pages
    assert len(rows) == SPEC.num_rows
    assert phase.place(_ready("a", 0, 6)) is None


def _run(phase: DecodePhase, name: str, num_tokens: int, order: int) -> None:
    phase.reserve(_reserve(name, num_tokens, order=order))
    phase.place(_ready(name, 0, num_tokens))
    phase.start(_start(name, num_tokens, ((0, 1),)), fence=0)
    phase.begin_covered(0)


def test_growth_writes_the_page_table_and_the_youngest_makes_room() -> None:
    phase, pool, _ = _decode()
    _run(phase, "old", 31, order=1)
    _run(phase, "young", 31, order=2)
    assert pool.available_pages == 0
    (old, young), writes, preempted = phase.plan(1)
    assert (writes, preempted) == ([], [])
    for sequence in (old, young):
        phase.dispatched(sequence)
    chosen, writes, preempted = phase.plan(2)
    assert (chosen, writes, preempted) == ([], [], [young]), "the oldest sits out until the pages retire"
    pool.retire(2)
    chosen, writes, preempted = phase.plan(3)
    assert chosen == [old]
    assert writes == [PageWrite(old.row, 8, old.pages[8])]


def test_what_comes_twice_is_taken_once() -> None:
    phase, _, _ = _decode()
    phase.reserve(_reserve("a", 10, choices=(0, 1)))
    assert phase.start(_start("a", 10, ((0, 42),)), fence=1) == (1,)
    assert phase.start(_start("a", 10, ((0, 42),)), fence=1) == (), "its end was told before"
    assert phase.group(Key("a", 0, 1)) == (0,)
    phase.place(_ready("a", 0, 8))
    assert not phase.wants(_ready("a", 4, 10)), "a chunk that overlaps is of another cut"
    assert phase.wants(_ready("a", 8, 10))
    phase.place(_ready("a", 8, 10))
    assert phase.held()[0][0].choices == (0,)
    phase.begin_covered(1)
    assert phase.start(_start("a", 10, ((0, 42),)), fence=1) == ()
    assert not phase.wants(_ready("a", 8, 10))
    assert phase.held()[1][0].choices == (0,)


def test_a_dead_decode_workers_chunks_are_given_up_and_its_next_lifes_are_not() -> None:
    phase, dropped = _prefill(), list[int]()
    phase.add(_job("a", 8, order=0))
    (chunk,) = phase.plan()
    phase.stage(chunk, handle=7)
    phase.forget_decode(Address("decode.0"), 0, dropped.append)
    phase.forget_decode(Address("decode.1"), 1, dropped.append)
    assert (dropped, phase.credits_used) == ([], 1)
    phase.forget_decode(Address("decode.0"), 1, dropped.append)
    assert (dropped, phase.credits_used) == ([7], 0)


def test_leases_and_staged_chunks_run_out() -> None:
    decode, _, _ = _decode()
    lease = decode.reserve(_reserve("a", 6))
    assert decode.next_deadline() == 1.0
    assert decode.expired(0.9) == []
    assert decode.expired(1.0) == [lease]
    phase, dropped = _prefill(staged=1), list[int]()
    phase.add(_job("a", 8, order=0))
    (chunk,) = phase.plan()
    phase.stage(chunk, handle=7)
    phase.sweep(0.9, dropped.append)
    assert (dropped, phase.credits_used) == ([], 1)
    phase.sweep(1.0, dropped.append)
    assert (dropped, phase.credits_used, phase.next_deadline()) == ([7], 0, None)


def test_finish_of() -> None:
    assert finish_of(PARAMS, 99, 0) == "stop"
    assert finish_of(PARAMS, 5, 18) is None
    assert finish_of(PARAMS, 5, 19) == "length"
