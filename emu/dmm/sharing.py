"""Sharing: several gfns, of one VM or of several, use one frame, all read-only, until one is written to.

The contracts are those of :mod:`emu.dmm.interface`.
"""

from __future__ import annotations

import numpy as np

from emu.dmm.frames import give_up_frame, take_frame
from emu.dmm.p2m import ALL_RIGHTS, NO_RIGHTS, Intent, PageType
from emu.dmm.pages import Pages
from emu.dmm.space import Space
from emu.engine import events

_READ_ONLY = Intent.READ | Intent.EXECUTE


class Sharing:
    """The sharing of one VM's pages.

    Args:
        space, pages: of the VM.
    """

    def __init__(self, space: Space, pages: Pages) -> None:
        self._space = space
        self._pages = pages

    def is_shared(self, mfn: int) -> bool:
        """Whether ``mfn`` is a frame whose users have it read-only."""
        vm, gfn = self._space.m2p.first(mfn)
        user = self._space.spaces.get(vm)
        return user is not None and user.p2m.type(gfn) is PageType.SHARED

    def shareable_frame(self, vm: int, gfn: int) -> int | None:
        """The frame of ``gfn`` of a VM, if :meth:`share` can give it other users, else None."""
        user = self._space.spaces.get(vm)
        return user.p2m.mfn(gfn) if user is not None and _is_shareable(user, gfn) else None

    def share(self, gfn: int, mfn: int) -> bool:
        """Let ``gfn`` use ``mfn`` in place of its own frame, if the contents are the same; returns whether it does."""
        space, m2p = self._space, self._space.m2p
        before = space.resident_frame(gfn)
        if not m2p.count(mfn):
            raise ValueError(f"nobody uses mfn {mfn:#x}")
        if before == mfn or not _is_shareable(space, gfn):
            return before == mfn
        vm, first = m2p.first(mfn)
        user = space.spaces[vm]
        exclusive = user.p2m.type(first) is not PageType.SHARED
        if exclusive and not _is_shareable(user, first):
            return False
        if not np.array_equal(space.words[before], space.words[mfn]):
            return False
        if exclusive:
            _restrict_to_reading(user, first, mfn)
        space.paging.forget(gfn, before)
        space.p2m.set(gfn, PageType.SHARED, mfn, _READ_ONLY, space.p2m.marks(gfn))
        m2p.add(mfn, space.index, gfn)
        give_up_frame(space, gfn, before)
        space.log.record(events.Share, gfn, before, mfn, m2p.count(mfn))
        space.all_changed([(vm, first)])
        return True

    def unshare(self, gfn: int) -> int:
        """Give a shared ``gfn`` a frame of its own (copy-on-write break); returns its mfn."""
        space, p2m = self._space, self._space.p2m
        before = after = space.resident_frame(gfn)
        if p2m.type(gfn) is not PageType.SHARED:
            return before
        if space.m2p.count(before) > 1 or space.memory.owner.item(before) != space.index:
            after = take_frame(space, gfn)
            if p2m.mfn(gfn) != before:  # making room evicted or moved the very page
                space.pool.give_back(after)
                self._pages.populate(gfn)
                return self.unshare(gfn)
            space.memory.pages[after] = space.memory.pages[before]
        space.paging.forget(gfn, before)
        rights = p2m.rights(gfn) | (NO_RIGHTS if space.policies.withholding else Intent.WRITE)
        p2m.set(gfn, PageType.RAM, after, rights, p2m.marks(gfn))
        if after != before:
            space.m2p.add(after, space.index, gfn)
            give_up_frame(space, gfn, before)
        space.log.record(events.Unshare, gfn, before, after)
        space.changed()
        return after


def _is_shareable(space: Space, gfn: int) -> bool:
    """Whether the frame of ``gfn`` may get other users: it has one, and nobody withholds rights."""
    if not space.is_resident(gfn) or gfn in space.contents.in_flight:
        return False
    return space.p2m.grants(gfn, _READ_ONLY if space.p2m.type(gfn) is PageType.SHARED else ALL_RIGHTS)


def _restrict_to_reading(space: Space, gfn: int, mfn: int) -> None:
    """The frame of ``gfn`` gets other users."""
    space.paging.restrict(gfn, mfn)
    space.p2m.set(gfn, PageType.SHARED, mfn, _READ_ONLY, space.p2m.marks(gfn))
    space.log.record(events.Protect, gfn, ALL_RIGHTS, _READ_ONLY)
