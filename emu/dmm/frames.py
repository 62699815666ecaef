"""Frames: how one VM comes by machine frames, shares them with other VMs, and gives them up.

Every frame in use is in the pool of one VM.  Where several VMs share a frame, one of them pays for it.  When that one
does not use it any more, the frame moves to the pool of one that does, in exchange for a spare frame; so pools keep
their sizes.  If none of these has a spare frame, the frame stays where it is until somebody needs room.  Only when a VM
ends, such a frame makes the pool larger to which it moves.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from emu.dmm.errors import OutOfFrames, StoreError
from emu.dmm.policy import Policy
from emu.dmm.space import Space
from emu.engine import events
from emu.engine.ram import NOBODY, Purpose


def take_frame(space: Space, gfn: int) -> int:
    """A spare frame of the pool, in use from now on, for ``gfn``.

    Raises:
        OutOfFrames: there is none, and no policy makes room.
    """
    pool = space.pool
    mfn = pool.take()
    if mfn is None:
        for policy in space.policies:
            if not pool.spare:
                policy.extend_pool(1)
        make_room(space, 1)
        mfn = pool.take()
    if mfn is None:
        raise OutOfFrames(space.name, gfn, pool.size)
    return mfn


def make_room(space: Space, spare: int) -> None:
    """Have up to ``spare`` frames of the pool spare, as far as the policies can."""
    pool = space.pool
    before = -1
    while pool.spare < spare and space.given_up != before:
        before = space.given_up
        for policy in space.policies.that_evict():
            if pool.spare < spare:
                policy.make_room(spare - pool.spare)
        if pool.spare < spare:
            _call_in(space, spare)


def may_gain(space: Space, gfn: int) -> bool:
    """Whether the pool can gain a frame when the resident ``gfn`` does not use its frame any more.

    Not if another pool pays for it, or if other VMs use it that could not pay instead.
    """
    mfn = space.p2m.mfn(gfn)
    if space.memory.owner.item(mfn) != space.index:
        return False
    others = [vm for vm in space.m2p.vms(mfn) if vm != space.index]
    return not others or any(_can_pay(space.spaces[vm]) for vm in others)


def _can_pay(space: Space) -> bool:
    """Whether the pool has, or could have, a spare frame."""
    return space.pool.spare > 0 or any(
        type(policy).make_room is not Policy.make_room for policy in space.policies.that_evict()
    )


def _call_in(space: Space, spare: int) -> None:
    """Have other VMs pay for the frames of this pool that they alone use, until ``spare`` frames are spare."""
    index, memory, m2p = space.index, space.memory, space.m2p
    owned = (memory.owner == index) & (memory.purpose == Purpose.POOL)
    foreign = owned & (m2p.vm != index) & (m2p.vm != NOBODY)
    refused: set[int] = set()  # VMs that have no room: each is asked for it until it has none
    for mfn in np.flatnonzero(foreign).tolist():
        if space.pool.spare >= spare or len(refused) == len(space.spaces) - 1:
            return
        vms = m2p.vms(mfn)
        for vm in vms if index not in vms else ():
            if vm in refused:
                continue
            if _has_room(space.spaces[vm]):
                _hand_over(space, mfn)
                break
            refused.add(vm)


def _has_room(space: Space) -> bool:
    """Whether the pool has a spare frame, or its policies make one."""
    if not space.pool.spare:
        with suppress(StoreError):  # no room there; that VM is told when it needs room itself
            for policy in space.policies.that_evict():
                policy.make_room(1)
    return space.pool.spare > 0


def _hand_over(space: Space, mfn: int) -> None:
    """Let a user of a frame of this pool that only other VMs use pay for it, if one has a spare frame."""
    vms = space.m2p.vms(mfn)
    if space.index in vms:
        return
    for vm in vms:
        other = space.spaces[vm].pool
        if other.spare:
            space.pool.exchange(mfn, other)
            return


def give_up_frame(space: Space, gfn: int, mfn: int) -> None:
    """``gfn`` does not use ``mfn`` any more."""
    space.given_up += 1
    users = space.m2p.remove(mfn, space.index, gfn)
    owner = space.memory.owner.item(mfn)
    if not users:
        space.spaces[owner].pool.give_back(mfn)
    elif owner == space.index:
        _hand_over(space, mfn)


def move_frame(space: Space, before: int, after: int) -> None:
    """Let all users of ``before``, of whatever VM, use ``after``, which has the same contents then."""
    m2p = space.m2p
    users = m2p.users(before)
    for vm, gfn in users:
        space.spaces[vm].paging.forget(gfn, before)
    space.memory.pages[after] = space.memory.pages[before]
    for vm, gfn in users:
        user = space.spaces[vm]
        user.p2m.set(gfn, user.p2m.type(gfn), after, user.p2m.rights(gfn), user.p2m.marks(gfn))
        m2p.remove(before, vm, gfn)
        m2p.add(after, vm, gfn)
        user.log.record(events.Remap, gfn, before, after)


def give_back_pool(space: Space) -> None:
    """A VM none of whose gfns uses a frame any more gives back its pool; what others use moves to them."""
    pool = space.pool
    for mfn in sorted(pool.used_frames()):
        other = space.spaces[space.m2p.first(mfn)[0]]
        if other.pool.spare:
            pool.exchange(mfn, other.pool)
        else:
            pool.hand_over(mfn, other.pool)
            other.log.record(events.PoolResize, other.pool.size - 1, other.pool.size)
    pool.shrink(pool.spare)
