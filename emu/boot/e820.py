"""The memory map as BIOS INT 15h, AX=E820h tells it, and all boot protocols after it (ACPI 6.4, chapter 15)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from emu.devices import layout

USABLE, RESERVED = 1, 2  # types of ranges


@dataclass(frozen=True)
class Entry:
    """One range: where it begins, its length in bytes, and its type."""

    gpa: int
    size: int
    kind: int

    def pack(self) -> bytes:
        """The 20 bytes of INT 15h."""
        return struct.pack("<QQI", self.gpa, self.size, self.kind)


def memory_map(ram: int) -> list[Entry]:
    """The ranges of a machine with ``ram`` bytes of memory."""
    low, *high = layout.ram_ranges(ram)
    entries = [Entry(0, min(layout.EBDA, low.stop), USABLE)]
    if low.stop > layout.EBDA:
        entries.append(Entry(layout.EBDA, layout.VIDEO_MEMORY - layout.EBDA, RESERVED))
    if low.stop > layout.BIOS_AREA:
        entries.append(Entry(layout.BIOS_AREA, layout.EXTENDED_MEMORY - layout.BIOS_AREA, RESERVED))
    if low.stop > layout.EXTENDED_MEMORY:
        entries.append(Entry(layout.EXTENDED_MEMORY, low.stop - layout.EXTENDED_MEMORY, USABLE))
    entries.append(Entry(layout.BIOS_ROM_HIGH, layout.HIGH_RAM - layout.BIOS_ROM_HIGH, RESERVED))
    entries += [Entry(part.start, len(part), USABLE) for part in high]
    return entries
