"""The balloon: the guest is asked to give up pages that it needs least, because it knows best which these are.

The guest's driver takes pages away from the guest, puts them into the balloon ("inflates" it) and never touches them;
their frames are free.  When it is asked for fewer pages it takes some out again ("deflates"), and they read as zeros.
A guest can also report pages that it does not use at the moment, without being asked and without telling when it uses
them again.

Source of the idea: C. A. Waldspurger, "Memory Resource Management in VMware ESX Server", OSDI 2002, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from emu.dmm.errors import PagePinned
from emu.dmm.interface import DmmInterface
from emu.dmm.policy import Policy
from emu.engine import events
from emu.errors import BadInput

if TYPE_CHECKING:
    from emu.boot.image import GuestImage


class Balloon(Policy):
    """Asks the guest for pages, and frees the frames behind those that it gives up or reports as unused.

    The guest is not trusted: it may name a gfn twice, touch what is in the balloon (it finds zeros, and the page has
    left the balloon), or name gfns that are no memory or that must stay resident.

    Args:
        image: of the guest; not looked at.
        target: pages that the guest is asked for at first.

    Attributes:
        held: the gfns in the balloon.
        refused: how often it named a gfn that is no memory, or is pinned.
    """

    name = "balloon"

    def __init__(self, image: GuestImage, target: int = 0) -> None:
        self._first_target = target
        self.held: set[int] = set()
        self.refused = 0

    def attach(self, dmm: DmmInterface) -> None:
        """
        Raises:
            BadInput: the VM has a balloon already, or has fewer pages than the target.
        """
        super().attach(dmm)
        if dmm.balloon.policy is not None:
            raise BadInput("balloon", f"{dmm.name} has one already")
        self.set_target(self._first_target)
        dmm.balloon.policy = self

    def detach(self) -> None:
        """The guest is asked for nothing any more; what it has not taken out yet has no frames until it is touched."""
        self.dmm.balloon.policy = None
        self.set_target(0)
        self.held.clear()

    @property
    def target(self) -> int:
        """Pages that the guest is asked to have in the balloon."""
        return self.dmm.balloon.target

    def set_target(self, pages: int) -> None:
        """Ask the guest to have ``pages`` pages in the balloon.

        Raises:
            BadInput: it does not have so many.
        """
        available = sum(map(len, self.dmm.p2m.memory))
        if not 0 <= pages <= available:
            raise BadInput("balloon", f"a target of {pages} pages, {self.dmm.name} has {available}")
        self.dmm.balloon.set_target(pages)

    def inflate(self, gfns: Iterable[int]) -> None:
        """The guest has put ``gfns`` into the balloon."""
        for gfn in gfns:
            if self._discard(gfn) and gfn not in self.held:
                self.held.add(gfn)
                self.dmm.log.record(events.BalloonInflate, gfn)

    def deflate(self, gfns: Iterable[int]) -> None:
        """The guest takes ``gfns`` out of the balloon; those that are not in it stay as they are."""
        for gfn in gfns:
            if gfn in self.held:
                self.held.remove(gfn)
                self.dmm.log.record(events.BalloonDeflate, gfn)
            elif not self.dmm.is_memory(gfn):
                self.refused += 1

    def report(self, gfns: Iterable[int]) -> None:
        """The guest does not use ``gfns`` at the moment."""
        for gfn in gfns:
            self._discard(gfn)

    def statistics(self) -> dict[str, int]:
        return {"target": self.target, "held": len(self.held), "refused": self.refused}

    def entered(self, gfn: int) -> None:
        self.held.discard(gfn)

    def _discard(self, gfn: int) -> bool:
        """Free the frame behind ``gfn``, if it has one; False when that is not allowed."""
        if self.dmm.is_memory(gfn):
            with suppress(PagePinned):
                self.dmm.discard(gfn)
                return True
        self.refused += 1
        return False
