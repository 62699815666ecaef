"""A policy that changes a guest's mapping at random, and lets it do with too little memory."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np

from emu.dmm.errors import NotEnoughSpare, OutOfFrames
from emu.dmm.p2m import Intent, PageType
from emu.dmm.policy import Policy
from emu.engine.ram import OutOfMachineFrames


class Chaos(Policy):
    """Remaps, protects and evicts random pages, resizes the pool, and makes room by evicting.

    Args:
        seed: of its random numbers; the same seed and guest give the same run.
        every: virtual time between two bursts of changes, in ns, on average.
        least, most: pool sizes that it stays between, in frames.  One instruction can need a dozen: for code, data,
            stack and descriptors, and for the page tables that lead to each.

    Attributes:
        done: how often it did what.
    """

    name = "chaos"

    def __init__(self, seed: int, every: int, least: int, most: int) -> None:
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._every = every
        self._least = least
        self._most = most
        self._kept: dict[int, bytes] = {}
        self._next = every

    def deadline(self) -> int:
        return self._next

    def epoch(self, now: int) -> None:
        for _ in range(self._random.randint(1, 4)):
            name = self._random.choice(("remap", "remap", "protect", "protect", "evict", "grow", "shrink"))
            try:
                getattr(self, f"_{name}")()
            except (NotEnoughSpare, OutOfMachineFrames, OutOfFrames):
                continue
            self.done[name] += 1
        self._next = now + self._random.randint(1, 2 * self._every)

    def make_room(self, frames: int) -> None:
        for _ in range(min(frames, self.dmm.pool.used)):
            self._evict()
            self.done["make room"] += 1

    def keep(self, gfn: int, contents: bytes) -> None:
        self._kept[gfn] = contents

    def restore(self, gfn: int) -> bytes:
        return self._kept[gfn]

    def _any_page(self) -> int:
        """A random page that has a frame.  Raises OutOfFrames when there is none."""
        pages = np.flatnonzero(self.dmm.p2m.entries >> 4 & 15 == PageType.RAM)
        if not len(pages):
            raise OutOfFrames(self.dmm.name, 0, self.dmm.pool.size)
        return int(self._random.choice(pages))

    def _remap(self) -> None:
        self.dmm.remap(self._any_page())

    def _protect(self) -> None:
        self.dmm.protect(self._any_page(), Intent(self._random.randrange(8)))

    def _evict(self) -> None:
        self.dmm.evict(self._any_page(), self)

    def _grow(self) -> None:
        self.dmm.grow(min(self._random.randint(1, 3), self._most - self.dmm.pool.size))

    def _shrink(self) -> None:
        self.dmm.shrink(min(self._random.randint(1, 3), self.dmm.pool.size - self._least))
