"""A pool that grows, shrinks and is full."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.addr import PAGE_SIZE
from emu.dmm.errors import NotEnoughSpare, OutOfFrames
from emu.engine.ram import OutOfMachineFrames
from tests.dmm.bench import FREE, GFNS, POOL, Bench
from tests.dmm.stub import DATA


def test_grow_and_shrink(bench: Bench) -> None:
    bench.dmm.grow(FREE)
    assert bench.pool.size == POOL + FREE and bench.machine.memory.free == 0
    with pytest.raises(OutOfMachineFrames):
        bench.dmm.grow(1)
    bench.dmm.shrink(FREE + 1)
    assert bench.pool.size == POOL - 1


def test_shrinking_makes_policies_evict(bench: Bench) -> None:
    bench.fill_pool()
    with pytest.raises(NotEnoughSpare) as caught:
        bench.dmm.shrink(1)
    assert (caught.value.wanted, caught.value.spare, bench.pool.size) == (1, 0, POOL)
    bench.keeper.victims = range(DATA + 1, GFNS - 1)
    bench.dmm.shrink(1)
    assert bench.pool.size == POOL - 1 and len(bench.keeper.kept) == 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda bench: bench.dmm.populate(GFNS - 1),
        lambda bench: bench.dmm.remap(DATA),
        lambda bench: bench.vm.memory.read((GFNS - 1) * PAGE_SIZE, 8),
        lambda bench: bench.vm.memory.write((GFNS - 1) * PAGE_SIZE, b"8 bytes "),
        lambda bench: bench.stub.store((GFNS - 1) * PAGE_SIZE, 1),
    ],
)
def test_a_full_pool_raises_and_loses_nothing(bench: Bench, operation: Callable[[Bench], None]) -> None:
    bench.stub.store(DATA * PAGE_SIZE, 77)
    bench.fill_pool()
    before = bench.state()
    with pytest.raises(OutOfFrames) as caught:
        operation(bench)
    assert caught.value.pool == POOL and "--pool" in str(caught.value)
    assert bench.state() == before
    bench.vm.audit()
    assert bench.stub.load(DATA * PAGE_SIZE) == 77
    bench.keeper.victims = range(DATA + 1, GFNS - 1)
    operation(bench)
    bench.vm.audit()


def test_shrinking_names_the_pages_that_are_pinned(bench: Bench) -> None:
    bench.fill_pool()
    bench.dmm.pin(DATA + 2)
    bench.dmm.pin(DATA + 1)
    with pytest.raises(NotEnoughSpare, match="2 pages are pinned, the first is gfn 0x7") as caught:
        bench.dmm.shrink(3)
    assert (caught.value.wanted, caught.value.spare, caught.value.pinned) == (3, 0, [DATA + 1, DATA + 2])
