"""Guests with a quarter of the memory that they touch, while every policy is at work, do not notice.

At the same time pages are swapped, identical ones are merged as fast as they are found, the balloon breathes, frames
go out of service, and the pool shrinks and grows by a schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from emu.addr import PAGE_SIZE
from emu.boot.image import GuestImage
from emu.dmm.interface import DmmInterface
from emu.dmm.policies.share import Share
from emu.dmm.policy import Policy
from emu.machine.machine import Machine, shadow_tables_for
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
ALSO = {  # what happens in some of them only: that a page is like another when it is looked at, or balloons
    "memory, mixed": {"share", "unshare"},
    "paging32": {"share", "unshare"},
    "smc": {"share", "unshare"},
    "long64": {"share", "unshare"},
    "balloon": {"balloon-inflate", "balloon-deflate", "discard"},
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

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        self._next = dmm.now + self._every

    def deadline(self) -> int:
        return self._next

    def epoch(self, now: int) -> None:
        self._next = now + self._every
        self.dmm.balloon.set_target(self._targets[self.breaths % len(self._targets)])
        self.breaths += 1


class EagerShare(Share):
    """Sharing that looks at all pages, over and over.

    Args:
        every: virtual time in ns between two scans.
    """

    def __init__(self, image: GuestImage, every: int) -> None:
        super().__init__(image)
        self._every = every
        self._due = 0

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        self._due = dmm.now + self._every

    def deadline(self) -> int:
        return self._due

    def epoch(self, now: int) -> None:
        self._due = now + self._every
        self.scan(len(self.dmm.p2m))


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


def boot_under_pressure(name: str, append: str, mmu: str, **options: object) -> GuestUnderTest:
    """The guest, with each policy acting some dozens of times in a run as long as the undisturbed one."""
    alone = undisturbed(name, append)
    pool = max(alone.touched // 4, SMALLEST_POOL)
    least = max(pool * 3 // 4, SMALLEST_POOL - 2)
    steps = [
        f"{alone.now * step // 16}ns:{size * PAGE_SIZE >> 10}K"
        for step, size in enumerate((least, pool + 2, least + 1, TOO_MANY, pool) * 3, 1)
    ]
    policies = [
        "swap",
        f"retire:every={alone.now // 32}ns,count={RETIRED}",
        f"pool:schedule={'/'.join(steps)}",
        *(BALLOON if name == "balloon" else []),
    ]
    ram = (4 if name == "balloon" else 16) << 20
    frames = 1 + (shadow_tables_for(ram) if mmu == "shadow" else 0) + pool + 2 + RETIRED
    guest = boot(
        name, append=append, mmu=mmu, pool=pool * PAGE_SIZE, policies=policies, machine=Machine(frames * PAGE_SIZE),
        events=DECISIONS, **options,
    )  # fmt: skip
    assert guest.vm.guest is not None
    guest.vm.attach(EagerShare(guest.vm.guest.image, alone.now // 200))
    breathe(guest)
    return guest


@pytest.mark.parametrize("case", CASES)
def test_a_quarter_of_the_memory_and_all_policies(case: str) -> None:
    name, append = CASES[case]
    alone = undisturbed(name, append)
    streams = []
    for mmu in MMUS:
        guest = boot_under_pressure(name, append, mmu)
        guest.expect_status(alone.status, max_time="10s")
        guest.vm.audit()
        assert guest.console == alone.console
        assert guest.vm.pool.size <= max(alone.touched // 4, SMALLEST_POOL) + 2
        streams.append(guest.events)
        assert guest.now == alone.now or name == "smc"  # where its blocks are cut, its clock goes differently
        done = {kind for kind, count in guest.vm.events.counts().items() if count}
        assert done >= {"dmm-fault", "evict", "remap", "retire", "pool-resize", "pool-refused"}
        assert done >= ALSO.get(case, set())
        assert guest.vm.events.counts()["retire"] == RETIRED
    assert streams[0] == streams[1]


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("case", SMALL)
def test_every_change_leaves_everything_consistent(case: str, mmu: str) -> None:
    name, append = SMALL[case]
    alone = undisturbed(name, append)
    guest = boot_under_pressure(name, append, mmu, audit=True)
    guest.expect_status(alone.status, max_time="10s")
    assert guest.console == alone.console
