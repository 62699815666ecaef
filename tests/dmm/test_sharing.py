"""Pages that share a frame: nobody notices, whoever writes first and whoever leaves first."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.dmm.errors import CannotRetire, OutOfFrames
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policy import Policy
from emu.dmm.retire import retire_frame
from emu.engine import events
from tests.dmm.model import GFNS, KINDS, POOL, Side, fill_unused_with_junk, make_sides
from tests.dmm.stub import ALIASES, CODE, DATA, HLT

SAME = b"the same in all of them " * 100
READ_ONLY = Intent.READ | Intent.EXECUTE
MMUS = [("shadow", "shadow"), ("shadow", "nested"), ("nested", "nested")]


def gpa(gfn: int) -> int:
    return gfn * PAGE_SIZE


def fill(side: Side, *gfns: int) -> None:
    for gfn in gfns:
        side.vm.memory.write(gpa(gfn), SAME)
        side.write(gfn, 0, SAME)


def merge(*pages: tuple[Side, int]) -> int:
    """Let all ``pages`` use the frame of the first; returns its mfn."""
    mfn = pages[0][0].p2m.mfn(pages[0][1])
    for side, gfn in pages[1:]:
        assert side.dmm.share(gfn, mfn)
    assert {(side.p2m.mfn(gfn), side.p2m.type(gfn)) for side, gfn in pages} == {(mfn, PageType.SHARED)}
    return mfn


def sizes(*sides: Side) -> list[tuple[int, int]]:
    return [(side.pool.size, side.pool.spare) for side in sides]


def use_up(side: Side) -> None:
    """Touch pages until the pool has no spare frame."""
    for gfn in reversed(range(GFNS)):
        if side.pool.spare:
            side.dmm.populate(gfn)
    assert not side.pool.spare


@pytest.fixture(params=MMUS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> list[Side]:
    return make_sides(*((mmu, "4level") for mmu in request.param))


@pytest.fixture(params=KINDS, ids="-".join)
def alone(request: pytest.FixtureRequest) -> Side:
    return make_sides(request.param)[0]


# --- within one VM ---


def test_two_pages_with_one_frame_until_one_is_stored_to(alone: Side) -> None:
    fill(alone, DATA, DATA + 1)
    alone.stub.load(gpa(DATA))
    spare = alone.pool.spare
    mfn = merge((alone, DATA), (alone, DATA + 1))
    assert alone.pool.spare == spare + 1
    assert alone.stub.load(gpa(DATA)) == alone.stub.load(gpa(DATA + 1)) == SAME[0]
    alone.stub.store(gpa(DATA) + 1, 0xEE)
    alone.write(DATA, 1, b"\xee")
    assert alone.p2m.type(DATA) is PageType.RAM and alone.p2m.mfn(DATA) != mfn
    assert alone.stub.load(gpa(DATA + 1) + 1) == SAME[1]
    alone.stub.store(gpa(DATA + 1) + 2, 0xDD)  # the last user needs no copy
    alone.write(DATA + 1, 2, b"\xdd")
    assert (alone.p2m.type(DATA + 1), alone.p2m.mfn(DATA + 1)) == (PageType.RAM, mfn)
    assert alone.pool.spare <= spare
    alone.check()


def test_sharing_and_its_end_are_events(alone: Side) -> None:
    seen: list[events.Event] = []
    alone.vm.events.listen(seen.append)
    fill(alone, DATA, DATA + 1, DATA + 2)
    before = [alone.p2m.mfn(gfn) for gfn in (DATA, DATA + 1, DATA + 2)]
    merge((alone, DATA), (alone, DATA + 1), (alone, DATA + 2))
    alone.vm.memory.write(gpa(DATA), b"!")
    after = alone.p2m.mfn(DATA)
    alone.dmm.unshare(DATA + 1)
    alone.dmm.unshare(DATA + 2)
    alone.vm.events.drain()
    shares = [(event.gfn, event.before, event.after, event.users) for event in seen if isinstance(event, events.Share)]
    assert shares == [(DATA + 1, before[1], before[0], 2), (DATA + 2, before[2], before[0], 3)]
    breaks = [(event.gfn, event.before, event.after) for event in seen if isinstance(event, events.Unshare)]
    assert breaks == [
        (DATA, before[0], after),
        (DATA + 1, before[0], alone.p2m.mfn(DATA + 1)),
        (DATA + 2, before[0], before[0]),
    ]


def test_tables_and_code_share_frames_with_data(alone: Side) -> None:
    """In both directions; the walk that sets an accessed bit, and the store that maps a page, break it."""
    alone.stub.store(gpa(DATA), 1)
    alone.stub.store(gpa(DATA + 1), 2)
    for gfn in [*alone.stub.tables, CODE]:
        for first, second in ((gfn, DATA + 3), (DATA + 3, gfn)):
            alone.vm.memory.write(gpa(DATA + 3), alone.vm.memory.read(gpa(gfn), PAGE_SIZE))
            before = alone.vm.memory.read(gpa(gfn), PAGE_SIZE)
            merge((alone, first), (alone, second))
            assert alone.stub.load(gpa(DATA)) == 1
            assert alone.stub.load(gpa(DATA + 2)) == 0  # sets accessed bits, if there are any
            if alone.stub.tables:
                alone.stub.map(ALIASES, DATA + 1)
                assert alone.stub.load(gpa(ALIASES)) == 2
                alone.stub.map(ALIASES, DATA)
                alone.stub.store(gpa(ALIASES), 1)
            assert alone.vm.memory.read(gpa(DATA + 3), PAGE_SIZE) == before
            alone.discard(DATA + 2)
            alone.vm.audit()


def test_a_store_into_the_running_shared_code(alone: Side) -> None:
    code = bytes.fromhex("8807 90 f4")  # mov [rdi], al; nop; hlt
    for gfn in (DATA, DATA + 1):
        alone.vm.memory.write(gpa(gfn) + 100, code)
    mfn = merge((alone, DATA), (alone, DATA + 1))
    for gfn in (DATA, DATA + 1):
        alone.vm.cpu.rdi, alone.vm.cpu.rax = gpa(gfn) + 102, HLT
        alone.stub.execute(gpa(gfn) + 100)
        assert alone.vm.cpu.rip == gpa(gfn) + 103  # the new HLT, not the old one
        assert alone.p2m.type(gfn) is PageType.RAM
        other = DATA + 1 if gfn == DATA else DATA
        assert alone.vm.memory.read(gpa(other) + 102, 1) == (b"\x90" if gfn == DATA else b"\xf4")
    assert alone.p2m.mfn(DATA + 1) == mfn


def test_a_page_may_move_from_one_shared_frame_to_another(alone: Side) -> None:
    fill(alone, *range(DATA, DATA + 4))
    first = merge((alone, DATA), (alone, DATA + 1))
    second = merge((alone, DATA + 2), (alone, DATA + 3))
    assert alone.dmm.share(DATA + 1, second)
    assert alone.vm.machine.m2p.users(first) == [(0, DATA)]
    assert alone.dmm.share(DATA, second)
    assert alone.vm.machine.m2p.count(first) == 0 and first in alone.pool.spare_frames()
    assert alone.vm.machine.m2p.users(second) == [(0, DATA + 2), (0, DATA + 3), (0, DATA + 1), (0, DATA)]
    alone.check()


# --- what is not shared ---


def test_only_equal_pages_are_shared(pair: list[Side]) -> None:
    first, second = pair
    fill(first, DATA)
    fill(second, DATA)
    second.vm.memory.write(gpa(DATA) + PAGE_SIZE - 1, b"!")
    before = second.p2m.mfn(DATA)
    assert not second.dmm.share(DATA, first.p2m.mfn(DATA))
    assert (second.p2m.mfn(DATA), second.p2m.type(DATA), first.p2m.type(DATA)) == (before, PageType.RAM, PageType.RAM)
    assert first.dmm.share(DATA, first.p2m.mfn(DATA))  # what it uses already
    assert first.p2m.type(DATA) is PageType.RAM


def test_pages_whose_rights_are_withheld_are_not_shared(pair: list[Side]) -> None:
    first, second = pair
    fill(first, DATA)
    fill(second, DATA)
    for side in pair:
        side.dmm.protect(DATA, READ_ONLY)
        assert not second.dmm.share(DATA, first.p2m.mfn(DATA))
        assert first.p2m.type(DATA) is second.p2m.type(DATA) is PageType.RAM
        side.dmm.resolve(DATA, Intent.WRITE)
    assert second.dmm.share(DATA, first.p2m.mfn(DATA))


def test_a_page_that_is_being_stored_is_not_shared(pair: list[Side], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair
    for side in pair:
        side.attach("swap")
        fill(side, DATA)
    assert first.swap
    keep = first.swap.keep

    def meddle(gfn: int, contents: bytes) -> None:
        assert not second.dmm.share(DATA, first.p2m.mfn(DATA))
        with pytest.raises(ValueError, match="cannot change"):
            first.dmm.share(DATA, second.p2m.mfn(DATA))
        keep(gfn, contents)

    monkeypatch.setattr(first.swap, "keep", meddle)
    first.dmm.evict(DATA, first.swap)
    assert second.p2m.type(DATA) is PageType.RAM
    for side in pair:
        side.check()


def test_what_cannot_be_shared_is_refused(pair: list[Side]) -> None:
    first, second = pair
    fill(first, DATA)
    with pytest.raises(ValueError, match="not resident"):
        second.dmm.share(DATA, first.p2m.mfn(DATA))
    with pytest.raises(ValueError, match="nobody uses"):
        first.dmm.share(DATA, min(first.pool.spare_frames()))
    fill(second, DATA)
    merge((first, DATA), (second, DATA))
    for side in pair:
        with pytest.raises(ValueError, match="writable"):
            side.dmm.protect(DATA, Intent.WRITE)
        assert side.p2m.rights(DATA) == READ_ONLY
        side.check()


# --- across VMs ---


@pytest.mark.parametrize("writer", [0, 1])
@pytest.mark.parametrize("by", ["store", "write"])
def test_who_writes_gets_a_frame_of_its_own(pair: list[Side], writer: int, by: str) -> None:
    for side in pair:
        fill(side, DATA, DATA + 1)
        side.stub.load(gpa(DATA))
    merge(*((side, gfn) for side in pair for gfn in (DATA, DATA + 1)))
    before = [side.pool.size for side in pair]
    side, other = pair[writer], pair[1 - writer]
    for value, gfn in ((1, DATA), (2, DATA + 1)):
        if by == "store":
            side.stub.store(gpa(gfn) + 5, value)
        else:
            side.vm.memory.write(gpa(gfn) + 5, bytes([value]))
        side.write(gfn, 5, bytes([value]))
        assert side.stub.load(gpa(gfn) + 5) == value
        assert other.stub.load(gpa(gfn) + 5) == SAME[5]
        for each in pair:
            each.check()
    assert other.p2m.mfn(DATA) == other.p2m.mfn(DATA + 1)
    assert [side.pool.size for side in pair] == before


@pytest.mark.parametrize("mode", ["32", "pae", "4level"])
@pytest.mark.parametrize("mmus", MMUS, ids="-".join)
def test_two_guests_that_have_all_pages_in_common(mmus: tuple[str, str], mode: str) -> None:
    """Tables and code too: only what they write becomes their own."""
    pair = make_sides(*((mmu, mode) for mmu in mmus))
    for side in pair:
        side.stub.load(gpa(DATA))
    first, second = pair
    for gfn in [CODE, *first.stub.tables, DATA]:
        merge((first, gfn), (second, gfn))
    for side, value in ((first, 1), (second, 2)):
        side.stub.store(gpa(DATA + 1), value)
        side.stub.map(ALIASES, DATA + value)
        side.stub.store(gpa(ALIASES) + 9, value)
    for side, value in ((first, 1), (second, 2)):
        assert side.stub.load(gpa(DATA + 1)) == value
        assert side.stub.load(gpa(DATA + value) + 9) == value
        side.vm.audit()
    assert first.p2m.mfn(CODE) == second.p2m.mfn(CODE)
    assert first.p2m.mfn(first.stub.tables[-1]) != second.p2m.mfn(first.stub.tables[-1])


# --- whose frame it is ---


def test_when_the_owner_leaves_a_sharer_pays_with_a_spare_frame(pair: list[Side]) -> None:
    first, second = pair
    for side in pair:
        fill(side, DATA)
    mfn = merge((first, DATA), (second, DATA))
    assert mfn in first.pool.used_frames()
    before = sizes(first, second)
    first.discard(DATA)
    assert mfn in second.pool.used_frames() and mfn not in first.pool.used_frames()
    assert sizes(first, second) == [(before[0][0], before[0][1] + 1), (before[1][0], before[1][1] - 1)]
    second.check()


def test_a_lent_frame_is_called_in_when_its_owner_needs_one(pair: list[Side]) -> None:
    first, second = pair
    for side in pair:
        fill(side, DATA)
    mfn = merge((first, DATA), (second, DATA))
    use_up(second)
    first.discard(DATA)
    assert mfn in first.pool.used_frames()  # nobody could pay for it
    use_up(first)
    absent = next(gfn for gfn in range(DATA, GFNS) if not first.dmm.is_resident(gfn))
    with pytest.raises(OutOfFrames) as caught:
        first.dmm.populate(absent)
    assert (caught.value.vm, caught.value.gfn, caught.value.pool) == (first.vm.name, absent, POOL)
    second.attach("swap")
    first.dmm.populate(absent)
    assert mfn in second.pool.used_frames() or second.p2m.mfn(DATA) == NO_FRAME
    assert [side.pool.size for side in pair] == [POOL, POOL]
    for side in pair:
        side.check()


def test_a_pool_that_shrinks_calls_in_what_it_lent(pair: list[Side]) -> None:
    first, second = pair
    for side in pair:
        fill(side, DATA)
    mfn = merge((first, DATA), (second, DATA))
    use_up(second)
    first.discard(DATA)
    second.discard(next(gfn for gfn in reversed(range(DATA + 1, GFNS)) if second.dmm.is_resident(gfn)))
    first.dmm.shrink(POOL)
    assert first.pool.size == 0 and mfn in second.pool.used_frames()
    second.check()


def test_the_last_user_of_a_foreign_frame_moves_to_one_of_its_own(pair: list[Side]) -> None:
    first, second = pair
    for side in pair:
        fill(side, DATA)
        side.stub.load(gpa(DATA))
    mfn = merge((first, DATA), (second, DATA))
    use_up(second)
    first.discard(DATA)
    second.discard(next(gfn for gfn in reversed(range(DATA + 1, GFNS)) if second.dmm.is_resident(gfn)))
    second.stub.store(gpa(DATA), 1)
    second.write(DATA, 0, b"\1")
    assert second.p2m.mfn(DATA) != mfn and mfn in first.pool.spare_frames()
    second.check()


@pytest.mark.parametrize("operation", ["unshare", "resolve", "write", "store"])
def test_without_a_frame_for_the_copy_everything_stays(pair: list[Side], operation: str) -> None:
    first, second = pair
    for side in pair:
        fill(side, DATA)
        side.stub.load(gpa(DATA))
    mfn = merge((first, DATA), (second, DATA))
    use_up(second)
    operations: dict[str, Callable[[], object]] = {
        "unshare": lambda: second.dmm.unshare(DATA),
        "resolve": lambda: second.dmm.resolve(DATA, Intent.WRITE),
        "write": lambda: second.vm.memory.write(gpa(DATA), b"x"),
        "store": lambda: second.stub.store(gpa(DATA), 1),
    }
    with pytest.raises(OutOfFrames) as caught:
        operations[operation]()
    assert (caught.value.vm, caught.value.gfn) == (second.vm.name, DATA)
    assert second.vm.machine.m2p.users(mfn) == [(0, DATA), (1, DATA)]
    second.check()
    second.attach("swap")
    operations[operation]()
    assert second.p2m.type(DATA) is PageType.RAM


class Mover(Policy):
    """Makes room in a way that concerns the very page that needs it."""

    name = "mover"

    def __init__(self, how: str) -> None:
        self._how = how
        self._kept: dict[int, bytes] = {}

    def make_room(self, frames: int) -> None:
        if self._how == "evict":
            self.dmm.evict(DATA, self)
        else:
            self.dmm.grow(2)
            self.dmm.remap(DATA)

    def keep(self, gfn: int, contents: bytes) -> None:
        self._kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        return self._kept[gfn]


@pytest.mark.parametrize("how", ["evict", "remap"])
@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_making_room_for_the_copy_moves_the_very_page(mmu: str, how: str) -> None:
    first, second = make_sides((mmu, "none"), (mmu, "none"), spare=2)
    for side in (first, second):
        fill(side, DATA)
        side.stub.load(gpa(DATA))
    merge((first, DATA), (second, DATA))
    use_up(first)
    first.dmm.attach(Mover(how))
    assert first.dmm.unshare(DATA) == first.p2m.mfn(DATA)
    assert first.p2m.type(DATA) is PageType.RAM and second.p2m.type(DATA) is PageType.SHARED
    for side in (first, second):
        assert side.stub.load(gpa(DATA)) == SAME[0]
        side.check()


# --- other changes to shared pages ---


def leave_by(side: Side, operation: str) -> None:
    if operation == "evict":
        swap = side.swap
        assert swap
        side.dmm.evict(DATA, swap)
    else:
        side.discard(DATA)


@pytest.mark.parametrize("first_to_leave", [0, 1])
@pytest.mark.parametrize("operation", ["evict", "discard"])
def test_the_others_stay(pair: list[Side], operation: str, first_to_leave: int) -> None:
    for side in pair:
        side.attach("swap")
        fill(side, DATA)
    before = sizes(*pair)
    mfn = merge(*((side, DATA) for side in pair))
    leaver, other = pair[first_to_leave], pair[1 - first_to_leave]
    leave_by(leaver, operation)
    assert other.p2m.mfn(DATA) == mfn and other.stub.load(gpa(DATA)) == SAME[0]
    for side in pair:
        side.check()
    leave_by(other, operation)
    assert not other.vm.machine.m2p.count(mfn)
    for side in pair:
        side.check()
        assert side.stub.load(gpa(DATA)) == side.contents[DATA][0]
    assert [size for size, _ in sizes(*pair)] == [size for size, _ in before]


@pytest.mark.parametrize("mover", [0, 1])
@pytest.mark.parametrize("operation", ["remap", "retire"])
def test_all_users_move_together(pair: list[Side], operation: str, mover: int) -> None:
    seen: list[list[events.Event]] = [[], []]
    for side, log in zip(pair, seen, strict=True):
        fill(side, DATA)
        side.stub.load(gpa(DATA))
        side.vm.events.listen(log.append)
    before = merge(*((side, DATA) for side in pair))
    for side in pair:
        side.stub.load(gpa(DATA))
    if operation == "remap":
        after = pair[mover].dmm.remap(DATA)
    else:
        retire_frame(pair[0].vm.machine, before)
        after = pair[0].p2m.mfn(DATA)
    assert after != before
    fill_unused_with_junk(pair[0].vm.machine)
    for side, log in zip(pair, seen, strict=True):
        assert (side.p2m.mfn(DATA), side.p2m.type(DATA)) == (after, PageType.SHARED)
        assert side.stub.load(gpa(DATA)) == SAME[0]
        side.vm.events.drain()
        remaps = [(event.gfn, event.before, event.after) for event in log if isinstance(event, events.Remap)]
        assert remaps == [(DATA, before, after)]
        side.check()


def test_retiring_a_lent_frame_is_its_users_business(pair: list[Side]) -> None:
    """The owner has no page in it, and no frame to spare; the sharer has."""
    first, second = pair
    machine = first.vm.machine
    for side in pair:
        fill(side, DATA)
    mfn = merge((first, DATA), (second, DATA))
    use_up(second)
    first.discard(DATA)
    use_up(first)
    with pytest.raises(CannotRetire) as caught:
        retire_frame(machine, mfn)
    assert caught.value.mfn == mfn and second.p2m.mfn(DATA) == mfn
    second.attach("swap")
    retire_frame(machine, mfn)
    assert not machine.m2p.count(mfn) and second.p2m.mfn(DATA) != mfn
    for side in pair:
        side.check()


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_vm_goes_and_leaves_the_shared_frames_to_the_others(pair: list[Side], leaver: int) -> None:
    for side in pair:
        fill(side, DATA, DATA + 1)
        side.stub.load(gpa(DATA))
    merge(*((side, gfn) for side in pair for gfn in (DATA, DATA + 1)))
    machine, gone, stays = pair[0].vm.machine, pair[leaver], pair[1 - leaver]
    gone.vm.close()
    assert stays.stub.load(gpa(DATA)) == SAME[0]
    assert machine.m2p.users(stays.p2m.mfn(DATA)) == [(stays.dmm.index, DATA), (stays.dmm.index, DATA + 1)]
    assert not (machine.memory.owner == gone.dmm.index).any()
    stays.stub.store(gpa(DATA), 1)
    stays.write(DATA, 0, b"\1")
    stays.check()


def test_pages_evicted_before_they_were_shared_need_not_be_stored_again(pair: list[Side]) -> None:
    seen: list[events.Event] = []
    for side in pair:
        side.attach("swap")
        fill(side, DATA)
        assert side.swap
        side.dmm.evict(DATA, side.swap)
        side.stub.load(gpa(DATA))
        side.vm.events.listen(seen.append)
    merge(*((side, DATA) for side in pair))
    for side in pair:
        assert side.swap
        side.dmm.evict(DATA, side.swap)
        side.vm.events.drain()
    evictions = [(event.became, event.stored) for event in seen if isinstance(event, events.Evict)]
    assert evictions == [(PageType.EVICTED, 0)] * 2
    for side in pair:
        assert side.stub.load(gpa(DATA)) == SAME[0]


def test_a_shared_page_can_be_pinned(pair: list[Side]) -> None:
    first, second = pair
    for side in pair:
        fill(side, DATA)
    first.dmm.pin(DATA)
    merge((first, DATA), (second, DATA))
    second.discard(DATA)
    assert first.dmm.is_resident(DATA)
    for side in pair:
        side.check()
