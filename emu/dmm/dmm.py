"""DMM: the owner of a VM's mapping from gfn to mfn, which can change at any moment while the guest runs.

It alone writes P2M, M2P and pool.  Policies call it; paging is told by it (``forget``, ``restrict``) before any change
takes effect, so that no stale translation survives.

Whatever a policy raises passes through, and leaves the mapping as it was before the step that asked the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np

from emu.addr import NO_FRAME, PAGE_SIZE
from emu.cpu.clock import NEVER
from emu.dmm.balloon_channel import BalloonChannel
from emu.dmm.contents import Contents
from emu.dmm.errors import CannotRetire, NotEnoughSpare, PagePinned, StoreError
from emu.dmm.frames import Frames
from emu.dmm.m2p import M2P
from emu.dmm.p2m import (
    ACCESSED,
    ALL_RIGHTS,
    DIRTY,
    NO_MEMORY,
    NO_RIGHTS,
    P2M,
    RESIDENT,
    Array,
    Intent,
    PageType,
    marks_of,
)
from emu.dmm.policy import ZERO_PAGE, Policy, PolicyFault
from emu.dmm.pool import Pool
from emu.engine import events
from emu.engine.eventlog import EventLog
from emu.engine.ram import MachineMemory, OutOfMachineFrames
from emu.mmu.paging import Paging

_READ_ONLY = Intent.READ | Intent.EXECUTE


class DMM:
    """The DMM of one VM.

    Args:
        vm: the VM's name; ``index``: its number in the machine.
        memory, m2p: of the machine.
        pool, p2m, paging, log: of the VM.

    Attributes:
        policies: in force, in the order in which they are asked.
        balloon: what the VM's balloon devices and its balloon policy know of each other.
        next_epoch: virtual time in ns of the next epoch of a policy, NEVER without one.
        after_change: called after each change of the mapping (``--audit``).
    """

    def __init__(
        self, vm: str, index: int, memory: MachineMemory, m2p: M2P, pool: Pool, p2m: P2M, paging: Paging,
        log: EventLog,
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
        self._watching: list[Policy] = []  # those that are told which pages become resident
        self._withholding = False  # whether a policy decides about rights
        self.balloon = BalloonChannel()
        self.next_epoch = NEVER
        self.after_change: Callable[[], None] | None = None
        self._words = memory.pages.view(np.int64)
        self._frames = Frames(self)
        self._contents = Contents(vm, self.policies, p2m)
        self._pins: dict[int, int] = {}
        self._detaching: Policy | None = None  # it must not evict other pages to make room for its own
        m2p.dmms[index] = self

    @property
    def now(self) -> int:
        """The VM's virtual time in ns."""
        return self.log.now

    # --- policies ---

    def attach(self, policy: Policy) -> None:
        """Put ``policy`` in force, behind those that already are."""
        self.policies.append(policy)
        self._watching = self._watchers()
        try:
            policy.attach(self)
        except BaseException:
            self.policies.remove(policy)
            raise
        finally:
            self._policies_changed()

    def detach(self, policy: Policy) -> None:
        """Take ``policy`` out of force; pages that it keeps come back first.

        Raises:
            OutOfFrames: they do not all fit into the pool; the policy stays in force.
        """
        self._detaching = policy
        try:
            for gfn in self._contents.kept(policy):
                self.populate(gfn)
                self._contents.forget(gfn)
            policy.detach()
        finally:
            self._detaching = None
        self.policies.remove(policy)
        self._policies_changed()

    def _policies_changed(self) -> None:
        self._watching = self._watchers()
        self._withholding = any(type(policy).denied is not Policy.denied for policy in self.policies)
        self._plan_epoch()

    def _watchers(self) -> list[Policy]:
        return [policy for policy in self.policies if type(policy).entered is not Policy.entered]

    def _plan_epoch(self) -> None:
        deadlines = (policy.deadline() for policy in self.policies)
        self.next_epoch = min((time for time in deadlines if time is not None), default=NEVER)

    def run_epochs(self, now: int) -> None:
        """Run the epochs of the policies whose deadline has come.

        Args:
            now: virtual time in ns.
        """
        if now >= self.next_epoch:
            for policy in list(self.policies):
                deadline = policy.deadline()
                if deadline is not None and deadline <= now:
                    policy.epoch(now)
            self._plan_epoch()

    def policies_that_evict(self) -> list[Policy]:
        """Those that may be asked to make room."""
        return [policy for policy in self.policies if policy is not self._detaching]

    def forget_copy(self, gfn: int) -> None:
        """The copy of a resident ``gfn`` that some policy keeps is of no use any more."""
        if not self.is_resident(gfn):
            raise ValueError(f"gfn {gfn:#x} is not resident: the copy is all that there is")
        self._contents.forget(gfn)

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
        mfn = self.p2m.mfn(gfn) if cause in RESIDENT else self._populate(gfn)
        if not self.p2m.grants(gfn, intent):
            if intent & Intent.WRITE and self.p2m.type(gfn) is PageType.SHARED:
                self.unshare(gfn)
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
        return self.p2m.mfn(gfn) if self.p2m.type(gfn) in RESIDENT else self._populate(gfn)

    def _populate(self, gfn: int) -> int:
        self._check_not_asking(gfn)
        mfn = self._frames.take(gfn)
        kind = self.p2m.type(gfn)
        if kind in RESIDENT:  # making room has populated it
            self.pool.give_back(mfn)
            return self.p2m.mfn(gfn)
        try:
            contents = self._contents.fetch(gfn, mfn)
        except BaseException:
            self.pool.give_back(mfn)
            raise
        # zeros are by far the most frequent contents, and filling is twice as fast as copying
        self.memory.pages[mfn] = 0 if contents is ZERO_PAGE else np.frombuffer(contents, np.uint8)
        self.m2p.add(mfn, self.index, gfn)
        self.p2m.set(gfn, PageType.RAM, mfn, ALL_RIGHTS, marks_of(kind))
        for policy in self._watching:
            policy.entered(gfn)
        self._changed()
        return mfn

    # --- what policies ask for ---

    def remap(self, gfn: int) -> int:
        """Move a resident ``gfn``, and all others that share its frame, to another frame of the pool.

        Returns:
            The new mfn.

        Raises:
            OutOfFrames: the pool has no spare frame and no policy makes room.
            ValueError: the gfn is not resident.
        """
        before = self._resident(gfn)
        after = self._frames.take(gfn)
        if self.p2m.mfn(gfn) != before:  # making room evicted the very page
            self.pool.give_back(after)
            return self.populate(gfn)
        users = self.m2p.users(before)
        self._frames.move(before, after)
        self.m2p.dmms[self.memory.owner.item(before)].pool.give_back(before)
        self._all_changed(users)
        return after

    def protect(self, gfn: int, rights: Intent) -> None:
        """Grant exactly ``rights`` on a resident ``gfn``; the guest's next access beyond them asks the DMM.

        Raises:
            ValueError: the gfn is not resident, or is shared and ``rights`` has WRITE.
        """
        mfn = self._resident(gfn)
        before = self.p2m.rights(gfn)
        if before == rights:
            return
        if int(before) & ~int(rights):
            self.paging.restrict(gfn, mfn)
        self.p2m.set(gfn, self.p2m.type(gfn), mfn, rights, self.p2m.marks(gfn))
        self.log.record(events.Protect, gfn, before, rights)
        self._changed()

    def evict(self, gfn: int, keeper: Policy) -> None:
        """Take the frame from behind a resident ``gfn``.

        A page of zeros becomes EMPTY, and a page of the guest image that was never stored to becomes IMAGE.  Otherwise
        ``keeper`` gets the contents and is asked for them later; not even that where a copy is kept that is still good.

        Raises:
            PagePinned: somebody pinned it.
            ValueError: the gfn is not resident, or the keeper is not in force.
        """
        mfn = self._resident(gfn)
        self._check_not_pinned(gfn)
        if keeper not in self.policies or keeper is self._detaching:
            raise ValueError(f"policy {keeper.name} is not attached and cannot keep gfn {gfn:#x}")
        self.paging.forget(gfn, mfn)
        became, stored = self.p2m.origin(gfn), False
        if self.p2m.dirty(gfn) or became is PageType.EMPTY:
            became = PageType.EVICTED if self._words[mfn].any() else PageType.EMPTY
            stored = became is PageType.EVICTED
        if stored:
            self._contents.keep(gfn, self.memory.pages[mfn].tobytes(), keeper)
            mfn = self.p2m.mfn(gfn)  # the policy may have retired the frame, or moved others that share it
        elif became is not PageType.EVICTED:
            self._contents.forget(gfn)
        self._lose_frame(gfn, mfn, became)
        self.log.record(events.Evict, gfn, mfn, became, stored)
        self._changed()

    def _lose_frame(self, gfn: int, mfn: int, became: PageType) -> None:
        self.p2m.set(gfn, became)
        self._frames.give_up(gfn, mfn)
        for policy in self.policies:
            policy.left(gfn)

    def discard(self, gfn: int) -> None:
        """The guest does not need the contents of ``gfn`` any more: it is EMPTY, and reads as zeros.

        Raises:
            PagePinned: somebody pinned it.
            ValueError: it is no memory.
        """
        self._check(gfn)
        self._check_not_asking(gfn)
        self._check_not_pinned(gfn)
        mfn = self.p2m.mfn(gfn)
        if self.p2m.type(gfn) is PageType.EMPTY:
            return
        if mfn != NO_FRAME:
            self.paging.forget(gfn, mfn)
            self._lose_frame(gfn, mfn, PageType.EMPTY)
        else:
            self.p2m.set(gfn, PageType.EMPTY)
        self._contents.forget(gfn)
        self.log.record(events.Discard, gfn, mfn)
        self._changed()

    def pin(self, gfn: int) -> None:
        """Make ``gfn`` resident, and keep it so until :meth:`unpin`; its frame may change.  Pins count.

        Raises:
            as :meth:`populate`.
        """
        self.populate(gfn)
        self._pins[gfn] = self._pins.get(gfn, 0) + 1

    def unpin(self, gfn: int) -> None:
        """Take back one :meth:`pin`."""
        self._pins[gfn] -= 1
        if not self._pins[gfn]:
            del self._pins[gfn]

    def pinned(self) -> list[int]:
        """The gfns that are pinned, in ascending order."""
        return sorted(self._pins)

    def is_evictable(self, gfn: int) -> bool:
        """Whether :meth:`evict` can take the frame of ``gfn`` now, and the pool may gain one by it."""
        free = gfn not in self._pins and gfn not in self._contents.in_flight
        return free and self.is_resident(gfn) and self._frames.may_gain(gfn)

    def can_pay(self) -> bool:
        """Whether the pool has, or could have, a spare frame."""
        return self._frames.can_pay()

    def take_accessed(self, gfns: Array) -> Array:
        """Look which ``gfns`` were accessed, and clear their accessed bits: one flush for all of them.

        Args:
            gfns: int64 array; those that are not resident count as not accessed.

        Returns:
            bool array of the same length.

        Raises:
            ValueError: there is no such gfn; nothing has changed.
        """
        return self._look_at_accesses(gfns, young=False)

    def take_young(self, gfns: Array) -> Array:
        """As :meth:`take_accessed`, but for accesses since the last call of this method, whoever has cleared bits."""
        return self._look_at_accesses(gfns, young=True)

    def _look_at_accesses(self, gfns: Array, young: bool) -> Array:
        gfns = np.ascontiguousarray(gfns, np.int64)
        if len(gfns) and not 0 <= gfns.min() <= gfns.max() < len(self.p2m):
            raise ValueError(f"gfns from {gfns.min():#x} to {gfns.max():#x}: {self.vm} has {len(self.p2m):#x}")
        accessed = np.zeros(len(gfns), np.uint8)
        self.paging.forget_accesses(gfns, accessed, young)
        return accessed.view(bool)

    # --- sharing ---

    def is_shareable(self, gfn: int) -> bool:
        """Whether :meth:`share` can give the frame of ``gfn`` other users: it has one, and nobody withholds rights."""
        if not self.is_resident(gfn) or gfn in self._contents.in_flight:
            return False
        return self.p2m.grants(gfn, _READ_ONLY if self.p2m.type(gfn) is PageType.SHARED else ALL_RIGHTS)

    def share(self, gfn: int, mfn: int) -> bool:
        """Let ``gfn`` use ``mfn``, the frame of a gfn of any VM, in place of its own, if the contents are the same.

        Returns:
            Whether it does now; False leaves everything as it was.

        Raises:
            ValueError: the gfn is not resident, or ``mfn`` has no user.
        """
        before = self._resident(gfn)
        if not self.m2p.count(mfn):
            raise ValueError(f"nobody uses mfn {mfn:#x}")
        if before == mfn or not self.is_shareable(gfn):
            return before == mfn
        vm, first = self.m2p.first(mfn)
        user = self.m2p.dmms[vm]
        exclusive = user.p2m.type(first) is not PageType.SHARED
        if exclusive and not user.is_shareable(first):
            return False
        if not np.array_equal(self._words[before], self._words[mfn]):
            return False
        if exclusive:
            user._restrict_to_reading(first, mfn)
        self.paging.forget(gfn, before)
        self.p2m.set(gfn, PageType.SHARED, mfn, _READ_ONLY, self.p2m.marks(gfn))
        self.m2p.add(mfn, self.index, gfn)
        self._frames.give_up(gfn, before)
        self.log.record(events.Share, gfn, before, mfn, self.m2p.count(mfn))
        self._all_changed([(vm, first)])
        return True

    def _restrict_to_reading(self, gfn: int, mfn: int) -> None:
        """The frame of ``gfn`` gets other users."""
        self.paging.restrict(gfn, mfn)
        self.p2m.set(gfn, PageType.SHARED, mfn, _READ_ONLY, self.p2m.marks(gfn))
        self.log.record(events.Protect, gfn, ALL_RIGHTS, _READ_ONLY)

    def unshare(self, gfn: int) -> int:
        """Give a shared ``gfn`` a frame of its own (copy-on-write break), and the right to write, unless a policy is in
        force that may withhold it: that is asked when the guest writes.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: the pool has no spare frame and no policy makes room.
            ValueError: the gfn is not resident.
        """
        before = after = self._resident(gfn)
        if self.p2m.type(gfn) is not PageType.SHARED:
            return before
        if self.m2p.count(before) > 1 or self.memory.owner.item(before) != self.index:
            after = self._frames.take(gfn)
            if self.p2m.mfn(gfn) != before:  # making room evicted or moved the very page
                self.pool.give_back(after)
                self.populate(gfn)
                return self.unshare(gfn)
            self.memory.pages[after] = self.memory.pages[before]
        self.paging.forget(gfn, before)
        rights = self.p2m.rights(gfn) | (NO_RIGHTS if self._withholding else Intent.WRITE)
        self.p2m.set(gfn, PageType.RAM, after, rights, self.p2m.marks(gfn))
        if after != before:
            self.m2p.add(after, self.index, gfn)
            self._frames.give_up(gfn, before)
        self.log.record(events.Unshare, gfn, before, after)
        self._changed()
        return after

    # --- the pool ---

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
            StoreError: a page cannot be stored; the same.
        """
        self._frames.make_room(frames)
        if self.pool.spare < frames:
            raise NotEnoughSpare(self.vm, frames, self.pool.spare, self.pinned())
        before = self.pool.size
        self.pool.shrink(frames)
        self.log.record(events.PoolResize, before, self.pool.size)
        self._changed()

    def retire(self, mfn: int) -> None:
        """Take a frame of the pool out of service; a free frame of the machine, or a spare one, does its work.

        Raises:
            CannotRetire: there is none, or a policy is about to fill the frame.
        """
        if mfn in self._contents.in_flight.values():
            raise CannotRetire(mfn, "a page is being fetched into it")
        before = self.pool.size
        try:
            self.pool.grow(1)
        except OutOfMachineFrames:
            if self.m2p.count(mfn):
                try:
                    self._frames.make_room(1)
                except StoreError as error:
                    raise CannotRetire(mfn, str(error)) from error
            owner = self.memory.owner.item(mfn)
            if owner != self.index:  # who shares the frame has paid for it
                return self.m2p.dmms[owner].retire(mfn)
        users = self.m2p.users(mfn)
        after = mfn
        if mfn in self.pool.spare_frames():  # making room may have emptied it
            self.pool.lose_spare(mfn)
        else:
            taken = self.pool.take()
            if taken is None:
                raise CannotRetire(mfn, f"it is in use in {self.vm}, no frame is free and no policy makes room")
            after = taken
            self._frames.move(mfn, after)
            self.pool.lose(mfn)
        self.log.record(events.Retire, mfn, after)
        if self.pool.size != before:
            self.log.record(events.PoolResize, before, self.pool.size)
        self._all_changed(users)

    def close(self) -> None:
        """The VM is gone: everything that it has goes back to the machine; shared frames go to who else uses them.

        Raises:
            BadInput: a policy cannot settle what it has in files; all else is done.
        """
        with ExitStack() as steps:
            steps.callback(self._give_back_all)
            for policy in self.policies:
                steps.callback(policy.detach)

    def _give_back_all(self) -> None:
        self.policies.clear()
        self._policies_changed()
        self.paging.close()
        for gfn in self.p2m.resident().tolist():
            mfn = self.p2m.mfn(gfn)
            self.p2m.set(gfn, PageType.EMPTY)
            self._frames.give_up(gfn, mfn)
        self._frames.close()
        del self.m2p.dmms[self.index]

    # --- what stands behind a gfn beside memory ---

    def is_memory(self, gfn: int) -> bool:
        """Whether ``gfn`` has contents, resident or not."""
        return 0 <= gfn < len(self.p2m) and self.p2m.type(gfn) not in NO_MEMORY

    def is_resident(self, gfn: int) -> bool:
        """Whether there is a frame behind ``gfn``."""
        return 0 <= gfn < len(self.p2m) and self.p2m.type(gfn) in RESIDENT

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
            mfn = self.memory.void_mfn
            if self.is_memory(gfn):
                mfn = self.populate(gfn)
                self.p2m.mark(gfn, ACCESSED)
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
                self.p2m.mark(gfn, ACCESSED | DIRTY)
                self.memory.pages[mfn, offset : offset + length] = np.frombuffer(data, np.uint8, length, done)
                self.paging.rewritten(gfn, mfn)
            done += length

    # --- for the audit ---

    def kept_gfns(self) -> set[int]:
        """The gfns of whose contents some policy keeps a copy."""
        return set(self._contents.kept())

    def frames_in_flight(self) -> list[int]:
        """Frames taken from the pool for pages whose contents a policy is fetching at this moment."""
        return [mfn for mfn in self._contents.in_flight.values() if mfn != NO_FRAME]

    # --- checks ---

    def _check(self, gfn: int) -> None:
        if not self.is_memory(gfn):
            raise ValueError(f"gfn {gfn:#x} is no memory of {self.vm}")

    def _check_not_asking(self, gfn: int) -> None:
        if gfn in self._contents.in_flight:
            raise ValueError(f"gfn {gfn:#x} cannot change while a policy fetches or stores its contents")

    def _check_not_pinned(self, gfn: int) -> None:
        if gfn in self._pins:
            raise PagePinned(self.vm, gfn)

    def _resident(self, gfn: int) -> int:
        if not self.is_resident(gfn):
            raise ValueError(f"gfn {gfn:#x} is not resident")
        self._check_not_asking(gfn)
        return self.p2m.mfn(gfn)

    def _changed(self) -> None:
        if self.after_change is not None:
            self.after_change()

    def _all_changed(self, users: list[tuple[int, int]]) -> None:
        """The mapping of this VM and of those in ``users`` has changed."""
        self._changed()
        for vm in sorted({vm for vm, _ in users} - {self.index}):
            self.m2p.dmms[vm]._changed()
