"""Space: all that belongs to the pseudo-physical memory of one VM, which the parts of its DMM work on together.

It holds data and answers questions; what changes a mapping is in the files of the parts: :mod:`emu.dmm.pages`,
:mod:`emu.dmm.sharing`, :mod:`emu.dmm.faults`, :mod:`emu.dmm.poolsize`, :mod:`emu.dmm.retire`.  Frames pass between VMs
(:mod:`emu.dmm.frames`), so each space finds those of the other VMs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from emu.dmm.contents import Contents
from emu.dmm.errors import PagePinned
from emu.dmm.m2p import M2P
from emu.dmm.p2m import NO_MEMORY, P2M, RESIDENT
from emu.dmm.policylist import PolicyList
from emu.dmm.pool import Pool
from emu.engine.eventlog import EventLog
from emu.engine.ram import MachineMemory
from emu.mmu.paging import Paging


class SharedMachine:
    """What the VMs of one machine share.

    Args:
        frames: of machine memory.

    Attributes:
        memory: the frames.
        m2p: who uses them.
        spaces: those of the VMs, by the VMs' numbers.
    """

    def __init__(self, frames: int) -> None:
        self.memory = MachineMemory(frames)
        self.m2p = M2P(frames)
        self.spaces: dict[int, Space] = {}


class Space:
    """The memory of one VM; it is among the machine's from now on.

    Args:
        machine: what the VM shares with others.
        name: the VM's name.
        index: its number in the machine.
        pool, p2m, paging, log: of the VM.

    Attributes:
        policies: in force, in the order in which they are asked.
        contents: those of pages without a frame.
        pins: gfn to how often it is pinned.
        given_up: how often a page has given up its frame: tells whether anything happens.
        words: machine memory as int64, a row for each frame.
        after_change: called after each change of the mapping (``--audit``).
    """

    def __init__(
        self, machine: SharedMachine, name: str, index: int, pool: Pool, p2m: P2M, paging: Paging, log: EventLog
    ) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.m2p = machine.m2p
        self.spaces = machine.spaces
        self.name = name
        self.index = index
        self.pool = pool
        self.p2m = p2m
        self.paging = paging
        self.log = log
        self.policies = PolicyList()
        self.contents = Contents(name, self.policies, p2m)
        self.pins: dict[int, int] = {}
        self.given_up = 0
        self.words = self.memory.pages.view(np.int64)
        self.after_change: Callable[[], None] | None = None
        self.spaces[index] = self

    @property
    def is_closed(self) -> bool:
        """Whether the VM is gone from its machine."""
        return self.spaces.get(self.index) is not self

    def is_memory(self, gfn: int) -> bool:
        """Whether ``gfn`` has contents, resident or not."""
        return 0 <= gfn < len(self.p2m) and self.p2m.type(gfn) not in NO_MEMORY

    def is_resident(self, gfn: int) -> bool:
        """Whether there is a frame behind ``gfn``."""
        return 0 <= gfn < len(self.p2m) and self.p2m.type(gfn) in RESIDENT

    def resident_frame(self, gfn: int) -> int:
        """The frame behind ``gfn``, which is about to change.

        Raises:
            ValueError: there is none, or a policy is asked about the page at this moment.
        """
        if not self.is_resident(gfn):
            raise ValueError(f"gfn {gfn:#x} is not resident")
        self.check_not_asking(gfn)
        return self.p2m.mfn(gfn)

    def check_memory(self, gfn: int) -> None:
        """Raise ValueError unless ``gfn`` has contents."""
        if not self.is_memory(gfn):
            raise ValueError(f"gfn {gfn:#x} is no memory of {self.name}")

    def check_not_asking(self, gfn: int) -> None:
        """Raise ValueError if a policy is asked about ``gfn`` at this moment."""
        if gfn in self.contents.in_flight:
            raise ValueError(f"gfn {gfn:#x} cannot change while a policy fetches or stores its contents")

    def check_not_pinned(self, gfn: int) -> None:
        """Raise PagePinned if ``gfn`` is pinned."""
        if gfn in self.pins:
            raise PagePinned(self.name, gfn)

    def changed(self) -> None:
        """The mapping has changed."""
        if self.after_change is not None:
            self.after_change()

    def all_changed(self, users: Iterable[tuple[int, int]]) -> None:
        """The mapping of this VM and of those in ``users``, pairs of VM number and gfn, has changed."""
        self.changed()
        for vm in sorted({vm for vm, _ in users} - {self.index}):
            self.spaces[vm].changed()
