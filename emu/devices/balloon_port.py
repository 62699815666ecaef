"""The hypercall of the memory balloon: a driver is three instructions, and firmware/balloon.s is one.

    in  eax, 0xF8       pages that the guest is asked to have in the balloon
    out 0xF8, eax       page EAX, a gfn, goes into the balloon: its contents are lost, the guest must not touch it
    out 0xFC, eax       page EAX comes out of the balloon: the guest may use it; what it holds is not defined

All are 32 bits wide; narrower writes do nothing. Where there is no balloon the port reads as all ones, which is more
pages than any guest has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device, State

INFLATE, DEFLATE = 0, 4  # offsets


class BalloonPort(Device):
    """Only told what the guest says: gfns may be of no memory, and may come twice.

    Args:
        inflate: gets a gfn whose contents the guest gave up, in a list.
        deflate: gets a gfn that the guest is about to use again, in a list.

    Attributes:
        target: pages that the guest is asked to have in the balloon.
    """

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = ("target",)

    def __init__(self, inflate: Callable[[list[int]], None], deflate: Callable[[list[int]], None]) -> None:
        self._inflate = inflate
        self._deflate = deflate
        self.target = 0

    def set_target(self, pages: int) -> None:
        """Ask the guest to have ``pages`` pages in the balloon."""
        self.target = pages

    def machine_reset(self, power_up: State) -> None:
        """What is asked for is not the guest's to forget."""

    def read(self, offset: int, size: int) -> int:
        return self.target if offset == INFLATE else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4:
            return
        if offset == INFLATE:
            self._inflate([value])
        elif offset == DEFLATE:
            self._deflate([value])
