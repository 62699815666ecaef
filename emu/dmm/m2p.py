"""M2P: from mfn to its users."""

from __future__ import annotations

import numpy as np

from emu.addr import NO_FRAME


class M2P:
    """The table of the whole machine.

    Args:
        frames: number of machine frames; none has a user at first.

    Attributes:
        gfn: int64 array; the gfn that uses each frame, NO_FRAME without a user.  The native plane reads it.
        vm: int32 array; index of the VM that this gfn belongs to.
    """

    def __init__(self, frames: int) -> None:
        self.gfn = np.full(frames, NO_FRAME, np.int64)
        self.vm = np.full(frames, -1, np.int32)

    def set(self, mfn: int, vm: int, gfn: int) -> None:
        """``gfn`` of VM ``vm`` uses ``mfn`` from now on."""
        self.gfn[mfn], self.vm[mfn] = gfn, vm

    def clear(self, mfn: int) -> None:
        """Nobody uses ``mfn`` any more."""
        self.gfn[mfn], self.vm[mfn] = NO_FRAME, -1

    def users(self, mfn: int) -> list[tuple[int, int]]:
        """The (vm, gfn) pairs that use ``mfn``."""
        return [] if self.gfn[mfn] == NO_FRAME else [(int(self.vm[mfn]), int(self.gfn[mfn]))]
