"""No VM reads what another one wrote, whichever way a frame went from one to the other."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from emu.addr import PAGE_SIZE
from emu.dmm.p2m import PageType
from emu.dmm.retire import retire_frame
from emu.engine.ram import Purpose
from emu.mmu.paging import ShadowPaging
from tests.dmm.model import ENOUGH, GFNS, Side, make_sides
from tests.dmm.stub import ALIASES, DATA

SECRET = bytes([0xA7, 0xB3])  # in no image, and no page of the other VM has it
MMUS = [("shadow", "shadow"), ("shadow", "nested"), ("nested", "shadow"), ("nested", "nested")]


def gpa(gfn: int) -> int:
    return gfn * PAGE_SIZE


def secret(gfn: int) -> bytes:
    return (SECRET + bytes([gfn, 0x5C])) * (PAGE_SIZE // 4)


def fill_with_secrets(side: Side, gfns: range = range(DATA, GFNS)) -> None:
    for gfn in gfns:
        if side.pool.spare or side.dmm.is_resident(gfn):
            side.vm.memory.write(gpa(gfn), secret(gfn))
            side.write(gfn, 0, secret(gfn))
            side.stub.load(gpa(gfn))


def touch_everything(side: Side) -> None:
    """Read every page from within and without, store into it, and look for secrets wherever the VM has a frame."""
    for gfn in range(GFNS):
        expected = side.contents[gfn][8]
        if side.is_free_to_change(gfn):
            assert side.stub.load(gpa(gfn) + 8) == expected
        assert SECRET not in side.vm.memory.read(gpa(gfn), PAGE_SIZE)
        if gfn >= DATA:
            side.stub.store(gpa(gfn) + 8, gfn)
            side.write(gfn, 8, bytes([gfn]))
    memory = side.vm.machine.memory
    for gfn in side.p2m.resident().tolist():
        assert SECRET not in memory.pages[side.p2m.mfn(gfn)].tobytes()
    if isinstance(side.vm.paging, ShadowPaging):
        paging = side.vm.paging
        for slot in range(paging.tables):
            if paging.key[slot] >= 0:
                assert SECRET not in memory.pages[paging.first + slot].tobytes()
    side.check()


@pytest.fixture(params=MMUS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> list[Side]:
    """One that fills its pages with secrets, and one with a small pool."""
    first, second = request.param
    sides = make_sides((first, "4level"), (second, "32"), pools=(GFNS, ENOUGH), tables=12)
    for side in sides:
        side.stub.load(gpa(DATA))
    return sides


def by_discarding(first: Side) -> None:
    for gfn in range(DATA, GFNS):
        first.discard(gfn)


def by_evicting(first: Side) -> None:
    first.attach("swap")
    assert first.swap
    for gfn in range(DATA, GFNS):
        first.dmm.evict(gfn, first.swap)


def by_shrinking(first: Side) -> None:
    first.attach("swap")
    first.dmm.shrink(GFNS - 8)


def by_moving(first: Side) -> None:
    """The old frames of pages that moved hold secrets, too."""
    by_discarding(first)
    fill_with_secrets(first, range(DATA, DATA + 4))
    for _ in range(4):
        for gfn in range(DATA, DATA + 4):
            first.dmm.remap(gfn)


def by_merging(first: Side) -> None:
    for gfn in range(DATA, GFNS):
        first.vm.memory.write(gpa(gfn), secret(DATA))
        first.write(gfn, 0, secret(DATA))
        first.dmm.share(gfn, first.p2m.mfn(DATA))


WAYS: list[Callable[[Side], None]] = [by_discarding, by_evicting, by_shrinking, by_moving, by_merging]


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_frames_that_one_vm_gives_up(pair: list[Side], way: Callable[[Side], None]) -> None:
    first, second = pair
    fill_with_secrets(first)
    way(first)
    machine = first.vm.machine
    first.dmm.shrink(min(first.pool.spare, GFNS - 10))
    given = machine.memory.free
    assert given >= 8
    assert any(SECRET in machine.memory.pages[mfn].tobytes() for mfn in machine.memory.free_frames())
    second.dmm.grow(given)
    if second.pool.size < GFNS:
        second.attach("swap")
    touch_everything(second)
    if not first.swap:
        first.attach("swap")
    for gfn in range(DATA, GFNS):
        assert first.stub.load(gpa(gfn) + 4) == first.contents[gfn][4]
    first.check()


def test_a_vm_that_takes_the_frames_of_one_that_is_gone(pair: list[Side]) -> None:
    """All of them: pages, and the frames of shadow tables, which another VM uses for pages and the other way round."""
    first, second = pair
    machine = first.vm.machine
    fill_with_secrets(first)
    first.vm.close()
    assert not (machine.memory.owner == 0).any()
    second.dmm.grow(machine.memory.free - 20)
    second.attach("swap")
    touch_everything(second)
    for index, mmu in ((2, "shadow"), (3, "nested")):
        third = Side(machine, index, mmu, "pae", 10, machine.memory.free - (10 if mmu == "shadow" else 0))
        third.attach("swap")
        touch_everything(third)
        fill_with_secrets(third)
        third.vm.close()
        machine.memory.pages[sorted(machine.memory.free_frames())] = list(SECRET) * (PAGE_SIZE // 2)
    second.check()


def test_frames_that_went_out_of_service(pair: list[Side]) -> None:
    first, second = pair
    machine = first.vm.machine
    fill_with_secrets(first)
    by_discarding(first)
    fill_with_secrets(first, range(DATA, DATA + 2))
    for gfn in range(DATA, DATA + 2):
        retire_frame(machine, first.p2m.mfn(gfn))
    first.dmm.shrink(first.pool.spare)
    machine.memory.pages[machine.memory.purpose == Purpose.RETIRED] = 0xEE
    second.dmm.grow(machine.memory.free)
    second.attach("swap")
    touch_everything(second)
    assert (machine.memory.pages[machine.memory.purpose == Purpose.RETIRED] == 0xEE).all()
    for gfn in range(DATA, DATA + 2):
        assert first.vm.memory.read(gpa(gfn), PAGE_SIZE) == secret(gfn)


def test_a_mapping_that_the_guest_used_leads_nowhere_else_afterwards(pair: list[Side]) -> None:
    """The first VM goes on through the same gvas, which its engine had entries for, while the second has the frames."""
    first, second = pair
    fill_with_secrets(first)
    first.stub.map(ALIASES, DATA)
    first.stub.load(gpa(ALIASES))
    for gfn in range(DATA, GFNS):
        first.discard(gfn)
    given = first.pool.spare - 3
    first.dmm.shrink(given)
    second.dmm.grow(given)
    for gfn in range(DATA, GFNS):
        if second.pool.spare:
            second.vm.memory.write(gpa(gfn), secret(gfn))
    before = [second.holds(gfn) for gfn in range(GFNS)]
    first.attach("swap")
    for page in (ALIASES, DATA, DATA + 1, GFNS - 1):
        assert first.stub.load(gpa(page) + 4) == 0
        first.stub.store(gpa(page) + 4, 1)
        first.stub.store(gpa(page) + 4, 0)
    assert [second.holds(gfn) for gfn in range(GFNS)] == before


def test_a_shared_frame_shows_only_what_both_wrote() -> None:
    """Random stores into pages that are merged whenever they are equal: each VM reads what it wrote, and no more."""
    sides = make_sides(("shadow", "4level"), ("nested", "pae"), ("shadow", "none"), pools=(16, 16, 16), spare=4)
    for side in sides:
        side.attach("swap", victims="random")
    chance = Random(3)
    for step in range(120):
        side, gfn = chance.choice(sides), chance.randrange(DATA, DATA + 6)
        value = chance.randrange(3)
        side.stub.store(gpa(gfn) + 4000 + step % 4, value)
        side.write(gfn, 4000 + step % 4, bytes([value]))
        for other in sides:
            for theirs in range(DATA, DATA + 6):
                if side.dmm.is_resident(gfn) and other.dmm.is_resident(theirs):
                    merged = side.dmm.share(gfn, other.p2m.mfn(theirs))
                    assert merged == (side.contents[gfn] == other.contents[theirs])
        reader, page = chance.choice(sides), chance.randrange(DATA, DATA + 6)
        assert reader.stub.load(gpa(page) + 4000 + step % 4) == reader.contents[page][4000 + step % 4]
    assert any(side.p2m.type(gfn) is PageType.SHARED for side in sides for gfn in range(DATA, DATA + 6))
    for side in sides:
        side.check()
