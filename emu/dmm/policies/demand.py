"""Demand paging: a page gets its frame when it is first touched.

Pages of the guest image are read from it then; all others are zero-filled.
"""

from __future__ import annotations

from emu.boot.image import GuestImage
from emu.dmm.errors import OutOfFrames
from emu.dmm.interface import DmmInterface
from emu.dmm.p2m import PageType
from emu.dmm.policy import ZERO_PAGE, Policy


class DemandPaging(Policy):
    """Zero-fill on first touch, and demand-load of the guest image.

    Args:
        image: contents of the guest's memory at start.
        readahead: pages of the image to load with one that was touched: those behind it, as far as they are the image's
            and frames are spare.
    """

    name = "demand"

    def __init__(self, image: GuestImage, readahead: int = 0) -> None:
        self._image = image
        self._readahead = readahead
        self._reading_ahead = False

    def populate(self, gfn: int, kind: PageType) -> bytes | None:
        return self._image.page(gfn) if kind == PageType.IMAGE else ZERO_PAGE

    def entered(self, gfn: int) -> None:
        if self._readahead and not self._reading_ahead and self.dmm.p2m.origin(gfn) is PageType.IMAGE:
            self._reading_ahead = True
            try:
                for other in range(gfn + 1, gfn + 1 + self._readahead):
                    if not self.dmm.pool.spare or not self.dmm.is_memory(other):
                        break
                    if self.dmm.p2m.type(other) is not PageType.IMAGE:
                        break
                    self.dmm.populate(other)
            finally:
                self._reading_ahead = False


class StaticMapping(DemandPaging):
    """No demand paging: every page gets its frame before the guest starts.  The baseline to measure against."""

    name = "static"

    def attach(self, dmm: DmmInterface) -> None:
        super().attach(dmm)
        missing = [gfn for gfns in dmm.p2m.memory for gfn in gfns if not dmm.is_resident(gfn)]
        if len(missing) > dmm.pool.spare:
            raise OutOfFrames(dmm.name, missing[dmm.pool.spare], dmm.pool.size)
        for gfns in dmm.p2m.memory:
            for gfn in gfns:
                dmm.populate(gfn)
