"""One channel of the bus master IDE controller: DMA between a drive and memory.

Sources: Programming Interface for Bus Master IDE Controller 1.0 (Intel, 1994); 82371SB (PIIX3, 290550), 4.2.

Registers by offset:
    0  command: 0x01 start, 0x08 to memory
    2  status: 0x01 active, 0x02 error, 0x04 the drive has interrupted; writing a one clears these two.
       0x20, 0x40: drives 0 and 1 can do DMA, which software notes here
    4  gpa of the table of physical regions (PRD), u32
An entry of the table is u32 gpa, u16 bytes (0 is 64 KiB), u16 flags, of which 0x8000 marks the last one. The table does
not cross a multiple of 64 KiB: where it would it goes on at the one before.

A block of the drive (some KiB) is moved in one go when its time has passed, NS_PER_BYTE for each byte. What a PRD says
of memory that is not there is read as ones and written to nowhere. Where the table ends before the drive's data the
channel stops without an interrupt, where it goes on behind them it stays active (3.1 of the first source).
"""

from __future__ import annotations

import struct
from typing import ClassVar

from emu.devices.device import Clock, Device, GuestMemory
from emu.devices.ide import IdeChannel
from emu.devices.pio import READING

START, TO_MEMORY = 0x01, 0x08  # command
ACTIVE, ERROR, INTERRUPT = 0x01, 0x02, 0x04  # status
CAPABLE = 0x60
COMMAND, STATUS, TABLE = 0, 2, 4  # offsets
PORTS = 8  # of a channel
NS_PER_BYTE = 10
ENTRY = struct.Struct("<IHH")
LAST = 0x8000
END_OF_MEMORY = 1 << 32  # that it can address


class BusMaster(Device):
    """The controller of ``channel``; it is an input of that channel's interrupt line, too."""

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = ("command", "status", "table", "entry", "region", "left", "last", "due", "level")

    def __init__(self, memory: GuestMemory, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self._channel: IdeChannel | None = None
        self.command = 0
        self.status = 0
        self.table = 0  # gpa
        self.entry = 0  # gpa of the next entry
        self.region = 0  # gpa of what is left of the last entry
        self.left = 0  # bytes of it
        self.last = False  # it was the last one
        self.due = -1  # when the drive's block is moved, in ns; -1: none waits
        self.level = False  # of the drive's interrupt

    def serve(self, channel: IdeChannel) -> None:
        """Move the blocks of this channel."""
        self._channel = channel
        channel.on_change = self._look

    def set(self, level: bool) -> None:
        """The level of INTRQ."""
        if level and not self.level:
            self.status |= INTERRUPT
        self.level = level

    # --- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        registers = struct.pack("<BxBxI", self.command, self.status, self.table)
        return int.from_bytes(registers[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for at in range(offset, offset + size):
            self._write_byte(at, value & 0xFF)
            value >>= 8

    def _write_byte(self, offset: int, value: int) -> None:
        if offset == COMMAND:
            self._write_command(value & (START | TO_MEMORY))
        elif offset == STATUS:
            self.status = self.status & ~(value & (ERROR | INTERRUPT) | CAPABLE) | value & CAPABLE
        elif offset >= TABLE:
            shift = 8 * (offset - TABLE)
            self.table = (self.table & ~(0xFF << shift) | value << shift) & ~3

    def _write_command(self, value: int) -> None:
        starts = value & ~self.command & START
        self.command = value
        if not value & START:
            self.status &= ~ACTIVE
            self.due = -1
        elif starts:
            self.status |= ACTIVE
            self.entry, self.left, self.last = self.table, 0, False
            self._look()

    # --- moving -------------------------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        return self.due if self.due >= 0 else None

    def tick(self, now_ns: int) -> None:
        if 0 <= self.due <= now_ns:
            self.due = -1
            self._move()
            self._look()

    def _look(self) -> None:
        """Something has happened: does a block wait to be moved?"""
        drive = self._channel.requesting if self._channel is not None else None
        if drive is None or not self.status & ACTIVE:
            self.due = -1
        elif self.due < 0:
            self.due = self._clock() + drive.dma_size * NS_PER_BYTE

    def _move(self) -> None:
        channel = self._channel
        drive = channel.requesting if channel is not None else None
        if channel is None or drive is None:
            return
        to_memory = bool(self.command & TO_MEMORY)
        pieces = self._take(drive.dma_size) if to_memory == (drive.dma == READING) else None
        if pieces is None:
            self.status = self.status & ~ACTIVE | (ERROR if self.left else 0)
            return
        if to_memory:
            data = drive.dma_read()
            for gpa, size in pieces:
                self._memory.write(gpa, data[:size])
                data = data[size:]
        else:
            drive.dma_write(b"".join(self._memory.read(gpa, size) for gpa, size in pieces))
        if self.last and not self.left:
            self.status &= ~ACTIVE
        channel.moved()

    def _take(self, size: int) -> list[tuple[int, int]] | None:
        """gpa and bytes of each piece of the next ``size`` bytes; None when the table ends before."""
        pieces = []
        while size:
            if not self.left:
                if self.last:
                    return None
                self._next_entry()
            part = min(size, self.left, END_OF_MEMORY - self.region)
            pieces.append((self.region, part))
            self.region = (self.region + part) % END_OF_MEMORY
            self.left -= part
            size -= part
        return pieces

    def _next_entry(self) -> None:
        gpa, count, flags = ENTRY.unpack(self._memory.read(self.entry, ENTRY.size))
        self.entry = self.entry & ~0xFFFF | self.entry + ENTRY.size & 0xFFFF
        self.region, self.left, self.last = gpa & ~1, count & ~1 or 0x10000, bool(flags & LAST)
