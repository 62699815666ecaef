"""Guests whose memory is moved, protected, evicted and rationed at random while they run do not notice."""

from __future__ import annotations

import pytest

from emu.dmm.errors import NoProgress
from emu.machine.machine import Machine
from emu.testing import boot
from tests.guests.chaos import Chaos

SMALL_MEMORY = "pages=48 rounds=2 steps=12"
CASES = {  # guest: its command line, and ns between two bursts of changes
    "memory": (SMALL_MEMORY, 4_000),
    "paging32": ("", 20_000),
    "tasks": ("switches=6", 100_000),
    "long64": ("", 5_000),
    "smc": ("", 3_000),
    "smp": ("forget=2", 20_000),
}
MMUS = ("shadow", "nested")
SEEDS = (1, 2)
SMALLEST_POOL = 16  # frames: with random replacement, fewer make hardly any progress


def undisturbed(name: str, append: str) -> tuple[str, int, int]:
    """Console, status, and the frames that the guest touches."""
    guest = boot(name, append=append)
    status = guest.run(max_time="10s")
    return guest.console, status, guest.vm.pool.used


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", CASES)
def test_chaos_goes_unnoticed(name: str, mmu: str, seed: int) -> None:
    append, every = CASES[name]
    console, status, touched = undisturbed(name, append)
    pool = max(touched // 4, SMALLEST_POOL)
    guest = boot(name, append=append, mmu=mmu, pool=pool << 12, machine=Machine(64 << 20), audit=True)
    chaos = Chaos(seed, every, SMALLEST_POOL * 3 // 4, pool)
    guest.vm.attach(chaos)
    guest.expect_status(status, max_time="10s")
    assert guest.console == console
    wanted = {"remap", "protect", "evict", "grow", "shrink"} | ({"make room"} if touched > pool else set())
    assert wanted <= set(chaos.done), chaos.done
    guest.vm.audit()


@pytest.mark.parametrize("mmu", MMUS)
def test_chaos_is_repeatable(mmu: str) -> None:
    logs = []
    for _ in range(2):
        guest = boot("long64", mmu=mmu, pool=SMALLEST_POOL << 12, machine=Machine(64 << 20), events=True)
        guest.vm.attach(Chaos(3, 5_000, SMALLEST_POOL * 3 // 4, SMALLEST_POOL))
        guest.expect_status(1, max_time="10s")
        logs.append(guest.events)
    assert logs[0] == logs[1]


@pytest.mark.parametrize("mmu", MMUS)
def test_a_pool_too_small_for_one_instruction_is_no_hang(mmu: str) -> None:
    guest = boot("long64", mmu=mmu, pool=5 << 12)
    guest.vm.attach(Chaos(1, 10**12, 5, 5))
    assert guest.run() == 124
    assert guest.outcome is not None and "makes no progress" in guest.outcome.sentence
    with pytest.raises(NoProgress):
        guest.vm.run()
    guest.vm.audit()
