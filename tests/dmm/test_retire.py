"""Frames that go out of service, one after the other, below guests that go on."""

from __future__ import annotations

import pytest

from emu.addr import PAGE_SIZE
from emu.dmm.errors import CannotRetire
from emu.dmm.p2m import PageType
from emu.dmm.policies.retire import Retire
from emu.dmm.policy import Policy
from emu.dmm.retire import retire_frame
from emu.engine import events
from emu.engine.ram import Purpose
from emu.mmu.paging import ShadowPaging
from emu.mmu.shadowtables import MIN_TABLES
from tests.dmm.model import ENOUGH, GFNS, KINDS, Side, fill_unused_with_junk, frame_counts, make_sides
from tests.dmm.stub import ALIASES, CODE, DATA, HLT

HOLE = GFNS + 5


def gpa(gfn: int) -> int:
    return gfn * PAGE_SIZE


def retire(side: Side, mfn: int) -> None:
    retire_frame(side.vm.machine, mfn)


def frames_for(side: Side, purpose: Purpose) -> list[int]:
    return [mfn for mfn, found in enumerate(side.vm.machine.memory.purpose.tolist()) if found == purpose]


def go_on(side: Side, step: int) -> None:
    """Something that needs code, tables, old data, new data and a hole."""
    gfn = DATA + step % (GFNS - DATA)
    side.stub.store(gpa(gfn) + 8 + step, step & 0xFF)
    side.write(gfn, 8 + step, bytes([step & 0xFF]))
    assert side.stub.load(gpa(gfn) + 8 + step) == step & 0xFF
    side.stub.store(gpa(DATA), HLT)
    side.write(DATA, 0, bytes([HLT]))
    side.stub.execute(gpa(DATA))
    if side.stub.tables:
        for behind in (gfn, HOLE):
            side.stub.map(ALIASES, behind)
            side.write(*divmod(side.stub.entry_gpa(ALIASES), PAGE_SIZE), side.stub.leaf(behind).to_bytes(4, "little"))
            assert side.stub.load(gpa(ALIASES) + 8 + step) == (step & 0xFF if behind == gfn else 0xFF)


@pytest.mark.parametrize("swaps", [False, True], ids=["resident", "swapping"])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_frame_of_a_machine_one_after_the_other(kind: tuple[str, str], swaps: bool) -> None:
    """Until no frame can be spared; without swapping, that is when each page has its frame and none is left over."""
    side = make_sides(kind, pools=(GFNS,), tables=MIN_TABLES + 3, spare=4)[0]
    memory = side.vm.machine.memory
    side.vm.dmm.space.after_change = None  # an audit a round is enough
    if swaps:
        side.attach("swap")
    else:
        side.vm.memory.read(0, gpa(GFNS))
    step = 0
    while not swaps or side.pool.size > ENOUGH:
        before = frame_counts(side.vm.machine)
        for mfn in range(memory.frames):
            if swaps and side.pool.size == ENOUGH:
                break
            purpose = memory.purpose[mfn]
            try:
                retire(side, mfn)
                assert memory.purpose[mfn] == Purpose.RETIRED
            except CannotRetire as error:
                assert error.mfn == mfn and memory.purpose[mfn] == purpose
            step += 1
            if step % 3 == 0:
                go_on(side, step)
        side.check()
        fill_unused_with_junk(side.vm.machine)
        if frame_counts(side.vm.machine) == before:
            break
    left = frame_counts(side.vm.machine)
    tables = MIN_TABLES if kind[0] == "shadow" else 0
    assert (left["FREE"], left["VOID"]) == (0, 1)
    assert left["POOL"] == (ENOUGH if swaps else GFNS)
    assert tables <= left["TABLES"] <= tables + (3 if tables and swaps else 0)
    go_on(side, step)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_the_void_frame_moves(kind: tuple[str, str]) -> None:
    """What the guest had mapped there reads as ones, and its stores are lost, before and after."""
    sides = make_sides(kind, kind, spare=1)
    memory = sides[0].vm.machine.memory
    before = memory.void_mfn
    for side in sides:
        go_on(side, 1)
    retire(sides[0], before)
    memory.pages[before] = 0
    assert memory.void_mfn != before and memory.purpose[before] == Purpose.RETIRED
    for side in sides:
        if side.stub.tables:
            assert side.stub.load(gpa(ALIASES)) == 0xFF
            side.stub.store(gpa(ALIASES), 1)
            assert side.stub.load(gpa(ALIASES)) == 0xFF
        go_on(side, 2)
        side.check()
    assert (memory.pages[memory.void_mfn] == 0xFF).all() and not memory.pages[before].any()
    with pytest.raises(CannotRetire, match="no frame is free"):
        retire(sides[0], memory.void_mfn)
    sides[0].check()


@pytest.mark.parametrize("mode", ["none", "32", "pae", "4level"])
def test_shadow_tables_are_used_without_their_frame(mode: str) -> None:
    side = make_sides(("shadow", mode), tables=MIN_TABLES + 2)[0]
    paging = side.vm.paging
    assert isinstance(paging, ShadowPaging)
    go_on(side, 1)
    used = [paging.first + slot for slot in range(paging.tables) if paging.key[slot] >= 0]
    for mfn in used[:2]:
        retire(side, mfn)
        side.vm.machine.memory.pages[mfn] = 0x5A
        go_on(side, 2)
        side.check()
        assert (side.vm.machine.memory.pages[mfn] == 0x5A).all()
    before = frame_counts(side.vm.machine)
    for mfn in frames_for(side, Purpose.TABLES):
        with pytest.raises(CannotRetire, match="no shadow tables to spare"):
            retire(side, mfn)
    assert frame_counts(side.vm.machine) == before
    side.check()
    side.vm.close()
    left = frame_counts(side.vm.machine)
    assert (left["TABLES"], left["POOL"], left["RETIRED"]) == (0, 0, 2)


