"""The scheduler's pure choices."""

import msgspec

from actors.leases import lease_pages
from actors.messages import Address, Admit, Inventory, Key, PrefixesChanged, WorkerUp
from actors.placement import (
    WorkerView,
    cached_tokens,
    choose_decode,
    choose_prefill,
    has_path,
    need,
    never_fits,
)
from runtime.prefix_cache import chain_of
from runtime.sampling_params import SamplingParams
from runtime.topology import Role


def _view(name: str, role: Role, pages: int, rows: int = 8, queued: int = 0) -> WorkerView:
    inventory = Inventory(
        worker=Address(name),
        epoch=1,
        version=1,
        available_pages=pages,
        free_rows=rows,
        num_groups=0,
        queued_prefill_tokens=queued,
    )
    view = WorkerView(WorkerUp(inventory=inventory, role=role, page_size=16, usable_pages=100, num_rows=rows), 0.0)
    view.prefill_tokens = queued
    return view


def _admit(num_tokens: int = 40, num_choices: int = 1) -> Admit:
    return Admit(
        key=Key("r", 0, 1),
        choices=tuple(range(num_choices)),
        order=0,
        tokens=(1,) * num_tokens,
        prompt_tokens=num_tokens,
        params=SamplingParams(seed=0, max_tokens=64),
        deadline=1.0,
    )


def _changed(
    view: WorkerView, added: tuple[bytes, ...], removed: tuple[bytes, ...] = (), *, skip: int = 0, whole: bool = False
) -> PrefixesChanged:
    version = view.prefixes_version + 1 + skip
    return PrefixesChanged(worker=view.address, epoch=1, version=version, added=added, removed=removed, whole=whole)


def test_lease_pages_share_full_prompt_pages_only() -> None:
    assert lease_pages(16, 32, 1, 3) == (2, 1), "a full prompt: each choice needs room to grow"
    assert lease_pages(16, 33, 15, 3) == (2, 1), "tail and growth in one page"
    assert lease_pages(16, 33, 16, 3) == (2, 2)
    assert lease_pages(16, 5, 1, 1) == (0, 1)


def test_need_counts_shared_pages_once() -> None:
    assert need(_view("decode.0", "decode", 10), _admit(40, num_choices=3), 20) == (2 + 3 * 2, 3)


def test_the_emptiest_decode_worker_wins_and_prefill_workers_never() -> None:
    views = [_view("prefill.0", "prefill", 99), _view("decode.0", "decode", 20), _view("decode.1", "decode", 30)]
    chosen = choose_decode(views, _admit(40), 16, None)
    assert chosen is not None
    assert chosen.address == "decode.1"
    chosen.pending[Key("other", 0, 1)] = (15, 1)
    again = choose_decode(views, _admit(40), 16, None)
    assert again is not None
    assert again.address == "decode.0", "what was asked for already counts"


def test_nobody_fits() -> None:
    assert choose_decode([_view("decode.0", "decode", 2)], _admit(40), 16, None) is None
    assert choose_decode([_view("decode.0", "decode", 50, rows=1)], _admit(40, num_choices=2), 16, None) is None
    dead = _view("decode.0", "decode", 50)
    dead.alive = False
    assert choose_decode([dead], _admit(40), 16, None) is None


def test_prefill_goes_to_the_shortest_queue_or_stays_on_a_mixed_worker() -> None:
    busy, free = _view("prefill.0", "prefill", 9, queued=500), _view("prefill.1", "prefill", 9, queued=10)
    decode, mixed = _view("decode.0", "decode", 9), _view("mixed.0", "mixed", 9)
    assert choose_prefill([busy, free, decode], decode, _admit(), None) is free
    assert choose_prefill([mixed], mixed, _admit(), None) is mixed
    assert choose_prefill([decode], decode, _admit(), None) is None


