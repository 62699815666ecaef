"""Policies come, go and fail, and break nothing; the end of a VM."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.dmm.errors import OutOfFrames
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policies.demand import StaticMapping
from emu.dmm.policy import PolicyFault
from emu.engine.ram import Purpose
from emu.errors import EmuError
from tests.dmm.bench import GFNS, POOL, Bench, Keeper
from tests.dmm.stub import DATA


@pytest.mark.parametrize(
    ("question", "operation"),
    [
        ("populate", lambda bench: bench.dmm.populate(DATA + 1)),
        ("populate", lambda bench: bench.stub.load((DATA + 1) * PAGE_SIZE)),
        ("restore", lambda bench: bench.dmm.populate(DATA + 2)),
        ("restore", lambda bench: bench.stub.load((DATA + 2) * PAGE_SIZE)),
        ("restore", lambda bench: bench.dmm.detach(bench.keeper)),
        ("detach", lambda bench: bench.dmm.detach(bench.keeper)),
        ("keep", lambda bench: bench.dmm.evict(DATA, bench.keeper)),
        ("denied", lambda bench: bench.vm.memory.write((DATA + 3) * PAGE_SIZE, b"x")),
        ("denied", lambda bench: bench.stub.store((DATA + 3) * PAGE_SIZE, 1)),
    ],
)
def test_an_answer_that_raises_changes_nothing(bench: Bench, question: str, operation: Callable[[Bench], None]) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 5)
    bench.stub.store((DATA + 2) * PAGE_SIZE, 6)
    bench.dmm.evict(DATA + 2, bench.keeper)
    bench.dmm.protect(DATA, Intent.READ)
    bench.dmm.populate(DATA + 3)
    bench.dmm.protect(DATA + 3, Intent.READ)
    bench.keeper.fails = {question}
    before = bench.state() if question != "detach" else None
    with pytest.raises(RuntimeError, match=question):
        operation(bench)
    assert before is None or bench.state() == before
    assert bench.dmm.policies[0] is bench.keeper
    bench.vm.audit()
    bench.keeper.fails.clear()
    operation(bench)
    bench.vm.audit()
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 1) == b"\5"
    assert bench.vm.memory.read((DATA + 2) * PAGE_SIZE, 1) == b"\6"


def test_a_make_room_that_raises_changes_nothing(bench: Bench) -> None:
    bench.fill_pool()
    before = bench.state()
    bench.keeper.fails = {"make_room"}
    for operation in (lambda: bench.dmm.populate(GFNS - 1), lambda: bench.dmm.remap(DATA), lambda: bench.dmm.shrink(1)):
        with pytest.raises(RuntimeError, match="make_room"):
            operation()
        assert bench.state() == before
    bench.vm.audit()


def test_a_policy_that_fails_to_attach_is_not_in_force(bench: Bench) -> None:
    failing = Keeper()
    failing.fails = {"attach"}
    with pytest.raises(RuntimeError):
        bench.dmm.attach(failing)
    assert failing not in bench.dmm.policies
    with pytest.raises(OutOfFrames):
        bench.dmm.attach(StaticMapping(bench.stub.image))
    assert len(bench.dmm.policies) == 2
    bench.vm.audit()


@pytest.mark.parametrize("contents", [b"", b"x", bytes(PAGE_SIZE - 1), bytes(PAGE_SIZE + 1)])
def test_contents_that_are_no_page_are_refused(bench: Bench, contents: bytes) -> None:
    bench.keeper.populate = lambda gfn, kind: contents  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(PolicyFault, match=f"keeper.*{len(contents)} bytes"):
        bench.dmm.populate(DATA)
    assert bench.pool.used == 0
    bench.vm.audit()


def test_a_page_that_nobody_populates(bench: Bench) -> None:
    bench.dmm.detach(bench.dmm.policies[1])
    with pytest.raises(EmuError, match="no policy populates gfn 0x6, which is EMPTY"):
        bench.dmm.populate(DATA)
    assert bench.pool.used == 0


def test_detach_brings_back_what_the_policy_keeps(bench: Bench) -> None:
    for gfn in (DATA, DATA + 1):
        bench.vm.memory.write(gfn * PAGE_SIZE, bytes([gfn]))
        bench.dmm.evict(gfn, bench.keeper)
    bench.dmm.detach(bench.keeper)
    assert not bench.keeper.kept and bench.keeper not in bench.dmm.policies
    assert [bench.vm.memory.read(gfn * PAGE_SIZE, 1)[0] for gfn in (DATA, DATA + 1)] == [DATA, DATA + 1]


def test_a_policy_whose_pages_do_not_fit_stays_in_force(bench: Bench) -> None:
    """It is not asked to make room for them either: it would evict one page for the other, for ever."""
    bench.vm.memory.write(DATA * PAGE_SIZE, b"kept")
    bench.dmm.evict(DATA, bench.keeper)
    for gfn in range(DATA + 1, DATA + 1 + POOL):
        bench.dmm.populate(gfn)
    bench.keeper.victims = range(DATA + 1, GFNS - 1)
    with pytest.raises(OutOfFrames):
        bench.dmm.detach(bench.keeper)
    assert bench.dmm.policies[0] is bench.keeper
    bench.vm.audit()
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 4) == b"kept"


def test_a_policy_may_look_at_other_pages_while_it_is_asked(bench: Bench) -> None:
    def populate(gfn: int, kind: PageType) -> bytes | None:
        return bench.vm.memory.read((gfn + 1) * PAGE_SIZE, PAGE_SIZE) if gfn == DATA else None

    bench.vm.memory.write((DATA + 1) * PAGE_SIZE, b"copy me")
    bench.dmm.evict(DATA + 1, bench.keeper)
    bench.keeper.populate = populate  # type: ignore[method-assign,assignment]
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 7) == b"copy me"


@pytest.mark.parametrize("change", ["remap", "populate", "write"])
def test_the_page_that_a_policy_is_asked_about_cannot_change(bench: Bench, change: str) -> None:
    def keep(gfn: int, contents: bytes) -> None:
        if change == "remap":
            bench.dmm.remap(gfn)
        elif change == "write":
            bench.vm.memory.write(gfn * PAGE_SIZE, b"lost")

    def restore(gfn: int) -> bytes:
        bench.dmm.populate(gfn)
        return bytes(PAGE_SIZE)

    bench.vm.memory.write(DATA * PAGE_SIZE, b"contents")
    if change == "populate":
        bench.dmm.evict(DATA, bench.keeper)
        bench.keeper.restore = restore  # type: ignore[method-assign]
        operation = bench.dmm.populate
    else:
        bench.keeper.keep = keep  # type: ignore[method-assign]
        operation = lambda gfn: bench.dmm.evict(gfn, bench.keeper)  # type: ignore[assignment] # noqa: E731
    with pytest.raises(ValueError, match="cannot change"):
        operation(DATA)
    bench.vm.audit()


def test_a_vm_that_is_closed_gives_everything_back(bench: Bench) -> None:
    bench.stub.load(DATA * PAGE_SIZE)
    bench.fill_pool()
    bench.dmm.evict(DATA, bench.keeper)
    bench.dmm.pin(DATA + 1)
    gone: list[str] = []
    bench.keeper.detach = lambda: gone.append("keeper")  # type: ignore[method-assign]
    bench.dmm.close()
    memory = bench.machine.memory
    assert gone == ["keeper"] and not bench.dmm.policies and not bench.machine.shared.spaces
    assert memory.free == memory.frames - 1 == len(memory.free_frames())
    assert (bench.machine.m2p.gfn == NO_FRAME).all() and not len(bench.p2m.resident())
    assert {int(purpose) for purpose in memory.purpose} == {Purpose.FREE, Purpose.VOID}


def test_a_vm_can_be_closed_again_and_runs_no_more(bench: Bench) -> None:
    bench.vm.close()
    free = bench.machine.memory.free
    bench.vm.close()
    assert bench.machine.memory.free == free
    with pytest.raises(ValueError, match="removed from its machine"):
        bench.vm.run()
