"""Faults: the guest wants a page that has no frame, or a right on one that the DMM does not grant."""

from __future__ import annotations

from emu.dmm.p2m import RESIDENT, Intent, PageType
from emu.dmm.pages import Pages
from emu.dmm.policy import PolicyFault
from emu.dmm.sharing import Sharing
from emu.dmm.space import Space
from emu.engine import events


class Faults:
    """The DMM faults of one VM.

    Args:
        space, pages, sharing: of the VM.
    """

    def __init__(self, space: Space, pages: Pages, sharing: Sharing) -> None:
        self._space = space
        self._pages = pages
        self._sharing = sharing

    def resolve(self, gfn: int, intent: Intent) -> int:
        """Make ``gfn`` resident with the right that ``intent`` needs.

        Returns:
            Its mfn.

        Raises:
            OutOfFrames: the pool is full and no policy makes room.
            PolicyFault: a policy claims to have settled it and has not.
            ValueError: there is no such gfn.
        """
        space, p2m = self._space, self._space.p2m
        space.check_memory(gfn)
        cause = p2m.type(gfn)
        mfn = p2m.mfn(gfn) if cause in RESIDENT else self._pages.populate_missing(gfn)
        if not p2m.grants(gfn, intent):
            if intent & Intent.WRITE and p2m.type(gfn) is PageType.SHARED:
                self._sharing.unshare(gfn)
            if not p2m.grants(gfn, intent):
                self._settle(gfn, intent)
            mfn = p2m.mfn(gfn)
        space.log.record(events.DmmFault, gfn, intent, cause, mfn)
        return mfn

    def _settle(self, gfn: int, intent: Intent) -> None:
        """Grant a right: as the first policy wants that says so, and simply so when none does."""
        p2m = self._space.p2m
        for policy in self._space.policies:
            if policy.denied(gfn, intent):
                if not p2m.grants(gfn, intent):
                    raise PolicyFault(policy.name, gfn, f"says that {intent.name} is settled, and it is not granted")
                return
        self._pages.protect(gfn, p2m.rights(gfn) | intent)
