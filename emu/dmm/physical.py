"""PhysicalMemory: a VM's pseudo-physical memory, as devices and tools access it from outside the guest."""

from __future__ import annotations

import numpy as np

from emu.addr import PAGE_SIZE
from emu.dmm.dmm import DMM
from emu.dmm.p2m import ACCESSED, DIRTY, Intent, PageType


class PhysicalMemory:
    """The memory of one VM; satisfies :class:`emu.devices.device.BoardMemory`.

    Args:
        dmm: of the VM.

    Attributes:
        reserve: frames that the pool may grow by for memory beside RAM.
    """

    def __init__(self, dmm: DMM) -> None:
        self._dmm = dmm
        self.reserve = 0

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

    def is_hole(self, gfns: range) -> bool:
        """Whether there is nothing at ``gfns``: neither memory nor a device."""
        entries = self._dmm.p2m.entries[gfns.start : gfns.stop]
        return len(entries) == len(gfns) and not entries.any()

    def add_memory(self, gfns: range) -> None:
        """Have memory, of zeros, at ``gfns``, which must be holes; the pool grows by what is reserved for that."""
        dmm, space = self._dmm, self._dmm.space
        space.p2m.set_run(gfns, PageType.EMPTY)
        space.paging.forget_translations()
        frames = min(self.reserve, len(gfns), dmm.memory.free)
        if frames:
            self.reserve -= frames
            dmm.grow(frames)
        space.changed()

    def take_memory(self, gfns: range) -> dict[int, bytes]:
        """Make holes of ``gfns``, which is all memory that :meth:`add_memory` has added.

        Returns:
            Contents by page, counted from the first; pages of zeros are left out.
        """
        dmm, space = self._dmm, self._dmm.space
        contents = {}
        for number, gfn in enumerate(gfns):
            if dmm.p2m.type(gfn) is not PageType.EMPTY:
                contents[number] = self.peek(gfn * PAGE_SIZE, PAGE_SIZE)
                dmm.discard(gfn)
        space.p2m.set_run(gfns, PageType.HOLE)
        space.paging.forget_translations()
        space.changed()
        return contents

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
