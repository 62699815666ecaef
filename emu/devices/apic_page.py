"""The page of local APIC registers of several processors: each sees its own at the same address."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from emu.devices.device import Device
from emu.devices.lapic import LocalApic
from emu.devices.shared import LOCAL_APIC, Head


class ApicPage(Device, Head):
    """Passes an access on to the APIC of the processor that makes it; what the native plane takes, it does itself.

    For a processor whose APIC is disabled or in x2APIC mode there is nothing here: reads are all ones, writes are lost.

    Args:
        apics: by index of the processor.
        running: the index of the processor that accesses a device right now.
    """

    max_access: ClassVar[int] = LocalApic.max_access

    def __init__(self, apics: Sequence[LocalApic], running: Callable[[], int]) -> None:
        self.kind = LOCAL_APIC
        self._apics = apics
        self._running = running

    def read(self, offset: int, size: int) -> int:
        apic = self._apics[self._running()]
        return (1 << 8 * size) - 1 if apic.mapped is None else apic.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        apic = self._apics[self._running()]
        if apic.mapped is not None:
            apic.write(offset, size, value)
