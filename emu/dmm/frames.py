"""Frames: how one VM comes by machine frames, shares them with other VMs, and gives them up.

Every frame in use is in the pool of one VM.  Where several VMs share a frame, one of them pays for it.  When that one
does not use it any more, the frame moves to the pool of one that does, in exchange for a spare frame; so pools keep
their sizes.  If none of these has a spare frame, the frame stays where it is until somebody needs room.  Only when a VM
ends, such a frame makes the pool larger to which it moves.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from emu.dmm.errors import CannotRetire, OutOfFrames, StoreError
from emu.dmm.m2p import M2P
from emu.dmm.policy import Policy
from emu.engine import events
from emu.engine.ram import NOBODY, MachineMemory, OutOfMachineFrames, Purpose

if TYPE_CHECKING:
    from emu.dmm.dmm import DMM


class Frames:
    """The frames of one VM.

    Args:
        dmm: of the VM.
    """

    def __init__(self, dmm: DMM) -> None:
        self._dmm = dmm
        self._pool, self._m2p, self._memory = dmm.pool, dmm.m2p, dmm.memory
        self._given_up = 0  # counts, to see whether anything happens

    def take(self, gfn: int) -> int:
        """A spare frame of the pool, in use from now on, for ``gfn``.

        Raises:
            OutOfFrames: there is none, and no policy makes room.
        """
        mfn = self._pool.take()
        if mfn is None:
            for policy in self._dmm.policies:
                if not self._pool.spare:
                    policy.extend_pool(1)
            self.make_room(1)
            mfn = self._pool.take()
        if mfn is None:
            raise OutOfFrames(self._dmm.vm, gfn, self._pool.size)
        return mfn

    def make_room(self, spare: int) -> None:
        """Have up to ``spare`` frames of the pool spare, as far as the policies can."""
        before = -1
        while self._pool.spare < spare and self._given_up != before:
            before = self._given_up
            for policy in self._dmm.policies_that_evict():
                if self._pool.spare < spare:
                    policy.make_room(spare - self._pool.spare)
            if self._pool.spare < spare:
                self._call_in(spare)

    def can_pay(self) -> bool:
        """Whether the pool has, or could have, a spare frame."""
        return self._pool.spare > 0 or any(
            type(policy).make_room is not Policy.make_room for policy in self._dmm.policies_that_evict()
        )

    def may_gain(self, gfn: int) -> bool:
        """Whether the pool can gain a frame when the resident ``gfn`` does not use its frame any more.

        Not if another pool pays for it, or if other VMs use it that could not pay instead.
        """
        mfn, index = self._dmm.p2m.mfn(gfn), self._dmm.index
        if self._memory.owner.item(mfn) != index:
            return False
        others = [vm for vm in self._m2p.vms(mfn) if vm != index]
        return not others or any(self._m2p.dmms[vm].can_pay() for vm in others)

    def _call_in(self, spare: int) -> None:
        """Have other VMs pay for the frames of this pool that they alone use, until ``spare`` frames are spare."""
        index = self._dmm.index
        owned = (self._memory.owner == index) & (self._memory.purpose == Purpose.POOL)
        foreign = owned & (self._m2p.vm != index) & (self._m2p.vm != NOBODY)
        for mfn in np.flatnonzero(foreign).tolist():
            if self._pool.spare >= spare:
                return
            vms = self._m2p.vms(mfn)
            for vm in vms if index not in vms else ():
                other = self._m2p.dmms[vm]
                if not other.pool.spare:
                    with suppress(StoreError):  # no room there; that VM is told when it needs room itself
                        for policy in other.policies_that_evict():
                            policy.make_room(1)
                if other.pool.spare:
                    break
            self._hand_over(mfn)

    def _hand_over(self, mfn: int) -> None:
        """Let a user of a frame of this pool that only other VMs use pay for it, if one has a spare frame."""
        index = self._dmm.index
        vms = self._m2p.vms(mfn)
        if index in vms:
            return
        for vm in vms:
            other = self._m2p.dmms[vm].pool
            if other.spare:
                self._pool.exchange(mfn, other)
                return

    def give_up(self, gfn: int, mfn: int) -> None:
        """``gfn`` does not use ``mfn`` any more."""
        self._given_up += 1
        users = self._m2p.remove(mfn, self._dmm.index, gfn)
        owner = self._memory.owner.item(mfn)
        if not users:
            self._m2p.dmms[owner].pool.give_back(mfn)
        elif owner == self._dmm.index:
            self._hand_over(mfn)

    def move(self, before: int, after: int) -> None:
        """Let all users of ``before``, of whatever VM, use ``after``, which has the same contents then."""
        users = self._m2p.users(before)
        for vm, gfn in users:
            self._m2p.dmms[vm].paging.forget(gfn, before)
        self._memory.pages[after] = self._memory.pages[before]
        for vm, gfn in users:
            user = self._m2p.dmms[vm]
            user.p2m.set(gfn, user.p2m.type(gfn), after, user.p2m.rights(gfn), user.p2m.marks(gfn))
            self._m2p.remove(before, vm, gfn)
            self._m2p.add(after, vm, gfn)
            user.log.record(events.Remap, gfn, before, after)

    def close(self) -> None:
        """The VM, none of whose gfns uses a frame any more, gives back its pool; what others use moves to them."""
        for mfn in sorted(self._pool.used_frames()):
            other = self._m2p.dmms[self._m2p.first(mfn)[0]]
            if other.pool.spare:
                self._pool.exchange(mfn, other.pool)
            else:
                self._pool.hand_over(mfn, other.pool)
                other.log.record(events.PoolResize, other.pool.size - 1, other.pool.size)
        self._pool.shrink(self._pool.spare)


def retire_frame(memory: MachineMemory, m2p: M2P, mfn: int) -> None:
    """Take any frame of the machine out of service, whatever it is for.

    Raises:
        CannotRetire: nothing can do its work; nothing has changed.
        ValueError: there is no such frame.
    """
    if not 0 <= mfn < memory.frames:
        raise ValueError(f"mfn {mfn:#x} is no frame of the machine")
    purpose = memory.purpose[mfn]
    owner = m2p.dmms.get(memory.owner.item(mfn))
    if purpose == Purpose.POOL:
        assert owner is not None
        owner.retire(mfn)
    elif purpose == Purpose.TABLES:
        assert owner is not None
        if not owner.paging.retire(mfn):
            raise CannotRetire(mfn, f"{owner.vm} has no shadow tables to spare")
        memory.retire(mfn)
    elif purpose == Purpose.VOID:
        try:
            memory.move_void()
        except OutOfMachineFrames:
            raise CannotRetire(mfn, "it stands behind all gfns without memory, and no frame is free") from None
        for index in sorted(m2p.dmms):
            m2p.dmms[index].paging.void_moved()
        memory.retire(mfn)
    elif purpose == Purpose.FREE:
        memory.retire(mfn)
