"""What is done to single pages, what it tells paging and policies, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.dmm.errors import OutOfFrames, PagePinned
from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import ALL_RIGHTS, Intent, PageType
from emu.engine import events
from tests.dmm.bench import FREE, GFNS, Bench, Keeper
from tests.dmm.stub import ALIASES, CODE, DATA, MODES


def test_populate_gives_zeros_or_the_image_and_all_rights(bench: Bench) -> None:
    assert bench.p2m.type(CODE) == PageType.IMAGE and bench.p2m.type(DATA) == PageType.EMPTY
    for gfn in (CODE, DATA):
        mfn = bench.dmm.populate(gfn)
        assert (bench.p2m.type(gfn), bench.p2m.mfn(gfn), bench.p2m.rights(gfn)) == (PageType.RAM, mfn, ALL_RIGHTS)
        assert bench.machine.memory.pages[mfn].tobytes() == bench.stub.image.page(gfn)
        assert bench.dmm.populate(gfn) == mfn


def test_a_frame_shows_nothing_of_its_former_user(bench: Bench) -> None:
    bench.vm.memory.write(DATA * PAGE_SIZE, b"secret" * 600)
    mfn = bench.p2m.mfn(DATA)
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.dmm.populate(DATA + 1) == mfn
    assert bench.vm.memory.read((DATA + 1) * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_remap_moves_contents_and_rights(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE + 7, 99)
    bench.dmm.protect(DATA, Intent.READ)
    before = bench.p2m.mfn(DATA)
    after = bench.dmm.remap(DATA)
    assert after != before and bench.p2m.mfn(DATA) == after and bench.p2m.rights(DATA) == Intent.READ
    assert before in bench.pool.spare_frames()
    assert bench.stub.load(DATA * PAGE_SIZE + 7) == 99


def test_evict_and_touch_again(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE + 7, 99)
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.p2m.mfn(DATA) == NO_FRAME and bench.dmm.space.contents.kept() == [DATA]
    assert bench.stub.load(DATA * PAGE_SIZE + 7) == 99
    assert bench.dmm.space.contents.kept() == [DATA] == list(bench.keeper.kept)  # a copy that is still good
    bench.dmm.discard(DATA)
    assert bench.dmm.space.contents.kept() == [] and not bench.keeper.kept


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_every_page_of_a_guest_can_be_evicted(mmu: str, mode: str) -> None:
    """Code and tables too, the root among them; what the guest then writes into its tables counts at once."""
    bench = Bench(mmu, mode)
    bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.stub.store((DATA + 1) * PAGE_SIZE, 2)
    for _ in range(3):
        for gfn in range(GFNS):
            if bench.p2m.type(gfn) == PageType.RAM:
                bench.dmm.evict(gfn, bench.keeper)
        assert bench.pool.used == 0
        assert bench.stub.load(DATA * PAGE_SIZE) == 1
        if bench.stub.tables:
            for gfn in (DATA, DATA + 1, DATA):
                bench.stub.map(ALIASES, gfn)
                assert bench.stub.load(ALIASES * PAGE_SIZE) == 1 + gfn - DATA
        bench.vm.audit()


@pytest.mark.parametrize(
    "operation",
    [
        lambda dmm, keeper: dmm.remap(DATA),
        lambda dmm, keeper: dmm.protect(DATA, Intent.READ),
        lambda dmm, keeper: dmm.evict(DATA, keeper),
        lambda dmm, keeper: dmm.remap(-1),
        lambda dmm, keeper: dmm.remap(GFNS),
        lambda dmm, keeper: dmm.populate(-1),
        lambda dmm, keeper: dmm.resolve(GFNS, Intent.READ),
        lambda dmm, keeper: dmm.shrink(-1),
        lambda dmm, keeper: dmm.grow(-1),
    ],
)
def test_what_cannot_be_done_is_refused(bench: Bench, operation: Callable[[DmmInterface, Keeper], None]) -> None:
    before = bench.state()
    with pytest.raises(ValueError):
        operation(bench.dmm, bench.keeper)
    assert bench.state() == before


def test_only_a_policy_in_force_can_keep_a_page(bench: Bench) -> None:
    bench.dmm.populate(DATA)
    with pytest.raises(ValueError, match="not attached"):
        bench.dmm.evict(DATA, Keeper())


def test_remap_when_room_is_made_by_evicting_the_very_page(bench: Bench) -> None:
    bench.dmm.grow(FREE)
    bench.vm.memory.write(0, b"first")
    bench.fill_pool()
    bench.keeper.victims = range(GFNS)  # gfn 0 goes first
    mfn = bench.dmm.remap(0)
    assert bench.p2m.mfn(0) == mfn and bench.vm.memory.read(0, 5) == b"first"
    bench.vm.audit()


def test_a_discarded_page_is_zero_when_it_is_touched_again(bench: Bench) -> None:
    gva = DATA * PAGE_SIZE + 5
    bench.stub.store(gva, 0x77)
    mfn, spare = bench.p2m.mfn(DATA), bench.pool.spare
    bench.dmm.discard(DATA)
    assert (bench.p2m.type(DATA), bench.pool.spare) == (PageType.EMPTY, spare + 1)
    bench.vm.events.drain()
    assert [event.mfn for event in bench.seen if isinstance(event, events.Discard)] == [mfn]
    assert bench.stub.load(gva) == 0


def test_every_kind_of_memory_can_be_discarded(bench: Bench) -> None:
    bench.vm.memory.write(DATA * PAGE_SIZE, b"kept")
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.p2m.type(CODE) is PageType.IMAGE
    for gfn in (DATA, CODE, DATA + 1):
        bench.dmm.discard(gfn)
        assert bench.p2m.type(gfn) is PageType.EMPTY
        assert bench.vm.memory.read(gfn * PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert not bench.keeper.kept and not bench.dmm.space.contents.kept()
    with pytest.raises(ValueError, match="no memory"):
        bench.dmm.discard(GFNS)


def evictions(bench: Bench) -> list[tuple[PageType, bool]]:
    """What each page became that was evicted, and whether it had to be stored."""
    bench.vm.events.drain()
    return [(PageType(event.became), bool(event.stored)) for event in bench.seen if isinstance(event, events.Evict)]


def test_a_page_that_nobody_stored_to_goes_back_where_it_came_from(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 7)
    bench.dmm.evict(DATA, bench.keeper)
    bench.keeper.fails = {"keep"}
    for gfn, kind in ((CODE, PageType.IMAGE), (DATA, PageType.EVICTED), (DATA + 1, PageType.EMPTY)):
        for _ in range(2):
            wanted = bench.stub.load(gfn * PAGE_SIZE)
            assert bench.p2m.origin(gfn) is kind and not bench.p2m.dirty(gfn)
            bench.dmm.evict(gfn, bench.keeper)
            assert bench.p2m.type(gfn) is kind
            assert bench.stub.load(gfn * PAGE_SIZE) == wanted
            bench.vm.audit()
    assert [stored for _, stored in evictions(bench)] == [True] + [False] * 6


@pytest.mark.parametrize("origin", [PageType.EMPTY, PageType.IMAGE, PageType.EVICTED])
def test_a_page_is_kept_once_it_is_stored_to(bench: Bench, origin: PageType) -> None:
    gfn = CODE if origin is PageType.IMAGE else DATA
    if origin is PageType.EVICTED:
        bench.stub.store(gfn * PAGE_SIZE + 3000, 1)
        bench.dmm.evict(gfn, bench.keeper)
    bench.stub.load(gfn * PAGE_SIZE)
    bench.stub.store(gfn * PAGE_SIZE + 3000, 2)
    assert (bench.p2m.origin(gfn), bench.p2m.dirty(gfn)) == (origin, True)
    bench.dmm.evict(gfn, bench.keeper)
    assert evictions(bench)[-1] == (PageType.EVICTED, True)
    assert bench.keeper.kept[gfn][3000] == 2 == bench.stub.load(gfn * PAGE_SIZE + 3000)


def test_a_page_of_zeros_needs_no_keeper(bench: Bench) -> None:
    """Not even where an older copy, which is no zeros, is kept."""
    bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.dmm.evict(DATA, bench.keeper)
    bench.stub.store(DATA * PAGE_SIZE, 0)
    bench.dmm.evict(DATA, bench.keeper)
    assert evictions(bench) == [(PageType.EVICTED, True), (PageType.EMPTY, False)]
    assert not bench.keeper.kept and bench.stub.load(DATA * PAGE_SIZE) == 0


def test_contents_that_a_policy_gave_an_empty_page_are_kept(bench: Bench) -> None:
    """They are clean, and could not be had from EMPTY again after the policy has gone."""
    bench.keeper.populate = lambda gfn, kind: b"\7" * PAGE_SIZE  # type: ignore[method-assign,assignment,return-value]
    bench.dmm.populate(DATA)
    bench.dmm.evict(DATA, bench.keeper)
    assert evictions(bench) == [(PageType.EVICTED, True)]


def test_a_clean_page_stays_with_the_policy_that_has_its_copy(bench: Bench) -> None:
    second = Keeper()
    bench.dmm.attach(second)
    bench.stub.store(DATA * PAGE_SIZE, 1)
    bench.dmm.evict(DATA, bench.keeper)
    bench.stub.load(DATA * PAGE_SIZE)
    bench.dmm.evict(DATA, second)
    assert set(bench.keeper.kept) == {DATA} and not second.kept
    bench.stub.store(DATA * PAGE_SIZE, 2)
    bench.dmm.evict(DATA, second)
    assert not bench.keeper.kept and second.kept[DATA][0] == 2  # the old copy is released
    assert bench.stub.load(DATA * PAGE_SIZE) == 2
    bench.dmm.detach(second)
    bench.dmm.evict(DATA, bench.keeper)
    assert bench.keeper.kept[DATA][0] == 2  # its copy went with the policy, so it had to be stored again


def test_a_pinned_page_keeps_a_frame_and_its_contents(bench: Bench) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 9)
    bench.dmm.evict(DATA, bench.keeper)
    bench.dmm.pin(DATA)
    bench.dmm.pin(DATA)
    for _ in range(2):
        before = bench.state()
        for operation in (lambda: bench.dmm.evict(DATA, bench.keeper), lambda: bench.dmm.discard(DATA)):
            with pytest.raises(PagePinned, match="vm: gfn 0x6 is pinned") as caught:
                operation()
            assert (caught.value.vm, caught.value.gfn) == ("vm", DATA)
            assert bench.state() == before
        assert not bench.dmm.is_evictable(DATA)
        bench.dmm.unpin(DATA)
    assert bench.dmm.is_evictable(DATA)
    bench.dmm.evict(DATA, bench.keeper)
    assert not bench.dmm.is_evictable(DATA)


def test_a_pinned_page_can_move(bench: Bench) -> None:
    bench.dmm.pin(DATA)
    before = bench.p2m.mfn(DATA)
    assert bench.dmm.remap(DATA) != before
    before = bench.p2m.mfn(DATA)
    bench.dmm.retire(before)
    assert bench.p2m.mfn(DATA) not in (before, NO_FRAME)


def test_a_pin_that_finds_no_frame_pins_nothing(bench: Bench) -> None:
    bench.fill_pool()
    with pytest.raises(OutOfFrames):
        bench.dmm.pin(GFNS - 1)
    bench.dmm.discard(GFNS - 1)
