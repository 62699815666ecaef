"""An 82540EM in a PCI slot: its configuration space, and what that switches.

Sources: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 4.1; PCI Local Bus
Specification 2.3, 6.2 (INTx disable, interrupt status). It comes up as a BIOS leaves it.
"""

from __future__ import annotations

from functools import partial

from emu.devices import layout
from emu.devices.bus import MmioBus, PortBus
from emu.devices.device import BoardMemory, IrqLine
from emu.devices.e1000 import DEVICE_ID, E1000, PORTS, REGISTERS_SIZE
from emu.devices.pci import (
    COMMAND,
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    INTEL,
    INTERRUPT_LINE,
    INTERRUPT_PIN,
    STATUS,
    PciFunction,
    PciHost,
)  # fmt: skip
from emu.devices.pci_bars import PciBars, RegisterPages, place_ports
from emu.devices.wires import SwitchedWire

CLASS, REVISION = 0x0200, 3  # Ethernet
INTERRUPT_OFF, INTERRUPT_STATUS = 0x0400, 0x08  # of the command and of the status register
INTA = 0


class _Line:
    """INTA as the function's status and command registers know it."""

    def __init__(self, function: PciFunction, to: IrqLine) -> None:
        self._function = function
        self._wire = SwitchedWire(to)

    def set(self, level: bool) -> None:
        status = self._function.read(STATUS, 2) & ~INTERRUPT_STATUS
        self._function.set(STATUS, 2, status | (INTERRUPT_STATUS if level else 0))
        self._wire.set(level)

    def command(self, value: int) -> None:
        """The command register is written."""
        self._wire.connect(not value & INTERRUPT_OFF)


def plug_in(pci: PciHost, bus: PortBus, mmio: MmioBus, memory: BoardMemory, card: E1000) -> None:
    """Give a card its slot."""
    function = PciFunction(INTEL, DEVICE_ID, CLASS, REVISION)
    function.set(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY)
    function.set(STATUS, 2, 0x0220)  # medium DEVSEL#, 66 MHz
    function.set(INTERRUPT_PIN, 1, INTA + 1)
    function.set(INTERRUPT_LINE, 1, layout.IRQ_E1000)
    pci.functions[layout.E1000_PLACE] = function
    line = _Line(function, card.interrupts.line)
    card.interrupts.line = line

    mmio.register(layout.E1000, REGISTERS_SIZE, card)
    bus.register(layout.E1000_PORT, PORTS, card.ports)
    bars = PciBars(function)
    bars.add(0, REGISTERS_SIZE, layout.E1000, RegisterPages(mmio, memory, card, REGISTERS_SIZE).place)
    bars.add(1, PORTS, layout.E1000_PORT, partial(place_ports, bus, card.ports, PORTS), io=True)

    def written(offset: int, size: int) -> None:
        bars.update(offset, size)
        command = function.read(COMMAND, 2)
        line.command(command)
        card.set_master(bool(command & COMMAND_MASTER))

    function.written = written
