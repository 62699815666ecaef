"""Guests with a quarter of the memory that they touch, while every policy is at work, do not notice.

At the same time pages are swapped, identical ones are merged as fast as they are found, the balloon breathes, frames
go out of service, and the pool shrinks and grows by a schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from emu.addr import PAGE_SIZE
from emu.dmm import share
from emu.dmm.dmm import DMM
from emu.dmm.policy import Policy
from emu.machine import Machine, shadow_tables_for
from emu.testing import GuestUnderTest, boot

CASES = {
    "memory, touching": ("memory", "mode=0 pages=128 rounds=4"),
    "memory, walking": ("memory", "mode=1 pages=128 steps=16"),
    "memory, mixed": ("memory", "mode=2 pages=128 steps=16"),
    "paging32": ("paging32", ""),
    "tasks": ("tasks", "switches=8"),
    "smc": ("smc", ""),
    "long64": ("long64", ""),
    "balloon": ("balloon", "rounds=16"),
}
SMALL = {
    "memory": ("memory", "pages=48 rounds=2 steps=12"),
    "paging32": ("paging32", ""),
    "tasks": ("tasks", "switches=3"),
    "smc": ("smc", ""),
    "long64": ("long64", ""),
    "balloon": ("balloon", "rounds=8 pages=40"),
}
MMUS = ("shadow", "nested")
SMALLEST_POOL = 12  # frames: one instruction of `tasks` or `long64` needs nearly as many
RETIRED = 20  # frames that go out of service in a run
TOO_MANY = 1 << 20  # frames that no pool can have
BALLOON = ["balloon"]
BREATH = 2_000_000  # ns between two targets
TARGETS = (20, 0, 35, 10)  # pages; the guest has 64 or 40
DECISIONS = (
    "dmm-fault", "evict", "share", "unshare", "remap", "protect", "discard", "retire", "pool-resize", "pool-refused",
    "balloon-inflate", "balloon-deflate",
)  # fmt: skip


class Breathing(Policy):
    """Sets the balloon's target to one number of pages after the other, over and over.

    Args:
        every: virtual time in ns between two of them.
        targets: pages.

    Attributes:
        breaths: how often the target was set.
    """

    name = "breathing"

    def __init__(self, every: int, targets: tuple[int, ...]) -> None:
        self.breaths = 0
        self._every, self._targets = every, targets
        self._next = 0

    def attach(self, dmm: DMM) -> None:
        super().attach(dmm)
        self._next = dmm.now + self._every

    def deadline(self) -> int:
        return self._next

    def epoch(self, now: int) -> None:
        self._next = now + self._every
        self.dmm.balloon.set_target(self._targets[self.breaths % len(self._targets)])
        self.breaths += 1


@dataclass(frozen=True)
class Undisturbed:
    """A run with as much memory as the guest likes; the balloon breathes, if the guest has a driver.

    Attributes:
        touched: frames that it used.
        now: virtual time at its end in ns.
    """

    console: str
    status: int
    touched: int
    now: int


def breathe(guest: GuestUnderTest) -> None:
    if guest.vm.dmm.balloon.policy is not None:
        guest.vm.attach(Breathing(BREATH, TARGETS))


@cache
def undisturbed(name: str, append: str) -> Undisturbed:
    guest = boot(name, append=append, policies=BALLOON if name == "balloon" else [])
    breathe(guest)
    status = guest.run(max_time="10s")
    return Undisturbed(guest.console, status, guest.vm.pool.used, guest.now)


def boot_under_pressure(
    name: str, append: str, mmu: str, monkeypatch: pytest.MonkeyPatch, **options: object
) -> GuestUnderTest:
    """The guest, with each policy acting some dozens of times in a run as long as the undisturbed one."""
    alone = undisturbed(name, append)
    pool = max(alone.touched // 4, SMALLEST_POOL)
    least = max(pool * 3 // 4, SMALLEST_POOL - 2)
    steps = [
        f"{alone.now * step // 16}ns:{size * PAGE_SIZE >> 10}K"
        for step, size in enumerate((least, pool + 2, least + 1, TOO_MANY, pool) * 3, 1)
    ]
    policies = [
        "share:rate=1000",
        "swap",
        f"retire:every={alone.now // 32}ns,count={RETIRED}",
        f"pool:schedule={'/'.join(steps)}",
        *(BALLOON if name == "balloon" else []),
    ]
    monkeypatch.setattr(share, "INTERVAL", alone.now // 64)
    ram = (4 if name == "balloon" else 16) << 20
    frames = 1 + (shadow_tables_for(ram) if mmu == "shadow" else 0) + pool + 2 + RETIRED
    guest = boot(
        name, append=append, mmu=mmu, pool=pool * PAGE_SIZE, policies=policies, machine=Machine(frames * PAGE_SIZE),
        events=DECISIONS, **options,
    )  # fmt: skip
    breathe(guest)
    return guest


def decisions(guest: GuestUnderTest) -> list[tuple[object, ...]]:
    """The DMM's events with all their fields but the sequence number, which counts all kinds."""
    return [
        (event.NAME, *(getattr(event, field) for field in event.__slots__), event.time, event.vm)
        for event in guest.events
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_quarter_of_the_memory_and_all_policies(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, append = CASES[case]
    alone = undisturbed(name, append)
    streams = []
    for mmu in MMUS:
        guest = boot_under_pressure(name, append, mmu, monkeypatch)
        guest.expect_status(alone.status, max_time="10s")
        guest.vm.audit()
        assert guest.console == alone.console
        assert guest.vm.pool.size <= max(alone.touched // 4, SMALLEST_POOL) + 2
        streams.append(decisions(guest))
        counts = guest.vm.events.counts()
        print(case, mmu, {k: v for k, v in counts.items() if v}, guest.now, alone.now)
    assert streams[0] == streams[1]


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("case", SMALL)
def test_every_change_leaves_everything_consistent(case: str, mmu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, append = SMALL[case]
    alone = undisturbed(name, append)
    guest = boot_under_pressure(name, append, mmu, monkeypatch, audit=True)
    guest.expect_status(alone.status, max_time="10s")
    assert guest.console == alone.console
