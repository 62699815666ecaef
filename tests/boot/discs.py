"""Bootable discs for tests: as little of ISO 9660 and El Torito as a BIOS looks at."""

from __future__ import annotations

import struct

from tests.boot.bios_disks import SECTOR, source

BLOCK = 2048  # bytes
CATALOG, IMAGE = 19, 20  # blocks
NO_EMULATION, FLOPPY_1200K, FLOPPY_1440K, FLOPPY_2880K, HARD_DISK = range(5)
MEDIA = {1200 << 10: FLOPPY_1200K, 1440 << 10: FLOPPY_1440K, 2880 << 10: FLOPPY_2880K}
_START = (
    ".code16\n cli\n xor ax, ax\n mov ds, ax\n mov es, ax\n mov ss, ax\n mov sp, 0x7C00\n sti\n cld\n ljmp 0:0x7E00\n"
)


def disc(image: bytes, media: int = NO_EMULATION, sectors: int = 1, segment: int = 0, blocks: int = 0) -> bytes:
    """A disc that boots ``image``: ``sectors`` of 512 bytes of it are loaded. ``blocks``: its size, if it is larger."""
    record = b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + struct.pack("<I", CATALOG)
    validation = bytearray(struct.pack("<BBH24sHBB", 1, 0, 0, b"emu", 0, 0x55, 0xAA))
    words = struct.unpack("<16H", validation)
    validation[28:30] = struct.pack("<H", -sum(words) & 0xFFFF)
    entry = struct.pack("<BBHBBHI", 0x88, media, segment, 0, 0, sectors, IMAGE)
    parts = [bytes(16 * BLOCK), b"\1CD001\1", record, b"\xffCD001\1", bytes(validation) + entry, image]
    data = b"".join(part.ljust(-(-len(part) // BLOCK) * BLOCK, b"\0") for part in parts)
    return data.ljust(blocks * BLOCK, b"\0")


def numbered(data: bytes, blocks: int) -> bytes:
    """The same with more blocks behind, which hold their numbers."""
    return data + b"".join(number.to_bytes(4, "little") * (BLOCK // 4) for number in range(len(data) // BLOCK, blocks))


def program_disc(code: bytes, blocks: int = 0) -> bytes:
    """A disc that boots ``code`` at 0x7E00, with DS = ES = SS = 0 and interrupts on."""
    sector = source(_START, 0x7C00).ljust(SECTOR, b"\0")
    return disc(sector + code, sectors=1 + -(-len(code) // SECTOR), blocks=blocks)
