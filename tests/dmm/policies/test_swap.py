"""Swapping under a guest that is driven access by access: what it costs a store, and what it never costs a page."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest

from emu.addr import PAGE_SIZE
from emu.cli import main
from emu.dmm.catalog import choose
from emu.dmm.errors import NotEnoughSpare, OutOfFrames, PagePinned, StoreFull
from emu.dmm.p2m import PageType
from emu.dmm.policies.reference_trace import ReferenceRecorder, ReferenceTrace
from emu.dmm.policies.store import CompressedStore, FileStore
from emu.dmm.policies.swap import Swap
from emu.dmm.policies.victims import VICTIMS
from emu.engine import events
from emu.errors import BadInput
from tests.dmm.model import ENOUGH, GFNS, POOL, Side, make_sides
from tests.dmm.stub import CODE, DATA

MMUS = ("shadow", "nested")
PAGES = range(DATA, GFNS)  # that the guest does not need itself
OPTIONS: dict[str, dict[str, Any]] = {
    "aging": {"period": 20},
    "wsclock": {"tau": 50},
    "random": {"seed": 5},
    "optimal": {"trace": ReferenceTrace.of([])},  # of no use: no page is used ever again
}


def gpa(gfn: int) -> int:
    return gfn * PAGE_SIZE


def side_with_swap(mmu: str = "shadow", pool: int = POOL, spare: int = 0, **options: Any) -> Side:
    side = make_sides((mmu, "4level"), pools=(pool,), spare=spare)[0]
    side.attach("swap", **options)
    return side


def fill(side: Side, gfn: int, random: Random) -> None:
    """Put something into a page that no codec makes smaller."""
    data = random.randbytes(PAGE_SIZE)
    side.vm.memory.write(gpa(gfn), data)
    side.write(gfn, 0, data)


def store(side: Side, gfn: int, value: int, offset: int = 0) -> None:
    side.stub.store(gpa(gfn) + offset, value)
    side.write(gfn, offset, bytes([value]))


def evict(side: Side, gfn: int) -> None:
    assert side.swap is not None
    side.dmm.evict(gfn, side.swap)


def work(side: Side, steps: int, seed: int = 1) -> None:
    """Loads and stores of the guest all over its pages; everything that it finds is compared with the model."""
    random = Random(seed)
    for step in range(steps):
        gfn, offset = random.choice(PAGES), random.randrange(PAGE_SIZE - 4)
        if random.random() < 0.4:
            store(side, gfn, random.randrange(256), offset)
        elif random.random() < 0.2 and gfn + 1 in PAGES:
            value = random.getrandbits(32)
            side.stub.store4(gpa(gfn + 1) - 2, value)
            data = value.to_bytes(4, "little")
            side.write(gfn, PAGE_SIZE - 2, data[:2])
            side.write(gfn + 1, 0, data[2:])
        else:
            assert side.stub.load(gpa(gfn) + offset) == side.contents[gfn][offset]
        if step % 16 == 0:
            side.check()
    side.check()


@cache
def recorded(steps: int, filled: bool) -> ReferenceTrace:
    """The references of a run as :func:`in_half_of_its_memory` has them, without swapping."""
    side = make_sides(("nested", "4level"), pools=(GFNS,))[0]
    recorder = ReferenceRecorder(side.stub.image, window=ENOUGH)
    side.dmm.attach(recorder)
    in_half_of_its_memory(side, steps, filled)
    return recorder.trace()


def in_half_of_its_memory(side: Side, steps: int, filled: bool) -> None:
    random = Random(0)
    for gfn in PAGES[::2] if filled else ():
        fill(side, gfn, random)
    work(side, steps)


def options_of(victims: str, steps: int, filled: bool) -> dict[str, Any]:
    options = {"trace": recorded(steps, filled)} if victims == "optimal" else OPTIONS.get(victims, {})
    return {"victims": victims, **options}


# --- every algorithm, every store -------------------------------------------------------------------------------


@pytest.mark.parametrize("stores", ["memory", "zstd", "file", "both"])
@pytest.mark.parametrize("victims", VICTIMS)
def test_a_guest_in_half_of_its_memory(victims: str, stores: str, tmp_path: Path) -> None:
    path = tmp_path / "swap"
    kinds: dict[str, dict[str, Any]] = {
        "memory": {},
        "zstd": {"algorithm": "zstd"},
        "file": {"memory": 0, "file": str(path)},
        "both": {"memory": 3 * PAGE_SIZE // 2, "file": str(path), "size": GFNS * PAGE_SIZE},
    }
    filled = victims != "optimal"  # filling takes no virtual time, which is what the optimum goes by
    side = side_with_swap("nested", spare=POOL, **kinds[stores], **options_of(victims, 150, filled))
    in_half_of_its_memory(side, 150, filled)
    assert side.swap is not None and side.vm.events.counts()["evict"] > 50
    statistics = side.swap.store.statistics
    assert statistics.writes > 20 and statistics.reads > 20
    assert path.exists() == ("file" in kinds[stores])
    side.dmm.grow(POOL)
    side.dmm.detach(side.swap)
    assert not path.exists()
    side.check()


@pytest.mark.parametrize("victims", VICTIMS)
def test_both_paging_architectures_evict_the_same_pages(victims: str) -> None:
    chosen = []
    for mmu in MMUS:
        side = side_with_swap(mmu, **options_of(victims, 100, False))
        evicted: list[events.Event] = []
        side.vm.events.listen(evicted.append, [events.Evict])
        in_half_of_its_memory(side, 100, False)
        side.vm.events.drain()
        chosen.append([(event.time, event.gfn, event.became, event.stored) for event in evicted])  # type: ignore[attr-defined]
    assert chosen[0] == chosen[1] != []


# --- what costs the store nothing -------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_clean_pages_are_not_written(mmu: str) -> None:
    side = side_with_swap(mmu)
    fill(side, DATA, Random(1))
    evict(side, DATA)
    assert side.swap is not None
    statistics = side.swap.store.statistics
    assert statistics.writes == 1
    for _ in range(3):
        assert side.stub.load(gpa(DATA)) == side.contents[DATA][0]
        evict(side, DATA)
    assert (statistics.writes, statistics.reads) == (1, 3)
    store(side, DATA, side.contents[DATA][0] ^ 1)
    evict(side, DATA)
    assert (statistics.writes, statistics.reads) == (2, 4)
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_pages_of_the_image_are_not_written_until_they_change(mmu: str) -> None:
    side = side_with_swap(mmu)
    side.stub.load(gpa(DATA))
    evict(side, CODE)
    assert side.p2m.type(CODE) is PageType.IMAGE
    side.stub.load(gpa(DATA))
    side.vm.memory.write(gpa(CODE) + 3000, b"x")
    side.write(CODE, 3000, b"x")
    evict(side, CODE)
    assert side.p2m.type(CODE) is PageType.EVICTED
    side.stub.load(gpa(DATA))
    side.check()


@pytest.mark.parametrize("mmu", MMUS)
def test_zeros_take_no_room(mmu: str) -> None:
    side = side_with_swap(mmu, memory=0)  # whatever had to be stored would not fit
    for gfn in PAGES:
        store(side, gfn, 0)
        if side.pool.spare < 2:
            evict(side, gfn)
            assert side.p2m.type(gfn) is PageType.EMPTY
    assert side.swap is not None and len(side.swap.store) == 0
    side.check()


def test_a_page_that_becomes_zeros_gives_its_room_back() -> None:
    side = side_with_swap()
    store(side, DATA, 7)
    evict(side, DATA)
    assert side.swap is not None and side.swap.store.gfns() == [DATA]
    store(side, DATA, 0)
    assert side.swap.store.gfns() == [DATA]
    evict(side, DATA)
    assert side.swap.store.gfns() == []
    side.check()


# --- a full store -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["memory", "file"])
@pytest.mark.parametrize("pinned", [False, True])
def test_copies_of_pages_that_came_back_go_when_the_store_is_full(tier: str, pinned: bool, tmp_path: Path) -> None:
    room = 2 * PAGE_SIZE
    file = {"memory": 0, "file": str(tmp_path / "swap"), "size": room}
    side = side_with_swap(**{"memory": room} if tier == "memory" else file)
    assert side.swap is not None
    random = Random(1)
    for gfn in (DATA, DATA + 1):
        fill(side, gfn, random)
        evict(side, gfn)
    store(side, DATA, side.contents[DATA][0] ^ 1)  # its copy is stale now
    if pinned:
        side.dmm.pin(DATA)
    assert side.stub.load(gpa(DATA + 1)) == side.contents[DATA + 1][0]  # its copy is still good
    fill(side, DATA + 2, random)
    evict(side, DATA + 2)
    assert side.swap.store.gfns() == [DATA + 2]
    fill(side, DATA + 3, random)
    evict(side, DATA + 3)
    fill(side, DATA + 4, random)
    with pytest.raises(StoreFull) as caught:
        evict(side, DATA + 4)
    assert (caught.value.vm, caught.value.gfn) == (side.vm.name, DATA + 4)
    assert side.dmm.is_resident(DATA + 4)
    side.check()


@pytest.mark.parametrize("size", [0, PAGE_SIZE, 3 * PAGE_SIZE])
def test_the_file_holds_as_much_as_was_said(size: int, tmp_path: Path) -> None:
    side = side_with_swap(memory=0, file=str(tmp_path / "swap"), size=size)
    random = Random(1)
    for gfn in PAGES[: size // PAGE_SIZE]:
        fill(side, gfn, random)
        evict(side, gfn)
    fill(side, PAGES[-1], random)
    with pytest.raises(StoreFull):
        evict(side, PAGES[-1])
    side.check()


# --- coming and going -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", MMUS)
def test_attached_to_a_running_guest_and_detached_while_it_runs(mmu: str, tmp_path: Path) -> None:
    side = make_sides((mmu, "4level"), spare=GFNS)[0]
    random = Random(2)
    with pytest.raises(OutOfFrames):
        for gfn in PAGES:
            fill(side, gfn, random)
    path = tmp_path / "swap"
    side.attach("swap", memory=PAGE_SIZE, file=str(path))
    work(side, 60)
    swap = side.swap
    assert swap is not None and side.dmm.space.contents.kept()

    with pytest.raises(OutOfFrames):
        side.dmm.detach(swap)
    assert swap in side.dmm.policies and path.exists()
    work(side, 60, seed=2)

    side.dmm.grow(GFNS)
    side.dmm.detach(swap)
    del side.policies["swap"]
    assert swap not in side.dmm.policies and not path.exists()
    assert not side.dmm.space.contents.kept()
    assert PageType.EVICTED not in {side.p2m.type(gfn) for gfn in range(GFNS)}
    work(side, 60, seed=3)
    with pytest.raises(ValueError, match="not attached"):
        side.dmm.evict(DATA, swap)


def test_another_store_takes_over() -> None:
    """A second policy is attached before the first goes: its store has what is evicted to make room for the rest."""
    side = side_with_swap(memory=6 * PAGE_SIZE)
    first = side.swap
    assert first is not None
    random = Random(3)
    for gfn in PAGES[:5]:
        fill(side, gfn, random)
        evict(side, gfn)
    for gfn in PAGES[5 : 5 + POOL]:
        fill(side, gfn, random)
    side.attach("swap")
    side.dmm.detach(first)
    assert side.swap is not None and len(side.swap.store) > 0
    work(side, 60)


# --- what stays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victims", VICTIMS)
def test_a_pool_shrinks_down_to_what_is_pinned(victims: str) -> None:
    side = side_with_swap(victims=victims, **OPTIONS.get(victims, {}))
    random = Random(4)
    for gfn in PAGES[:8]:
        fill(side, gfn, random)
    pinned = [DATA, DATA + 3]
    for gfn in pinned:
        side.dmm.pin(gfn)
        side.pins[gfn] = 1
    side.dmm.shrink(POOL - ENOUGH)
    assert (side.pool.size, side.pool.used) == (ENOUGH, ENOUGH)
    side.check()
    with pytest.raises(NotEnoughSpare) as caught:
        side.dmm.shrink(ENOUGH - 1)
    assert (caught.value.wanted, caught.value.spare, caught.value.pinned) == (ENOUGH - 1, ENOUGH - 2, pinned)
    assert "2 pages are pinned, the first is gfn 0x6" in str(caught.value)
    assert side.pool.size == ENOUGH
    with pytest.raises(PagePinned):
        evict(side, DATA)
    side.check()
    side.dmm.shrink(ENOUGH - 2)
    assert side.p2m.resident().tolist() == pinned
    side.check()


@pytest.mark.parametrize("victims", VICTIMS)
def test_shared_pages_go_like_others(victims: str) -> None:
    side = side_with_swap(victims=victims, **OPTIONS.get(victims, {}))
    shared = PAGES[:3]
    for gfn in shared:
        side.vm.memory.write(gpa(gfn), b"the same")
        side.write(gfn, 0, b"the same")
        assert side.dmm.share(gfn, side.p2m.mfn(shared[0]))
    random = Random(5)
    for gfn in PAGES[3:9]:
        fill(side, gfn, random)
    seen: list[events.Event] = []
    side.vm.events.listen(seen.append, [events.Evict])
    resident = side.p2m.resident().tolist()
    side.dmm.shrink(POOL)
    side.vm.events.drain()
    assert sorted(event.gfn for event in seen) == resident  # type: ignore[attr-defined]
    assert side.pool.size == 0
    side.check()


@pytest.mark.parametrize("mmus", [("shadow", "nested"), ("nested", "nested")])
def test_a_page_in_a_frame_of_another_pool_is_worth_nothing(mmus: tuple[str, str]) -> None:
    """Evicting it would give a frame to the other VM."""
    owner, user = make_sides(*((mmu, "4level") for mmu in mmus))
    user.attach("swap")
    for side in (owner, user):
        side.vm.memory.write(gpa(DATA), b"the same")
        side.write(DATA, 0, b"the same")
    assert user.dmm.share(DATA, owner.p2m.mfn(DATA))
    random = Random(6)
    for gfn in PAGES[1:7]:
        fill(user, gfn, random)
    user.dmm.shrink(POOL)
    assert user.p2m.resident().tolist() == [DATA]
    assert (user.pool.size, user.pool.used) == (0, 0)
    owner.check()
    user.check()


class _Full(Swap):
    """Has no room, and counts how often it was asked for it."""

    asked = 0

    def make_room(self, frames: int) -> None:
        self.asked += 1
        raise StoreFull("other", 0, "full")


def test_a_vm_without_room_is_asked_once_not_once_for_each_frame() -> None:
    """Two VMs share pages that the owner does not use any more; the user has no spare frame to pay with."""
    owner, user = make_sides(("nested", "4level"), ("nested", "4level"))
    owner.attach("swap")
    full = _Full(user.stub.image)
    user.dmm.attach(full)
    shared = PAGES[:5]
    for gfn in shared:
        for side in (owner, user):
            side.vm.memory.write(gpa(gfn), bytes([gfn]) * 64)
            side.write(gfn, 0, bytes([gfn]) * 64)
        assert user.dmm.share(gfn, owner.p2m.mfn(gfn))
    user.dmm.shrink(user.pool.spare)
    for gfn in shared:
        evict(owner, gfn)
    before = full.asked
    with pytest.raises((OutOfFrames, NotEnoughSpare)):
        owner.dmm.shrink(owner.pool.size)
    assert 0 < full.asked - before <= 3


# --- options ----------------------------------------------------------------------------------------------------

BAD_OPTIONS = {
    "victims=nonsense": "expected one of fifo, clock",
    "size=1M": "size= is that of file=, which is missing",
    "victims=optimal": "needs trace=FILE",
    "victims=fifo,tau=1ms": "tau is no option of victims=fifo",
    "victims=optimal,trace=/nowhere/at/all": "/nowhere/at/all",
    "file=/nowhere/at/all": "cannot be used as a swap file",
    "colour=red": "does not understand 'colour=red'",
}


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_options_that_cannot_be_are_one_line(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hello", "--policy", f"swap:{options}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("emu: ") and err.count("\n") == 1
    assert BAD_OPTIONS[options] in err


def test_the_command_line_makes_what_python_makes(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    side = make_sides(("nested", "4level"))[0]
    choice = choose([f"swap:victims=wsclock,tau=1ms,memory=8K,algorithm=zstd,file={path},size=1M"])[0]
    swap = choice.make(side.stub.image)
    side.dmm.attach(swap)
    assert isinstance(swap, Swap) and isinstance(swap.store, CompressedStore)
    assert isinstance(swap.store._below, FileStore) and path.exists()
    with pytest.raises(BadInput, match="is the swap file of another VM"):
        side.dmm.attach(choice.make(side.stub.image))
    assert side.dmm.policies[-1] is swap
    side.dmm.detach(swap)
    assert not path.exists()
