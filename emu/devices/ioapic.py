"""The I/O APIC: 24 interrupt inputs, each with a redirection entry. Source: Intel 82093AA data sheet (order 290566).

The guest writes the number of a register to IOREGSEL and reaches it through IOWIN.

    offset 00 IOREGSEL   10 IOWIN   40 EOI: the vector whose service has ended

    register 00  ID, bits 24-27          02  arbitration ID, a copy of it
             01  version, last entry     10 + 2n, 11 + 2n  redirection entry n, lower and upper half

    redirection entry  bits 0-7 vector          12 delivery status, here always idle    15 level-triggered
                            8-10 delivery mode  13 active low                           16 masked
                            11 logical          14 remote IRR                           56-63 destination

A rise of an edge-triggered input sends one message; while the entry is masked it is lost. A level-triggered input sends
while it is high, unmasked and has no remote IRR: that is set when a local APIC accepts and cleared by its EOI. Delivery
modes other than fixed and lowest priority (NMI, ...) are edge-triggered whatever bit 15 says.

Version 20H, as QEMU's, with the EOI register that the 82093AA (11H) does not have: a guest can end one input by itself
where it would else have to switch the entry to edge-triggered and back, which works too. As on QEMU the polarity bit is
kept and means nothing: an input's level here is asserted or not, and drivers that know PCI as active low, and those
that believe tables which say high, are both right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device, IrqLine
from emu.devices.wires import NumberedWire
from emu.errors import BadInput

INPUTS = 24
IOREGSEL, IOWIN, EOI = 0x00, 0x10, 0x40  # offsets
ID, VERSION, ARBITRATION, REDIRECTION = 0x00, 0x01, 0x02, 0x10  # register numbers
VERSION_VALUE = 0x20 | (INPUTS - 1) << 16  # version, last entry
ID_WRITABLE = 0x0F00_0000

LOGICAL = 1 << 11  # bits of a redirection entry
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
ENTRY_WRITABLE = 0xFF00_0000_0001_AFFF  # not delivery status and remote IRR
FIXED_OR_LOWEST = (0, 1)  # delivery modes that have an EOI

Send = Callable[[int, bool, int, int, bool], bool]  # destination, logical, vector, delivery mode, level-triggered


class IoApic(Device):
    """One chip. ``send`` delivers a message to the local APICs and returns whether one accepted it."""

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = ("select", "id", "lines", "entries")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.select = 0  # IOREGSEL
        self.id = 0  # register 0; no message carries it, so that a local APIC may have the same ID
        self.lines = 0  # levels of the inputs
        self.entries = [MASKED] * INPUTS

    def line(self, number: int) -> IrqLine:
        """The wire of input 0 to 23. Raises BadInput for others."""
        if number not in range(INPUTS):
            raise BadInput(f"I/O APIC input {number}", f"not one of 0 to {INPUTS - 1}")
        return NumberedWire(self.set_input, number)

    def set_input(self, number: int, level: bool) -> None:
        """Drive an input."""
        bit = 1 << number
        if level == bool(self.lines & bit):
            return
        self.lines ^= bit
        if level:
            entry = self.entries[number]
            if _is_level(entry):
                self._send_level(number)
            elif not entry & MASKED:
                self._message(entry)

    def eoi(self, vector: int) -> None:
        """The service of a level-triggered interrupt has ended: all inputs with this vector may send again."""
        for number, entry in enumerate(self.entries):
            if entry & REMOTE_IRR and entry & 0xFF == vector:
                self.entries[number] &= ~REMOTE_IRR
                self._send_level(number)

    def read(self, offset: int, size: int) -> int:
        if offset == IOREGSEL:
            return self.select
        if offset != IOWIN or size != 4:
            return 0
        if self.select in (ID, ARBITRATION):
            return self.id
        if self.select == VERSION:
            return VERSION_VALUE
        number, shift = self._selected_entry()
        return self.entries[number] >> shift & 0xFFFF_FFFF if number in range(INPUTS) else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == IOREGSEL:
            self.select = value & 0xFF
        elif size != 4:
            return
        elif offset == EOI:
            self.eoi(value & 0xFF)
        elif offset == IOWIN and self.select == ID:
            self.id = value & ID_WRITABLE
        elif offset == IOWIN:
            number, shift = self._selected_entry()
            if number in range(INPUTS):
                self._write_entry(number, ENTRY_WRITABLE & 0xFFFF_FFFF << shift, value << shift)

    def _selected_entry(self) -> tuple[int, int]:
        """Number of the entry that IOREGSEL selects, negative or too large for none, and by how much it is shifted."""
        return (self.select - REDIRECTION) >> 1, (self.select & 1) * 32

    def _write_entry(self, number: int, writable: int, value: int) -> None:
        """Change the ``writable`` bits. A level-triggered input that is high may send now; an edge comes not back."""
        entry = self.entries[number] & ~writable | value & writable
        if not _is_level(entry):
            entry &= ~REMOTE_IRR  # how drivers end an interrupt that was lost
        self.entries[number] = entry
        self._send_level(number)

    def _send_level(self, number: int) -> None:
        """Send what a level-triggered input asks for, if it does."""
        entry = self.entries[number]
        if not _is_level(entry) or entry & (MASKED | REMOTE_IRR) or not self.lines >> number & 1:
            return
        self.entries[number] |= REMOTE_IRR
        if not self._message(entry):
            self.entries[number] &= ~REMOTE_IRR

    def _message(self, entry: int) -> bool:
        return self._send(entry >> 56, bool(entry & LOGICAL), entry & 0xFF, entry >> 8 & 7, _is_level(entry))


def _is_level(entry: int) -> bool:
    return entry & LEVEL != 0 and (entry >> 8 & 7) in FIXED_OR_LOWEST
