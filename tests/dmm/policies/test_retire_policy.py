"""The policy that retires frames in use, one after the other; the mechanism has its tests in test_retire.py."""

from __future__ import annotations

import pytest

from emu.addr import PAGE_SIZE
from emu.cli import main
from emu.dmm.policies.retire import Retire
from emu.engine import events
from emu.engine.ram import Purpose
from emu.machine.machine import Machine
from emu.testing import GuestUnderTest, boot
from tests.dmm.model import POOL, make_sides

MMUS = ("shadow", "nested")
GUEST, APPEND = "paging32", ""
EVERY = 20_000  # ns


def run(mmu: str, count: int, free: int, pool: int = 128, seed: int = 0, swap: bool = False) -> GuestUnderTest:
    """A guest that is audited after each change, on a machine with so many frames that nobody has."""
    machine = Machine(Machine.size_for(16 << 20, pool * PAGE_SIZE, mmu) + free * PAGE_SIZE)
    guest = boot(
        GUEST, append=APPEND, mmu=mmu, pool=pool * PAGE_SIZE, machine=machine, audit=True,
        policies=[f"retire:every={EVERY}ns,count={count},seed={seed}", *(["swap"] if swap else [])],
        events=["retire", "remap", "pool-resize"],
    )  # fmt: skip
    guest.expect_status(1)
    return guest


def policy_of(guest: GuestUnderTest) -> Retire:
    policy = guest.vm.dmm.policies[0]
    assert isinstance(policy, Retire)
    return policy


@pytest.fixture(scope="module")
def console() -> str:
    guest = boot(GUEST, append=APPEND)
    guest.expect_status(1)
    return guest.console


@pytest.mark.parametrize("mmu", MMUS)
def test_no_guest_notices(mmu: str, console: str) -> None:
    guest = run(mmu, 30, free=30)
    assert guest.console == console
    assert (policy_of(guest).retired, policy_of(guest).refused) == (30, 0)
    purpose = guest.vm.machine.memory.purpose
    retired = guest.events_of(events.Retire)
    assert {event.mfn for event in retired} == set((purpose == Purpose.RETIRED).nonzero()[0].tolist())  # type: ignore[attr-defined]
    assert len(retired) == 30
    assert guest.vm.pool.size == 128 and guest.vm.machine.memory.free == 0
    assert policy_of(guest).deadline() is None


@pytest.mark.parametrize("mmu", MMUS)
def test_one_in_each_period(mmu: str) -> None:
    guest = run(mmu, 10, free=10)
    times = [event.time for event in guest.events_of(events.Retire)]
    assert 0 <= times[0] - EVERY < 1000
    assert all(0 <= after - before - EVERY < 1000 for before, after in zip(times, times[1:], strict=False))


def test_both_paging_architectures_lose_the_same_frames() -> None:
    streams = [run(mmu, 20, free=20, seed=4).events for mmu in MMUS]
    assert streams[0] == streams[1]


def test_the_seed_decides() -> None:
    chosen = [
        [event.mfn for event in run("nested", 10, free=10, seed=seed).events_of(events.Retire)]  # type: ignore[attr-defined]
        for seed in (1, 1, 2)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize(("pool", "swap"), [(150, False), (110, True)])
def test_without_a_free_frame_the_pool_gets_smaller(mmu: str, pool: int, swap: bool, console: str) -> None:
    """A spare frame does the work, or one that a policy makes spare."""
    guest = run(mmu, 30, free=0, pool=pool, swap=swap)
    assert guest.console == console
    policy = policy_of(guest)
    assert (policy.retired, policy.refused) == (30, 0)
    assert guest.vm.pool.size == pool - 30


def test_a_frame_that_nothing_can_stand_in_for_stays() -> None:
    side = make_sides(("nested", "4level"))[0]
    for gfn in range(POOL):
        side.vm.memory.write(gfn * PAGE_SIZE + 3000, b"x")
        side.write(gfn, 3000, b"x")
    retire = Retire(side.stub.image, every=5, count=3)
    side.dmm.attach(retire)
    for now in (5, 10, 15):
        assert retire.deadline() == now
        retire.epoch(now)
        side.check()
    assert (retire.retired, retire.refused, side.pool.size) == (0, 3, POOL)


def test_nothing_is_resident_yet() -> None:
    side = make_sides(("nested", "4level"))[0]
    retire = Retire(side.stub.image, every=5, count=1)
    side.dmm.attach(retire)
    retire.epoch(5)
    assert (retire.retired, retire.refused, retire.deadline()) == (0, 0, 10)


@pytest.mark.parametrize("options", ["every=5", "count=0", "count=x", "seed=x", "when=1ms"])
def test_options_that_cannot_be_are_one_line(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "hello", "--policy", f"retire:{options}"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("emu: --policy: retire") and err.count("\n") == 1