def test_a_cached_prefix_outweighs_as_much_load_as_it_saves() -> None:
    admit = _admit(40)
    prefix = chain_of(admit.tokens, 16)
    warm, cold = _view("prefill.0", "prefill", 90), _view("prefill.1", "prefill", 90)
    warm.change_prefixes(_changed(warm, prefix.digests))
    assert cached_tokens(warm, admit, prefix) == 32
    assert cached_tokens(warm, _admit(32), chain_of((1,) * 32, 16)) == 16, "the last token is computed anew"
    for queued, chosen in ((0, warm), (31, warm), (33, cold)):
        warm.prefill_tokens = queued
        assert choose_prefill([cold, warm], _view("decode.0", "decode", 9), admit, prefix) is chosen
    for free, wins in ((90, True), (89, True), (87, False)):
        warm, cold = _view("decode.0", "decode", free), _view("decode.1", "decode", 90)
        warm.change_prefixes(_changed(warm, prefix.digests))
        assert choose_decode([cold, warm], admit, 1, prefix) is (warm if wins else cold)
    warm.change_prefixes(_changed(warm, (), prefix.digests[:1]))
    assert cached_tokens(warm, admit, prefix) == 0, "a chain is worth what it has from its beginning"


def test_pages_of_a_prefix_in_use_are_not_needed_again_unless_the_worker_refused() -> None:
    view, admit = _view("decode.0", "decode", 2), _admit(40)
    prefix = chain_of(admit.tokens, 16)
    assert need(view, admit, 1, prefix) == (3, 1)
    assert choose_decode([view], admit, 1, prefix) is None
    view.change_prefixes(_changed(view, prefix.digests))
    assert need(view, admit, 1, prefix) == (1, 1)
    assert choose_decode([view], admit, 1, prefix) is view
    view.refuse(admit.key, view.inventory)
    assert choose_decode([view], admit, 1, prefix) is None, "the prefix was cached without an owner"
    view.update(msgspec.structs.replace(view.inventory, version=2))
    assert choose_decode([view], admit, 1, prefix) is view, "news are worth another try"


def test_a_mixed_worker_counts_what_it_has_to_prefill() -> None:
    busy, free = _view("mixed.0", "mixed", 90, queued=100), _view("mixed.1", "mixed", 88)
    assert choose_decode([busy, free], _admit(), 1, None) is free


def test_what_never_fits_is_told_with_its_numbers() -> None:
    reason = never_fits([_view("decode.0", "decode", 0)], _admit(16 * 101), 16)
    assert reason is not None
    assert "100 pages" in reason
    assert never_fits([_view("decode.0", "decode", 0)], _admit(16), 16) is None, "full now is not full forever"


def test_a_path_needs_both_phases() -> None:
    assert has_path(["mixed"])
    assert has_path(["prefill", "decode", "decode"])
    assert not has_path(["decode"])
    assert not has_path([])


def test_changes_of_prefixes_that_do_not_follow_are_ignored_until_all_are_told() -> None:
    view = _view("decode.0", "decode", 50)
    view.change_prefixes(_changed(view, (b"a",)))
    view.change_prefixes(_changed(view, (b"c",), skip=1))
    assert (view.prefixes, view.prefixes_version) == ({b"a"}, 1), "one was missed"
    view.change_prefixes(_changed(view, (b"b", b"c"), skip=2, whole=True))
    assert (view.prefixes, view.prefixes_version) == ({b"b", b"c"}, 4)
    view.change_prefixes(_changed(view, (b"x",), skip=-2))
    assert view.prefixes == {b"b", b"c"}, "an old one"


def test_an_inventory_that_was_overtaken_or_is_of_another_life_is_no_news() -> None:
    view = _view("decode.0", "decode", 50)
    news = msgspec.structs.replace(view.inventory, version=3, available_pages=40)
    view.update(news)
    view.update(msgspec.structs.replace(news, version=2, available_pages=30))
    view.update(msgspec.structs.replace(news, version=9, epoch=2, available_pages=20))
    assert view.available_pages == 40
