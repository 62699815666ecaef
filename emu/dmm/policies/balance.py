"""Balancing: machine frames move from the pools of VMs that do not use them to those of VMs that need them.

Each VM's working set is estimated by sampling: the accessed bits of a few pages, chosen at random, are cleared, and
after a while those that are set again tell which fraction of its frames the VM uses.  Frames are reclaimed from the VM
that pays least for each: its shares divided by its frames, where an idle frame costs 1 / (1 - tax) times as much as a
used one.

Sources: Waldspurger: "Memory resource management in VMware ESX Server", OSDI 2002, sections 5.2 and 5.3 (idle memory
tax, sampling); Zhao, Wang et al.: "Dynamic memory balancing for virtual machines", VEE 2009, and "Low cost working set
size tracking", USENIX ATC 2011 (sampling pauses while the estimate stays the same).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np

from emu.dmm.errors import NotEnoughSpare, StoreError
from emu.dmm.interface import DmmInterface
from emu.dmm.policy import Policy

if TYPE_CHECKING:
    from emu.boot.image import GuestImage

LEAST = 16  # frames that a pool keeps whatever its VM does
_FAST, _SLOW = 0.5, 0.1  # weights of a new sample in the moving averages
_STEADY = 0.05  # change of the estimate that counts as none
_LONGEST_PAUSE = 8  # periods


class Balance(Policy):
    """One VM's part in the balance; the one with the lowest number moves the frames.

    Args:
        period: virtual time in ns of a sample.
        sample: pages in a sample.
        tax: percent of an idle frame that is taxed away, 0 to 99.
        shares: the VM's weight.
        step: most frames that move at a time.
        seed: of the choice of pages.

    Attributes:
        active: fraction of its frames that the VM is believed to use.
        pressure: pages that it had to evict in its last period.
    """

    name = "balance"

    def __init__(
        self, image: GuestImage, period: int = 50_000_000, sample: int = 100, tax: int = 75, shares: int = 1,
        step: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        self._period, self._size, self._shares, self._step = period, sample, shares, step
        self._idle_cost = 100 / (100 - tax)
        self._random = Random(seed)
        self._sample = np.zeros(0, np.int64)
        self._fast = self._slow = self.active = 1.0
        self._pause = 1
        self._evicted = 0
        self.pressure = 0
        self._next = 0

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        self._evicted = self._evictions()
        self._next = dmm.now + self._period

    def deadline(self) -> int | None:
        return self._next

    def extend_pool(self, frames: int) -> None:
        """Before anything is evicted: frames of the machine that nobody has."""
        free = min(frames, self.dmm.memory.free)
        if free:
            self.dmm.grow(free)

    def epoch(self, now: int) -> None:
        evicted = self._evictions()
        self.pressure, self._evicted = evicted - self._evicted, evicted
        self._estimate()
        self._next = now + self._period * (1 if self.pressure else self._pause)
        if not self.dmm.peers(Balance) or self.dmm.peers(Balance)[0].dmm.index > self.dmm.index:
            self._rebalance()

    @property
    def working_set(self) -> int:
        """Frames that the VM is believed to use."""
        return round(self.active * self._resident())

    @property
    def price(self) -> float:
        """What the VM pays for each of its frames: those who pay least lose first."""
        used = self.working_set
        return self._shares / max(used + self._idle_cost * (self.dmm.pool.size - used), 1)

    def statistics(self) -> dict[str, int]:
        return {"working_set": self.working_set}

    def _resident(self) -> int:
        return len(self.dmm.p2m.resident())

    def _evictions(self) -> int:
        return self.dmm.log.counts()["evict"]

    def _estimate(self) -> None:
        """Look at the sample, and begin the next one."""
        young = self.dmm.take_young(self._sample)
        resident = [self.dmm.is_resident(gfn) for gfn in self._sample.tolist()]  # a page that was evicted says nothing
        if any(resident):
            fraction = float(young[resident].mean())
            steady = abs(fraction - self.active) < _STEADY
            self._fast += _FAST * (fraction - self._fast)
            self._slow += _SLOW * (fraction - self._slow)
            self.active = max(fraction, self._fast, self._slow)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE) if steady else 1
        gfns = self.dmm.p2m.resident()
        chosen = self._random.sample(range(len(gfns)), min(self._size, len(gfns)))
        self._sample = gfns[chosen]
        self.dmm.take_young(self._sample)

    def _rebalance(self) -> None:
        """Give to the VM under pressure that pays most for a frame, from the machine or from who pays least."""
        members = [self, *self.dmm.peers(Balance)]
        needy = [member for member in members if member.pressure]
        if not needy:
            return
        taker = max(needy, key=lambda member: member.price)
        frames = min(taker.pressure, self._step)
        given = min(frames, self.dmm.memory.free)
        givers = sorted((member for member in members if member.price < taker.price), key=lambda member: member.price)
        for giver in givers:
            given += giver._give(frames - given)
        taker.pressure = 0
        taker.dmm.grow(given)

    def _give(self, frames: int) -> int:
        """Shrink the pool by up to ``frames`` that the VM does not use; returns how many."""
        pool = self.dmm.pool
        frames = min(frames, pool.size - max(LEAST, self.working_set))
        if frames <= 0:
            return 0
        try:
            self.dmm.shrink(frames)
        except (NotEnoughSpare, StoreError):
            frames = min(frames, pool.spare)
            self.dmm.shrink(frames)
        self._evicted = self._evictions()  # these are not the guest's need
        return frames
