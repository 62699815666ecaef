"""Pools that get other sizes at set times, or do not and say so."""

from __future__ import annotations

import pytest

from emu.addr import PAGE_SIZE
from emu.cli import main
from emu.dmm.errors import NotEnoughSpare
from emu.dmm.policies.pool_control import PoolControl, resize
from emu.engine import events
from emu.engine.ram import OutOfMachineFrames
from emu.machine.machine import Machine
from emu.testing import boot
from tests.dmm.model import POOL, Side, make_sides

SPARE = 4  # frames of the machine that no pool has at first


def size(frames: int) -> int:
    return frames * PAGE_SIZE


def full_side(swap: bool) -> Side:
    """A VM all of whose frames are in use."""
    side = make_sides(("shadow", "4level"), spare=SPARE)[0]
    if swap:
        side.attach("swap")
    for gfn in range(POOL):
        side.vm.memory.write(gfn * PAGE_SIZE + 3000, b"x")
        side.write(gfn, 3000, b"x")
    assert side.pool.spare == 0
    return side


def resizes(side: Side) -> list[tuple[str, int, int]]:
    """Collects what happens to the pool from now on."""
    seen: list[tuple[str, int, int]] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.PoolResize):
            seen.append(("resize", event.before, event.after))
        elif isinstance(event, events.PoolRefused):
            seen.append(("refused", event.size, event.wanted))

    side.vm.events.listen(listen, [events.PoolResize, events.PoolRefused])
    return seen


def test_sizes_come_in_the_order_of_their_times() -> None:
    side = full_side(swap=True)
    seen = resizes(side)
    control = PoolControl(side.stub.image, [(30, size(9)), (10, size(14)), (20, size(10)), (20, size(11))])
    side.dmm.attach(control)
    sizes = []
    while (time := control.deadline()) is not None:
        control.epoch(time)
        sizes.append((time, side.pool.size))
        side.check()
    assert sizes == [(10, 14), (20, 11), (30, 9)]
    side.vm.events.drain()
    assert seen == [("resize", 12, 14), ("resize", 14, 10), ("resize", 10, 11), ("resize", 11, 9)]
    assert control.refused == []


def test_what_is_late_is_made_up_for() -> None:
    side = full_side(swap=True)
    control = PoolControl(side.stub.image, [(10, size(14)), (20, size(13)), (30, size(16))])
    side.dmm.attach(control)
    control.epoch(25)
    assert (side.pool.size, control.deadline()) == (13, 30)


@pytest.mark.parametrize("swap", [False, True])
def test_what_cannot_be_is_an_event_and_never_half_done(swap: bool) -> None:
    side = full_side(swap)
    for gfn in range(5):
        side.dmm.pin(gfn)
        side.pins[gfn] = 1
    seen = resizes(side)
    least = 5 if swap else POOL
    control = PoolControl(side.stub.image, [(1, size(POOL + SPARE + 1)), (2, size(least - 1)), (3, size(least))])
    side.dmm.attach(control)
    control.epoch(1)
    assert (side.pool.size, side.vm.machine.memory.free) == (POOL, SPARE)
    control.epoch(2)
    assert (side.pool.size, side.vm.machine.memory.free) == (POOL, SPARE)
    side.check()
    control.epoch(3)
    assert side.pool.size == least
    side.check()
    assert [time for time, _ in control.refused] == [1, 2]
    assert f"{SPARE} free frames, {SPARE + 1} wanted" in control.refused[0][1]
    assert "cannot give up" in control.refused[1][1] and "5 pages are pinned" in control.refused[1][1]
    side.vm.events.drain()
    assert seen[:2] == [("refused", POOL, POOL + SPARE + 1), ("refused", POOL, least - 1)]
    assert control.deadline() is None


def test_resize_says_what_it_cannot_do() -> None:
    side = full_side(swap=False)
    with pytest.raises(OutOfMachineFrames):
        resize(side.dmm, POOL + SPARE + 1)
    with pytest.raises(NotEnoughSpare):
        resize(side.dmm, POOL - 1)
    assert side.pool.size == POOL
    resize(side.dmm, POOL + SPARE)
    resize(side.dmm, POOL)
    assert (side.pool.size, side.vm.machine.memory.free) == (POOL, SPARE)
    side.check()


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_schedule_in_virtual_time(mmu: str) -> None:
    guest = boot(
        "memory", append="mode=1 pages=64 rounds=8 steps=64", mmu=mmu, pool="160K", machine=Machine(4 << 20),
        policies=["pool:schedule=1ms:200K/500us:100K/1500us:25", "swap"], events=["pool-resize", "evict"],
    )  # fmt: skip
    guest.expect_status(1)
    sizes = [(event.time, event.after) for event in guest.events_of(events.PoolResize)]  # type: ignore[attr-defined]
    assert [after for _, after in sizes] == [25, 50, 25]
    assert all(0 <= time - due < 1000 for (time, _), due in zip(sizes, (500_000, 1_000_000, 1_500_000), strict=True))
    guest.vm.audit()


@pytest.mark.parametrize("schedule", ["", "1ms", "5:1M", "1ms:x", "1ms:5000K1", "1ms:1M/", "1ms:1001K"])
def test_schedules_that_cannot_be_are_one_line(schedule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hello", "--policy", f"pool:schedule={schedule}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"emu: --policy: pool: schedule={schedule}: ")


def test_without_a_schedule_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hello", "--policy", "pool"]) == 2
    assert capsys.readouterr() == ("", "emu: --policy: pool: schedule=TIME:SIZE/… is missing\n")