def test_a_pool_gets_a_free_frame_for_the_one_that_it_loses() -> None:
    side = make_sides(("nested", "none"), spare=1)[0]
    side.stub.load(gpa(DATA))
    seen: list[events.Event] = []
    side.vm.events.listen(seen.append)
    first, second = side.p2m.mfn(CODE), side.p2m.mfn(DATA)
    size = side.pool.size
    retire(side, first)
    assert side.pool.size == size and side.vm.machine.memory.free == 0
    retire(side, second)
    assert side.pool.size == size - 1
    side.vm.events.drain()
    retired = [event for event in seen if isinstance(event, events.Retire)]
    assert [(event.mfn, event.replacement) for event in retired] == [
        (first, side.p2m.mfn(CODE)),
        (second, side.p2m.mfn(DATA)),
    ]
    resized = [event for event in seen if isinstance(event, events.PoolResize)]
    assert [(event.before, event.after) for event in resized] == [(size, size - 1)]
    go_on(side, 1)
    side.check()


def test_what_is_retired_stays_so_and_what_is_no_frame_is_refused() -> None:
    side = make_sides(("nested", "none"), spare=2)[0]
    memory = side.vm.machine.memory
    free = frames_for(side, Purpose.FREE)[0]
    for _ in range(2):
        retire(side, free)
        assert memory.purpose[free] == Purpose.RETIRED and memory.free == 1
    for mfn in (-1, memory.frames):
        with pytest.raises(ValueError, match="no frame of the machine"):
            retire(side, mfn)
    side.check()


def test_a_frame_in_use_that_nothing_can_stand_in_for() -> None:
    side = make_sides(("shadow", "32"), pools=(8,))[0]
    for gfn in reversed(range(GFNS)):
        if side.pool.spare:
            side.dmm.populate(gfn)
    before = side.p2m.entries[:GFNS].tolist(), frame_counts(side.vm.machine)
    for mfn in sorted(side.pool.used_frames()):
        with pytest.raises(CannotRetire, match="no policy makes room") as caught:
            retire(side, mfn)
        assert caught.value.mfn == mfn
    assert (side.p2m.entries[:GFNS].tolist(), frame_counts(side.vm.machine)) == before
    side.check()


# --- in the middle of something else ---


class Meddler(Policy):
    """Moves frames while it is asked."""

    name = "meddler"

    def __init__(self) -> None:
        self.kept: dict[int, bytes] = {}
        self.meddle = lambda: None

    def populate(self, gfn: int, kind: PageType) -> bytes | None:
        if gfn == DATA:
            self.meddle()
        return None

    def keep(self, gfn: int, contents: bytes) -> None:
        self.kept[gfn] = contents
        self.meddle()

    def restore(self, gfn: int) -> bytes:
        self.meddle()
        return self.kept[gfn]

    def release(self, gfn: int) -> None:
        del self.kept[gfn]


@pytest.fixture
def meddled() -> tuple[Side, Meddler]:
    side = make_sides(("shadow", "32"), spare=4)[0]
    meddler = Meddler()
    side.dmm.policies.insert(0, meddler)
    meddler.attach(side.dmm)
    return side, meddler


def test_a_frame_that_a_page_is_being_fetched_into(meddled: tuple[Side, Meddler]) -> None:
    side, meddler = meddled

    def meddle() -> None:
        (mfn,) = side.dmm.space.contents.frames_in_flight()
        with pytest.raises(CannotRetire, match="fetched"):
            retire(side, mfn)

    meddler.meddle = meddle
    side.dmm.populate(DATA)
    side.vm.memory.write(gpa(DATA), b"stored")
    side.write(DATA, 0, b"stored")
    meddler.meddle = lambda: None
    side.dmm.evict(DATA, meddler)
    meddler.meddle = meddle
    side.dmm.populate(DATA)
    meddler.meddle = lambda: None
    side.check()


@pytest.mark.parametrize("how", ["retire", "remap a sharer"])
def test_a_frame_that_moves_while_its_page_is_being_stored(meddled: tuple[Side, Meddler], how: str) -> None:
    side, meddler = meddled
    for gfn in (DATA, DATA + 1):
        side.vm.memory.write(gpa(gfn), b"stored")
        side.write(gfn, 0, b"stored")
    if how != "retire":
        assert side.dmm.share(DATA + 1, side.p2m.mfn(DATA))

    def meddle() -> None:
        if how == "retire":
            retire(side, side.p2m.mfn(DATA))
        else:
            side.dmm.remap(DATA + 1)

    meddler.meddle = meddle
    side.dmm.evict(DATA, meddler)
    meddler.meddle = lambda: None
    side.check()
    go_on(side, 1)
    side.check()


# --- the policy ---


def test_the_policy_retires_what_it_is_told_to() -> None:
    def run() -> tuple[list[int], int, int]:
        side = make_sides(("shadow", "pae"), spare=3)[0]
        side.stub.load(gpa(DATA))
        side.attach("retire", every=1000, count=5, seed=3)
        policy = side.policies["retire"]
        assert isinstance(policy, Retire)
        for step in range(1, 6):
            assert policy.deadline() == side.dmm.now + 1000 if step == 1 else policy.deadline() is not None
            policy.epoch(side.dmm.now)
            go_on(side, step)
            side.check()
        assert policy.deadline() is None
        return frames_for(side, Purpose.RETIRED), policy.retired, policy.refused

    first = run()
    assert len(first[0]) == first[1] == 5 and first[2] == 0
    assert run() == first
