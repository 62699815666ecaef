"""Pages: what can be done to a single page of a VM.  The contracts are those of :mod:`emu.dmm.interface`."""

from __future__ import annotations

import numpy as np

from emu.addr import NO_FRAME
from emu.dmm.frames import give_up_frame, may_gain, move_frame, take_frame
from emu.dmm.interface import Keeper
from emu.dmm.p2m import ALL_RIGHTS, RESIDENT, Intent, PageType, marks_of
from emu.dmm.policy import ZERO_PAGE
from emu.dmm.space import Space
from emu.engine import events


class Pages:
    """The pages of one VM.

    Args:
        space: of the VM.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._p2m, self._pool, self._m2p, self._memory = space.p2m, space.pool, space.m2p, space.memory
        self._contents, self._policies = space.contents, space.policies

    def populate(self, gfn: int) -> int:
        """Give ``gfn`` a frame with its contents, if it has none; returns its mfn."""
        self._space.check_memory(gfn)
        return self._p2m.mfn(gfn) if self._p2m.type(gfn) in RESIDENT else self.populate_missing(gfn)

    def populate_missing(self, gfn: int) -> int:
        """As :meth:`populate`, for memory that is known to have no frame."""
        space, p2m = self._space, self._p2m
        space.check_not_asking(gfn)
        mfn = take_frame(space, gfn)
        kind = p2m.type(gfn)
        if kind in RESIDENT:  # making room has populated it
            self._pool.give_back(mfn)
            return p2m.mfn(gfn)
        try:
            contents = self._contents.fetch(gfn, mfn)
        except BaseException:
            self._pool.give_back(mfn)
            raise
        # zeros are by far the most frequent contents, and filling is twice as fast as copying
        self._memory.pages[mfn] = 0 if contents is ZERO_PAGE else np.frombuffer(contents, np.uint8)
        self._m2p.add(mfn, space.index, gfn)
        p2m.set(gfn, PageType.RAM, mfn, ALL_RIGHTS, marks_of(kind))
        for policy in self._policies.watching:
            policy.entered(gfn)
        space.changed()
        return mfn

    def remap(self, gfn: int) -> int:
        """Move a resident ``gfn``, and all that share its frame, to another frame of the pool; returns its mfn."""
        space = self._space
        before = space.resident_frame(gfn)
        after = take_frame(space, gfn)
        if self._p2m.mfn(gfn) != before:  # making room evicted the very page
            self._pool.give_back(after)
            return self.populate(gfn)
        users = self._m2p.users(before)
        move_frame(space, before, after)
        space.spaces[self._memory.owner.item(before)].pool.give_back(before)
        space.all_changed(users)
        return after

    def protect(self, gfn: int, rights: Intent) -> None:
        """Grant exactly ``rights`` on a resident ``gfn``."""
        space, p2m = self._space, self._p2m
        mfn = space.resident_frame(gfn)
        before = p2m.rights(gfn)
        if before == rights:
            return
        if int(before) & ~int(rights):
            space.paging.restrict(gfn, mfn)
        p2m.set(gfn, p2m.type(gfn), mfn, rights, p2m.marks(gfn))
        space.log.record(events.Protect, gfn, before, rights)
        space.changed()

    def evict(self, gfn: int, keeper: Keeper) -> None:
        """Take the frame from behind a resident ``gfn``; ``keeper`` keeps the contents where that is needed."""
        space, p2m, policies = self._space, self._p2m, self._policies
        mfn = space.resident_frame(gfn)
        space.check_not_pinned(gfn)
        if keeper not in policies or keeper is policies.detaching:
            raise ValueError(f"policy {keeper.name} is not attached and cannot keep gfn {gfn:#x}")
        space.paging.forget(gfn, mfn)
        became, stored = p2m.origin(gfn), False
        if p2m.dirty(gfn) or became is PageType.EMPTY:
            became = PageType.EVICTED if space.words[mfn].any() else PageType.EMPTY
            stored = became is PageType.EVICTED
        if stored:
            self._contents.keep(gfn, self._memory.pages[mfn].tobytes(), keeper)
            mfn = p2m.mfn(gfn)  # the policy may have retired the frame, or moved others that share it
        elif became is not PageType.EVICTED:
            self._contents.forget(gfn)
        self._lose_frame(gfn, mfn, became)
        space.log.record(events.Evict, gfn, mfn, became, stored)
        space.changed()

    def _lose_frame(self, gfn: int, mfn: int, became: PageType) -> None:
        self._p2m.set(gfn, became)
        give_up_frame(self._space, gfn, mfn)
        for policy in self._policies:
            policy.left(gfn)

    def forget_copy(self, gfn: int) -> None:
        """The copy of a resident ``gfn`` that some policy keeps is of no use any more."""
        if not self._space.is_resident(gfn):
            raise ValueError(f"gfn {gfn:#x} is not resident: the copy is all that there is")
        self._contents.forget(gfn)

    def discard(self, gfn: int) -> None:
        """The guest does not need the contents of ``gfn`` any more."""
        space, p2m = self._space, self._p2m
        space.check_memory(gfn)
        space.check_not_asking(gfn)
        space.check_not_pinned(gfn)
        mfn = p2m.mfn(gfn)
        if p2m.type(gfn) is PageType.EMPTY:
            return
        if mfn != NO_FRAME:
            space.paging.forget(gfn, mfn)
            self._lose_frame(gfn, mfn, PageType.EMPTY)
        else:
            p2m.set(gfn, PageType.EMPTY)
        self._contents.forget(gfn)
        space.log.record(events.Discard, gfn, mfn)
        space.changed()

    def is_evictable(self, gfn: int) -> bool:
        """Whether :meth:`evict` can take the frame of ``gfn`` now, and the pool may gain one by it."""
        space = self._space
        free = gfn not in space.pins and gfn not in self._contents.in_flight
        return free and space.is_resident(gfn) and may_gain(space, gfn)

    def pin(self, gfn: int) -> None:
        """Make ``gfn`` resident, and keep it so until :meth:`unpin`; its frame may change.  Pins count.

        Raises:
            as :meth:`populate`.
        """
        self.populate(gfn)
        self._space.pins[gfn] = self._space.pins.get(gfn, 0) + 1

    def unpin(self, gfn: int) -> None:
        """Take back one :meth:`pin`."""
        pins = self._space.pins
        pins[gfn] -= 1
        if not pins[gfn]:
            del pins[gfn]
