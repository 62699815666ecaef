"""A port of emu's own, by which the BIOS has a kernel loaded that was entered without it.

    read   PRESENT, when the machine has such a kernel; else 0xFF, as where there is no port
    write  load it again and enter it; the devices stay as the BIOS has left them

So a guest that restarts by a jump into the BIOS, or by INT 19h, starts with the same kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from emu.devices.device import Device

PRESENT = 0x4B
ABSENT = 0xFF


class LoaderPort(Device):
    """The port. ``on_load`` is called when it is written to.

    Attributes:
        present: whether there is a kernel to load.
    """

    def __init__(self, on_load: Callable[[], None]) -> None:
        self._on_load = on_load
        self.present = False

    def read(self, offset: int, size: int) -> int:
        return PRESENT if self.present else ABSENT

    def write(self, offset: int, size: int, value: int) -> None:
        if self.present:
            self._on_load()
