"""PhysicalMemory: a VM's pseudo-physical memory, as devices and tools access it from outside the guest."""

from __future__ import annotations

import numpy as np

from emu.addr import PAGE_SIZE
from emu.dmm.dmm import DMM
from emu.dmm.p2m import ACCESSED, DIRTY, Intent, PageType


class PhysicalMemory:
    """The memory of one VM; satisfies :class:`emu.devices.device.GuestMemory`.

    Args:
        dmm: of the VM.
    """

    def __init__(self, dmm: DMM) -> None:
        self._dmm = dmm

    def read(self, gpa: int, size: int) -> bytes:
        """Guest memory from outside the guest; pages that are not resident are populated; holes read as all ones."""
        dmm = self._dmm
        pieces = []
        while size > 0:
            gfn, offset = divmod(gpa, PAGE_SIZE)
            length = min(size, PAGE_SIZE - offset)
            mfn = dmm.memory.void_mfn
            if dmm.is_memory(gfn):
                mfn = dmm.populate(gfn)
                dmm.p2m.mark(gfn, ACCESSED)
            pieces.append(dmm.memory.pages[mfn, offset : offset + length].tobytes())
            gpa, size = gpa + length, size - length
        return b"".join(pieces)

    def peek(self, gpa: int, size: int) -> bytes:
        """As :meth:`read`, for those who only look: a page is not accessed by it, and one that nothing was ever stored
        to stays without a frame.  (One that is elsewhere has to come back.)"""
        dmm = self._dmm
        pieces = []
        while size > 0:
            gfn, offset = divmod(gpa, PAGE_SIZE)
            length = min(size, PAGE_SIZE - offset)
            if not dmm.is_memory(gfn):
                pieces.append(b"\xff" * length)
            elif dmm.p2m.type(gfn) is PageType.EMPTY:
                pieces.append(bytes(length))
            else:
                pieces.append(dmm.memory.pages[dmm.populate(gfn), offset : offset + length].tobytes())
            gpa, size = gpa + length, size - length
        return b"".join(pieces)

    def write(self, gpa: int, data: bytes) -> None:
        """Change guest memory from outside the guest, with the same consequences as a store of its own."""
        dmm = self._dmm
        done = 0
        while done < len(data):
            gfn, offset = divmod(gpa + done, PAGE_SIZE)
            length = min(len(data) - done, PAGE_SIZE - offset)
            if dmm.is_memory(gfn):
                dmm.space.check_not_asking(gfn)
                mfn = dmm.populate(gfn)
                if not dmm.p2m.grants(gfn, Intent.WRITE):
                    mfn = dmm.resolve(gfn, Intent.WRITE)
                dmm.p2m.mark(gfn, ACCESSED | DIRTY)
                dmm.memory.pages[mfn, offset : offset + length] = np.frombuffer(data, np.uint8, length, done)
                dmm.space.paging.rewritten(gfn, mfn)
            done += length

    def set_mmio(self, gfns: range, mapped: bool = True) -> None:
        """Let every access to ``gfns``, which must be holes, reach the devices; or make them holes again.

        Raises:
            ValueError: one of them is something else.
        """
        space = self._dmm.space
        for gfn in gfns:
            space.p2m.set(gfn, PageType.MMIO if mapped else PageType.HOLE)
        space.paging.forget_holes(gfns)
        space.changed()
