"""DMM: the owner of a VM's mapping from gfn to mfn, which can change at any moment while the guest runs.

It alone writes P2M, M2P and pool.  Policies call it; paging is told by it (``forget``, ``restrict``) before any change
takes effect, so that no stale translation survives.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emu import events
from emu.addr import PAGE_SIZE
from emu.dmm.m2p import M2P
from emu.dmm.p2m import ALL_RIGHTS, P2M, Intent, PageType
from emu.dmm.policy import Policy
from emu.dmm.pool import Pool
from emu.errors import EmuError
from emu.mmu.paging import Paging
from emu.ram import MachineMemory


class OutOfFrames(EmuError):
    """A page needs a frame, the pool has none, and no policy can make room.

    Attributes:
        vm: name of the VM.
        gfn: the page.
        pool: frames in its pool.
    """

    def __init__(self, vm: str, gfn: int, pool: int) -> None:
        super().__init__(
            f"{vm}: all {pool} frames of the pool are in use and no policy makes room for gfn {gfn:#x}; "
            "a larger --pool or a policy that evicts would help"
        )
        self.vm = vm
        self.gfn = gfn
        self.pool = pool


class NotEnoughSpare(EmuError):
    """A pool cannot shrink as far as was asked; it has not changed.

    Attributes:
        vm: name of the VM.
        wanted, spare: frames to give up, frames that could be.
    """

    def __init__(self, vm: str, wanted: int, spare: int) -> None:
        super().__init__(f"{vm}: cannot give up {wanted} frames: {spare} are spare and no policy makes room")
        self.vm = vm
        self.wanted = wanted
        self.spare = spare


class DMM:
    """The DMM of one VM.

    Args:
        vm: the VM's name; ``index``: its number in the machine.
        memory, m2p: of the machine.
        pool, p2m, paging, log: of the VM.

    Attributes:
        policies: in force, in the order in which they are asked.
        after_change: called after each change of the mapping (``--audit``).
    """

    def __init__(
        self, vm: str, index: int, memory: MachineMemory, m2p: M2P, pool: Pool, p2m: P2M, paging: Paging,
        log: events.EventLog,
    ) -> None:  # fmt: skip
        self.vm = vm
        self.index = index
        self.memory = memory
        self.m2p = m2p
        self.pool = pool
        self.p2m = p2m
        self.paging = paging
        self.log = log
        self.policies: list[Policy] = []
        self.after_change: Callable[[], None] | None = None
        self._keepers: dict[int, Policy] = {}

    # --- policies ---

    def attach(self, policy: Policy) -> None:
        """Put ``policy`` in force, behind those that already are."""
        self.policies.append(policy)
        policy.attach(self)

    def detach(self, policy: Policy) -> None:
        """Take ``policy`` out of force; pages that it keeps come back first."""
        for gfn in [gfn for gfn, keeper in self._keepers.items() if keeper is policy]:
            self.populate(gfn)
        policy.detach()
        self.policies.remove(policy)

    # --- what the guest asks for ---

    def resolve(self, gfn: int, intent: Intent) -> int:
        """Make ``gfn`` resident with the right that ``intent`` needs.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: the pool is full and no policy makes room.
        """
        cause = self.p2m.type(gfn)
        if cause != PageType.RAM:
            self.populate(gfn)
        if not self.p2m.rights(gfn) & intent and not any(policy.denied(gfn, intent) for policy in self.policies):
            self.protect(gfn, self.p2m.rights(gfn) | intent)
        mfn = self.p2m.mfn(gfn)
        self.log.record(events.DmmFault, gfn, intent, cause, mfn)
        return mfn

    def populate(self, gfn: int) -> int:
        """Give ``gfn`` a frame with its contents, if it has none.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: as :meth:`resolve`.
        """
        kind = self.p2m.type(gfn)
        if kind == PageType.RAM:
            return self.p2m.mfn(gfn)
        mfn = self._take_frame(gfn)
        try:
            contents = self._contents(gfn, kind)
        except BaseException:
            self.pool.give_back(mfn)
            raise
        self.memory.pages[mfn] = np.frombuffer(contents, np.uint8)
        self._keepers.pop(gfn, None)
        self.m2p.set(mfn, self.index, gfn)
        self.p2m.set(gfn, PageType.RAM, mfn, ALL_RIGHTS)
        self._changed()
        return mfn

    def _contents(self, gfn: int, kind: PageType) -> bytes:
        if kind == PageType.EVICTED:
            return self._keepers[gfn].restore(gfn)
        for policy in self.policies:
            contents = policy.populate(gfn, kind)
            if contents is not None:
                return contents
        raise EmuError(f"{self.vm}: no policy populates gfn {gfn:#x}, which is {kind.name}")

    def _take_frame(self, gfn: int) -> int:
        mfn = self.pool.take()
        if mfn is not None:
            return mfn
        for policy in self.policies:
            policy.make_room(1)
            mfn = self.pool.take()
            if mfn is not None:
                return mfn
        raise OutOfFrames(self.vm, gfn, self.pool.size)

    # --- what policies ask for ---

    def remap(self, gfn: int) -> int:
        """Move a resident ``gfn`` to another frame of the pool while the guest runs.

        Returns:
            The new mfn.

        Raises:
            OutOfFrames: the pool has no spare frame and no policy makes room.
            ValueError: the gfn is not resident.
        """
        before = self._resident(gfn)
        after = self._take_frame(gfn)
        if self.p2m.mfn(gfn) != before:  # making room evicted the very page
            self.pool.give_back(after)
            return self.populate(gfn)
        self.paging.forget(gfn, before)
        self.memory.pages[after] = self.memory.pages[before]
        self.p2m.set(gfn, PageType.RAM, after, self.p2m.rights(gfn))
        self.m2p.clear(before)
        self.m2p.set(after, self.index, gfn)
        self.pool.give_back(before)
        self.log.record(events.Remap, gfn, before, after)
        self._changed()
        return after

    def protect(self, gfn: int, rights: Intent) -> None:
        """Grant exactly ``rights`` on a resident ``gfn``; the guest's next access beyond them asks the DMM.

        Raises:
            ValueError: the gfn is not resident.
        """
        mfn = self._resident(gfn)
        before = self.p2m.rights(gfn)
        if before == rights:
            return
        if before & ~rights:
            self.paging.restrict(gfn, mfn)
        self.p2m.set(gfn, PageType.RAM, mfn, rights)
        self.log.record(events.Protect, gfn, before, rights)
        self._changed()

    def evict(self, gfn: int, keeper: Policy) -> None:
        """Take the frame from behind a resident ``gfn``; ``keeper`` gets the contents, and is asked for them later.

        Raises:
            ValueError: the gfn is not resident.
        """
        mfn = self._resident(gfn)
        self.paging.forget(gfn, mfn)
        keeper.keep(gfn, self.memory.pages[mfn].tobytes())
        self._keepers[gfn] = keeper
        self.p2m.set(gfn, PageType.EVICTED)
        self.m2p.clear(mfn)
        self.pool.give_back(mfn)
        self.log.record(events.Evict, gfn, mfn)
        self._changed()

    def grow(self, frames: int) -> None:
        """Add ``frames`` machine frames to the pool.

        Raises:
            OutOfMachineFrames: the machine has fewer; nothing has changed.
        """
        before = self.pool.size
        self.pool.grow(frames)
        self.log.record(events.PoolResize, before, self.pool.size)
        self._changed()

    def shrink(self, frames: int) -> None:
        """Give ``frames`` of the pool back to the machine; policies make room where too few are spare.

        Raises:
            NotEnoughSpare: they cannot; the pool's size has not changed.
        """
        for policy in self.policies:
            if self.pool.spare < frames:
                policy.make_room(frames - self.pool.spare)
        if self.pool.spare < frames:
            raise NotEnoughSpare(self.vm, frames, self.pool.spare)
        before = self.pool.size
        self.pool.shrink(frames)
        self.log.record(events.PoolResize, before, self.pool.size)
        self._changed()

    # --- contents, for devices and tools ---

    def read(self, gpa: int, size: int) -> bytes:
        """Guest memory from outside the guest; pages that are not resident are populated; holes read as all ones."""
        pieces = []
        while size > 0:
            gfn, offset = divmod(gpa, PAGE_SIZE)
            length = min(size, PAGE_SIZE - offset)
            mfn = self.populate(gfn) if 0 <= gfn < len(self.p2m) else self.memory.void_mfn
            pieces.append(self.memory.pages[mfn, offset : offset + length].tobytes())
            gpa, size = gpa + length, size - length
        return b"".join(pieces)

    def write(self, gpa: int, data: bytes) -> None:
        """Change guest memory from outside the guest, with the same consequences as a store of its own."""
        done = 0
        while done < len(data):
            gfn, offset = divmod(gpa + done, PAGE_SIZE)
            length = min(len(data) - done, PAGE_SIZE - offset)
            if 0 <= gfn < len(self.p2m):
                mfn = self.populate(gfn)
                if not self.p2m.rights(gfn) & Intent.WRITE:
                    self.resolve(gfn, Intent.WRITE)
                    mfn = self.p2m.mfn(gfn)
                self.memory.pages[mfn, offset : offset + length] = np.frombuffer(data, np.uint8, length, done)
                self.paging.rewritten(gfn, mfn)
            done += length

    def _resident(self, gfn: int) -> int:
        if not 0 <= gfn < len(self.p2m) or self.p2m.type(gfn) != PageType.RAM:
            raise ValueError(f"gfn {gfn:#x} is not resident")
        return self.p2m.mfn(gfn)

    def _changed(self) -> None:
        if self.after_change is not None:
            self.after_change()
