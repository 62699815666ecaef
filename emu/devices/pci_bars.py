"""Where a PCI function's base address registers put its regions. Source: PCI Local Bus Specification 2.1, 6.2.5.

A region is where its BAR says, while the command register lets the function decode it. What a guest does to find a
region's size, a write of all ones and of the old address again, moves it twice; drivers that know better switch the
decoding off meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from emu.addr import PAGE_SHIFT
from emu.devices.bus import MmioBus, PortBus
from emu.devices.device import BoardMemory, Device
from emu.devices.pci import BAR, BAR_IO, BARS, COMMAND, COMMAND_IO, COMMAND_MEMORY, PciFunction

Place = Callable[[int | None], None]  # the region has come to this address, or is nowhere

PREFETCHABLE = 0x08  # bit of a memory BAR


class PciBars:
    """The regions of ``function``, which calls it when it is written to."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._places: dict[int, Place] = {}
        self._at: dict[int, int | None] = {}
        function.written = self.update

    def add(
        self, number: int, size: int, address: int, place: Place, *, prefetchable: bool = False, io: bool = False
    ) -> None:
        """A region of ``size`` bytes or ports that is at ``address`` already; ``place`` is told when it moves."""
        function = self._function
        function.add_bar(number, size, io)
        function.set(BAR + 4 * number, 4, address | PREFETCHABLE * prefetchable | BAR_IO * io)
        self._places[number] = place
        self._at[number] = address

    def update(self, offset: int, size: int) -> None:
        """The function's registers from ``offset`` on have been written."""
        if offset >= BAR + 4 * BARS or offset + size <= COMMAND:
            return
        for number, place in self._places.items():
            address = self._decoded(number)
            if address != self._at[number]:
                self._at[number] = address
                place(address)

    def _decoded(self, number: int) -> int | None:
        """Where the region is; address 0 is nowhere, as for QEMU."""
        io = self._function.read(BAR + 4 * number, 4) & BAR_IO
        if not self._function.read(COMMAND, 2) & (COMMAND_IO if io else COMMAND_MEMORY):
            return None
        return self._function.bar(number) or None


def place_ports(bus: PortBus, device: Device, count: int, base: int | None) -> None:
    """The ports of a PCI device have come to ``base``, or are nowhere; where something else is, that answers."""
    bus.unregister(device)
    if base is not None and bus.is_free(base, count):
        bus.register(base, count, device)


class RegisterPages:
    """The registers of a PCI device in whole pages, ``size`` bytes, of guest memory."""

    def __init__(self, mmio: MmioBus, memory: BoardMemory, device: Device, size: int) -> None:
        self._mmio = mmio
        self._memory = memory
        self._device = device
        self._size = size

    def place(self, gpa: int | None) -> None:
        """They have come to ``gpa``, or are nowhere; where something else is, that stays."""
        for base in self._mmio.bases(self._device):
            self._mmio.unregister(self._device)
            self._memory.set_mmio(self._pages(base), False)
        if gpa is not None and self._memory.is_hole(self._pages(gpa)):
            self._mmio.register(gpa, self._size, self._device)
            self._memory.set_mmio(self._pages(gpa))

    def _pages(self, gpa: int) -> range:
        return range(gpa >> PAGE_SHIFT, gpa + self._size >> PAGE_SHIFT)
