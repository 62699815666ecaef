"""Demand paging: a page gets its frame when it is first touched.

Pages of the guest image are read from it then; all others are zero-filled.
"""

from __future__ import annotations

from emu.boot.image import GuestImage
from emu.dmm.p2m import PageType
from emu.dmm.policy import ZERO_PAGE, Policy


class DemandPaging(Policy):
    """Zero-fill on first touch, and demand-load of the guest image.

    Args:
        image: contents of the guest's memory at start.
    """

    name = "demand"

    def __init__(self, image: GuestImage) -> None:
        self._image = image

    def populate(self, gfn: int, kind: PageType) -> bytes | None:
        return self._image.page(gfn) if kind == PageType.IMAGE else ZERO_PAGE


class StaticMapping(DemandPaging):
    """No demand paging: every page gets its frame before the guest starts.  The baseline to measure against."""

    name = "static"

    def attach(self, dmm) -> None:  # type: ignore[no-untyped-def]
        super().attach(dmm)
        for gfns in dmm.p2m.memory:
            for gfn in gfns:
                dmm.populate(gfn)
