"""Retiring: a machine frame is taken out of service at any moment, as for a failing DIMM; no guest notices."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from emu.addr import PAGE_SHIFT
from emu.dmm.errors import CannotRetire
from emu.dmm.interface import DmmInterface
from emu.dmm.policy import Policy

if TYPE_CHECKING:
    from emu.boot.image import GuestImage


class Retire(Policy):
    """Retires frames in use, one after the other: a test of everything else.

    Args:
        every: virtual time in ns between two of them.
        count: how many.
        seed: of the choice.

    Attributes:
        retired: frames taken out of service.
        refused: times that this was impossible.
    """

    name = "retire"

    def __init__(self, image: GuestImage, every: int = 1_000_000, count: int = 1, seed: int = 0) -> None:
        self._every, self._left = every, count
        self._random = Random(seed)
        self._next = 0
        self.retired = self.refused = 0

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        self._next = dmm.now + self._every

    def deadline(self) -> int | None:
        return self._next if self._left else None

    def statistics(self) -> dict[str, int]:
        return {"retired": self.retired, "refused": self.refused}

    def epoch(self, now: int) -> None:
        self._next = now + self._every
        gfns = self.dmm.p2m.resident()
        if len(gfns):
            self._left -= 1
            mfn = self.dmm.p2m.entries.item(int(gfns[self._random.randrange(len(gfns))])) >> PAGE_SHIFT
            try:
                self.dmm.retire(mfn)
                self.retired += 1
            except CannotRetire:
                self.refused += 1
