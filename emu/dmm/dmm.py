"""DMM: the owner of a VM's mapping from gfn to mfn, which can change at any moment while the guest runs.

It alone writes P2M, M2P and pool.  Policies call it; paging is told by it (``forget``, ``restrict``) before any change
takes effect, so that no stale translation survives.

Whatever a policy raises passes through, and leaves the mapping as it was before the step that asked the policy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from emu import events
from emu.addr import NO_FRAME, PAGE_SIZE
from emu.dmm.m2p import M2P
from emu.dmm.p2m import ALL_RIGHTS, NO_MEMORY, P2M, RESIDENT, Intent, PageType
from emu.dmm.policy import ZERO_PAGE, Policy, PolicyFault
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


class NoProgress(OutOfFrames):
    """Policies take pages away faster than one instruction can have them all: it never completes."""

    def __init__(self, vm: str, gfn: int, pool: int) -> None:
        super().__init__(vm, gfn, pool)
        self.args = (
            f"{vm}: the guest makes no progress: one instruction needs more pages at a time than it gets of the {pool} "
            f"frames of the pool, last gfn {gfn:#x}; a larger --pool would help",
        )


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
        self._asking: dict[int, int] = {}  # gfns whose contents a policy fetches or stores now, and their new frames

    # --- policies ---

    def attach(self, policy: Policy) -> None:
        """Put ``policy`` in force, behind those that already are."""
        self.policies.append(policy)
        try:
            policy.attach(self)
        except BaseException:
            self.policies.remove(policy)
            raise

    def detach(self, policy: Policy) -> None:
        """Take ``policy`` out of force; pages that it keeps come back first.

        Raises:
            OutOfFrames: they do not all fit into the pool; the policy stays in force.
        """
        place = self.policies.index(policy)
        del self.policies[place]  # it must not evict other pages to make room for its own
        try:
            for gfn in [gfn for gfn, keeper in self._keepers.items() if keeper is policy]:
                self.populate(gfn)
            policy.detach()
        except BaseException:
            self.policies.insert(place, policy)
            raise

    # --- what the guest asks for ---

    def resolve(self, gfn: int, intent: Intent) -> int:
        """Make ``gfn`` resident with the right that ``intent`` needs.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: the pool is full and no policy makes room.
            PolicyFault: a policy claims to have settled it and has not.
            ValueError: there is no such gfn.
        """
        self._check(gfn)
        cause = self.p2m.type(gfn)
        mfn = self.p2m.mfn(gfn) if cause is PageType.RAM else self._populate(gfn)
        if not self.p2m.grants(gfn, intent):
            self._settle(gfn, intent)
            mfn = self.p2m.mfn(gfn)
        self.log.record(events.DmmFault, gfn, intent, cause, mfn)
        return mfn

    def _settle(self, gfn: int, intent: Intent) -> None:
        for policy in self.policies:
            if policy.denied(gfn, intent):
                if not self.p2m.grants(gfn, intent):
                    raise PolicyFault(policy.name, gfn, f"says that {intent.name} is settled, and it is not granted")
                return
        self.protect(gfn, self.p2m.rights(gfn) | intent)

    def populate(self, gfn: int) -> int:
        """Give ``gfn`` a frame with its contents, if it has none.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: as :meth:`resolve`.
            PolicyFault: a policy hands out contents that are no page.
            ValueError: there is no such gfn.
        """
        self._check(gfn)
        return self.p2m.mfn(gfn) if self.p2m.type(gfn) is PageType.RAM else self._populate(gfn)

    def _populate(self, gfn: int) -> int:
        self._check_not_asking(gfn)
        mfn = self._take_frame(gfn)
        kind = self.p2m.type(gfn)
        if kind is PageType.RAM:  # making room has populated it
            self.pool.give_back(mfn)
            return self.p2m.mfn(gfn)
        self._asking[gfn] = mfn
        try:
            contents = self._contents(gfn, kind)
        except BaseException:
            self.pool.give_back(mfn)
            raise
        finally:
            del self._asking[gfn]
        # zeros are by far the most frequent contents, and filling is twice as fast as copying
        self.memory.pages[mfn] = 0 if contents is ZERO_PAGE else np.frombuffer(contents, np.uint8)
        self._keepers.pop(gfn, None)
        self.m2p.set(mfn, self.index, gfn)
        self.p2m.set(gfn, PageType.RAM, mfn, ALL_RIGHTS)
        self._changed()
        return mfn

    def _contents(self, gfn: int, kind: PageType) -> bytes:
        contents = None
        if kind == PageType.EVICTED:
            policy = self._keepers[gfn]
            contents = policy.restore(gfn)
        else:
            for policy in self.policies:
                contents = policy.populate(gfn, kind)
                if contents is not None:
                    break
        if contents is None:
            raise EmuError(f"{self.vm}: no policy populates gfn {gfn:#x}, which is {kind.name}")
        if len(contents) != PAGE_SIZE:
            raise PolicyFault(policy.name, gfn, f"hands out {len(contents)} bytes instead of {PAGE_SIZE}")
        return contents

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
        if int(before) & ~int(rights):
            self.paging.restrict(gfn, mfn)
        self.p2m.set(gfn, PageType.RAM, mfn, rights)
        self.log.record(events.Protect, gfn, before, rights)
        self._changed()

    def evict(self, gfn: int, keeper: Policy) -> None:
        """Take the frame from behind a resident ``gfn``; ``keeper`` gets the contents, and is asked for them later.

        Raises:
            ValueError: the gfn is not resident, or the keeper is not in force.
        """
        mfn = self._resident(gfn)
        if keeper not in self.policies:
            raise ValueError(f"policy {keeper.name} is not attached and cannot keep gfn {gfn:#x}")
        self.paging.forget(gfn, mfn)
        self._asking[gfn] = NO_FRAME
        try:
            keeper.keep(gfn, self.memory.pages[mfn].tobytes())
        finally:
            del self._asking[gfn]
        self._keepers[gfn] = keeper
        self.p2m.set(gfn, PageType.EVICTED)
        self.m2p.clear(mfn)
        self.pool.give_back(mfn)
        self.log.record(events.Evict, gfn, mfn)
        self._changed()

    def discard(self, gfn: int) -> None:
        """The guest does not need the contents of a resident ``gfn`` any more: it is EMPTY, and reads as zeros.

        Raises:
            ValueError: the gfn is not resident.
        """
        mfn = self._resident(gfn)
        self.paging.forget(gfn, mfn)
        self.p2m.set(gfn, PageType.EMPTY)
        self.m2p.clear(mfn)
        self.pool.give_back(mfn)
        self.log.record(events.Discard, gfn, mfn)
        self._changed()

    def is_resident(self, gfn: int) -> bool:
        """Whether there is a frame behind ``gfn``."""
        return 0 <= gfn < len(self.p2m) and self.p2m.type(gfn) in RESIDENT

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

    # --- what stands behind a gfn beside memory ---

    def is_memory(self, gfn: int) -> bool:
        """Whether ``gfn`` has contents, resident or not."""
        return 0 <= gfn < len(self.p2m) and self.p2m.type(gfn) not in NO_MEMORY

    def set_mmio(self, gfns: range, mapped: bool = True) -> None:
        """Let every access to ``gfns``, which must be holes, reach the devices; or make them holes again.

        Raises:
            ValueError: one of them is something else.
        """
        for gfn in gfns:
            self.p2m.set(gfn, PageType.MMIO if mapped else PageType.HOLE)
        self.paging.forget_translations()
        self._changed()

    # --- contents, for devices and tools ---

    def read(self, gpa: int, size: int) -> bytes:
        """Guest memory from outside the guest; pages that are not resident are populated; holes read as all ones."""
        pieces = []
        while size > 0:
            gfn, offset = divmod(gpa, PAGE_SIZE)
            length = min(size, PAGE_SIZE - offset)
            mfn = self.populate(gfn) if self.is_memory(gfn) else self.memory.void_mfn
            pieces.append(self.memory.pages[mfn, offset : offset + length].tobytes())
            gpa, size = gpa + length, size - length
        return b"".join(pieces)

    def write(self, gpa: int, data: bytes) -> None:
        """Change guest memory from outside the guest, with the same consequences as a store of its own."""
        done = 0
        while done < len(data):
            gfn, offset = divmod(gpa + done, PAGE_SIZE)
            length = min(len(data) - done, PAGE_SIZE - offset)
            if self.is_memory(gfn):
                self._check_not_asking(gfn)
                mfn = self.populate(gfn)
                if not self.p2m.grants(gfn, Intent.WRITE):
                    mfn = self.resolve(gfn, Intent.WRITE)
                self.memory.pages[mfn, offset : offset + length] = np.frombuffer(data, np.uint8, length, done)
                self.paging.rewritten(gfn, mfn)
            done += length

    # --- for the audit ---

    def kept_gfns(self) -> set[int]:
        """The gfns whose contents some policy keeps."""
        return set(self._keepers)

    def frames_in_flight(self) -> list[int]:
        """Frames taken from the pool for pages whose contents a policy is fetching at this moment."""
        return [mfn for mfn in self._asking.values() if mfn != NO_FRAME]

    # --- checks ---

    def _check(self, gfn: int) -> None:
        if not self.is_memory(gfn):
            raise ValueError(f"gfn {gfn:#x} is no memory of {self.vm}")

    def _check_not_asking(self, gfn: int) -> None:
        if gfn in self._asking:
            raise ValueError(f"gfn {gfn:#x} cannot change while a policy fetches or stores its contents")

    def _resident(self, gfn: int) -> int:
        if not 0 <= gfn < len(self.p2m) or self.p2m.type(gfn) != PageType.RAM:
            raise ValueError(f"gfn {gfn:#x} is not resident")
        self._check_not_asking(gfn)
        return self.p2m.mfn(gfn)

    def _changed(self) -> None:
        if self.after_change is not None:
            self.after_change()
