"""What a BIOS leaves below 1 MiB: interrupt vectors, its data areas, itself, and the tables that tell a kernel what
hardware there is. Kernels that are entered directly find all of it as if our BIOS (``firmware/bios``) had started them.

    0x00000   interrupt vectors, 256 times offset and segment
    0x00400   BIOS data area: what the BIOS and programs share (IBM PC/AT Technical Reference, section 5)
    EBDA      extended BIOS data area, the last KiB of base memory
    0xF0000   the ROM, with the tables of :mod:`emu.boot.tables` in its upper half

The ROM is assembled when the guest first looks at what is made from it: most kernels never do.
"""

from __future__ import annotations

import struct
from functools import cache

from emu.asm.assembler import Image, assemble_image
from emu.boot.e820 import memory_map
from emu.boot.firmware import firmware_directory
from emu.boot.image import GuestImage
from emu.boot.tables import place_tables
from emu.devices import layout

ROM_SIZE = 0x1_0000  # bytes of our BIOS
ROM_SEGMENT = 0xF000
BIOS32_CHECKSUM = 10  # offset in the header of the 32-bit service directory
MAX_RANGES = 64  # of a memory map in our BIOS

VECTORS = 256
FREE_VECTORS = range(0x60, 0x67)  # for programs, 0
DISK_PARAMETERS = {0x41: 0x3D, 0x46: 0x4D}  # vector: offset of the table that it points at in the EBDA
BDA = 0x400  # gpa
BDA_SIZE = 0x100
EBDA_SIZE = 0x400
EBDA_INTERRUPTS = 0x1FE  # offset in it
KEYS, KEYS_END = 0x1E, 0x3E  # the keyboard's buffer, offsets in the BDA
EQUIPMENT = 0x0226  # coprocessor, PS/2 mouse, colour display with 80 columns, one serial port
_BYTE, _WORD, _DWORD = "<B", "<H", "<I"


def place_low_memory(image: GuestImage, ram: int, cpus: int, after_bios: bool = False) -> None:
    """Put all of that below what ``image`` has there already.

    Args:
        ram: bytes of guest memory.
        cpus: number of processors, for the tables.
        after_bios: interrupt controllers and timer are as a BIOS leaves them; else our BIOS sets them up when a service
            first has to wait.
    """
    ebda = ebda_gpa(ram)
    below = GuestImage()
    below.add(0, _Vectors(ebda))
    below.add(BDA, data_area(ebda))
    below.add(ebda, bytes((EBDA_SIZE >> 10,)))
    below.add(ebda + EBDA_INTERRUPTS, bytes((after_bios,)))
    place_rom(below, ram, cpus)
    image.add_below(below)


def place_rom(image: GuestImage, ram: int, cpus: int) -> None:
    """Add the ROM, with the tables in it."""
    image.add(layout.BIOS_AREA, _Rom(ram))
    place_tables(image, ram, cpus)


def ebda_gpa(ram: int) -> int:
    """Where the extended data area begins on a machine with ``ram`` bytes of memory."""
    return min(ram, layout.VIDEO_MEMORY) - EBDA_SIZE


def data_area(ebda: int) -> bytes:
    """The BIOS data area of a machine with the extended one at ``ebda``; ``firmware/bios/pc.inc`` names the fields."""
    area = bytearray(BDA_SIZE)
    for at, form, value in (
        (0x00, _WORD, layout.COM1_PORT), (0x0E, _WORD, ebda >> 4), (0x10, _WORD, EQUIPMENT), (0x13, _WORD, ebda >> 10),
        (0x1A, _WORD, KEYS), (0x1C, _WORD, KEYS), (0x80, _WORD, KEYS), (0x82, _WORD, KEYS_END), (0x96, _BYTE, 0x10),
        (0x49, _BYTE, 3), (0x4A, _WORD, 80), (0x4C, _WORD, 0x1000), (0x60, _WORD, 0x0607), (0x63, _WORD, 0x3D4),
        (0x84, _BYTE, 24), (0x85, _WORD, 16), (0x87, _BYTE, 0x60), (0x88, _BYTE, 0xF9), (0x89, _BYTE, 0x51),
        (0x8A, _BYTE, 8), (0x7C, _DWORD, 0x0A0A_0A0A),
    ):  # fmt: skip
        struct.pack_into(form, area, at, value)
    return bytes(area)


def bios_rom(ram: int) -> bytes:
    """The ROM of our BIOS for a machine with ``ram`` bytes of memory: ROM_SIZE bytes, to be placed at 0xF0000.

    It learns the memory map from a table in it, as it has no other way to know what is above 4 GiB.
    """
    image = _assembled()
    entries = memory_map(ram)
    if len(entries) > MAX_RANGES:
        raise ValueError(f"a memory map of {len(entries)} ranges")
    rom = bytearray(image.data)
    struct.pack_into("<H", rom, image.symbols["memory_map_count"], len(entries))
    packed = b"".join(entry.pack() for entry in entries)
    at = image.symbols["memory_map"]
    rom[at : at + len(packed)] = packed
    at = image.symbols["bios32"]
    rom[at + BIOS32_CHECKSUM] = -sum(rom[at : at + 16]) & 0xFF
    return bytes(rom)


@cache
def _assembled() -> Image:
    image = assemble_image(firmware_directory() / "bios" / "bios.s", load=0)  # labels are offsets in segment F000
    if len(image.data) != ROM_SIZE:
        raise ValueError(f"the BIOS is {len(image.data):#x} bytes long")
    return image


class _Rom:
    """The ROM as a :class:`emu.boot.image.Source`."""

    def __init__(self, ram: int) -> None:
        self._ram = ram

    def __len__(self) -> int:
        return ROM_SIZE

    def read(self, offset: int, size: int) -> bytes:
        return bios_rom(self._ram)[offset : offset + size]


class _Vectors:
    """The table of interrupt vectors as the BIOS fills it, as a :class:`emu.boot.image.Source`."""

    def __init__(self, ebda: int) -> None:
        self._ebda = ebda

    def __len__(self) -> int:
        return 4 * VECTORS

    def read(self, offset: int, size: int) -> bytes:
        rom = _assembled()
        table = bytearray(struct.pack("<HH", rom.symbols["ignore_interrupt"], ROM_SEGMENT) * VECTORS)
        for at, handler in struct.iter_unpack("<HH", rom.data[rom.symbols["vectors"] : rom.symbols["vectors_end"]]):
            struct.pack_into("<H", table, at, handler)
        for number in (*FREE_VECTORS, 0x1F):  # 1Fh: no upper half of a graphics font
            struct.pack_into("<I", table, 4 * number, 0)
        for number, at in DISK_PARAMETERS.items():
            struct.pack_into("<HH", table, 4 * number, at, self._ebda >> 4)
        return bytes(table[offset : offset + size])
