"""What a hard disk tells about itself: IDENTIFY DEVICE. Source: T13/1410D (ATA/ATAPI-6), clause 8.15."""

from __future__ import annotations

import struct

from emu.devices.disk import MAX_CYLINDERS, Geometry
from emu.devices.taskfile import ata_string

MAX_MULTIPLE = 16  # sectors in a block of the MULTIPLE commands
MAX_LBA28 = 0x0FFF_FFFF  # sectors that 28-bit commands can express
FIRMWARE = "1.0"
MODEL = "EMU HARDDISK"


def identity(
    serial: str, native: Geometry, translation: tuple[int, int], sectors: int, multiple: int, write_cache: bool,
    dma_mode: int | None,
) -> bytes:  # fmt: skip
    """The 512 bytes.

    Args:
        serial: the drive's number.
        native: its own geometry.
        translation: heads, and sectors of a track, as they are now.
        sectors: its size.
        multiple: sectors in a block of the MULTIPLE commands; 0: there are none.
        write_cache: whether it is on.
        dma_mode: multiword DMA mode that is chosen; None for none.
    """
    cylinders, heads, track = native
    heads_now, track_now = translation
    cylinders_now = min(sectors // (heads_now * track_now), MAX_CYLINDERS)
    chs_sectors = cylinders_now * heads_now * track_now
    lba28 = min(sectors, MAX_LBA28)
    cache = 0x20 if write_cache else 0
    words = {
        0: 0x0040, 1: cylinders, 3: heads, 6: track,  # a fixed drive and its own geometry
        20: 3, 21: 512, 22: 4,  # a cache of 256 KiB, in older standards
        47: 0x8000 | MAX_MULTIPLE,
        48: 1,  # 32-bit data port, in older standards
        49: 0x0B00, 50: 0x4000,  # LBA, IORDY, DMA
        51: 0x0200,  # PIO timing 2, in older standards
        53: 0x0003, 54: cylinders_now, 55: heads_now, 56: track_now,  # translation now
        57: chs_sectors & 0xFFFF, 58: chs_sectors >> 16 & 0xFFFF,
        59: 0x0100 | multiple if multiple else 0,
        60: lba28 & 0xFFFF, 61: lba28 >> 16,
        63: 0x0007 | (0 if dma_mode is None else 0x0100 << dma_mode),  # multiword DMA modes 0 to 2
        64: 0x0003, 65: 120, 66: 120, 67: 120, 68: 120,  # PIO modes 3 and 4, ns a cycle of DMA and PIO
        80: 0x0070,  # ATA/ATAPI-4 to -6
        82: 0x4028, 83: 0x7400, 84: 0x4000,  # NOP, write cache, power management, FLUSH CACHE (EXT), 48 bits
        85: 0x4008 | cache, 86: 0x3400, 87: 0x4000,  # the same, as it is switched now
        93: 0x6001,  # passed the reset, by the CSEL jumper
        100: sectors & 0xFFFF, 101: sectors >> 16 & 0xFFFF, 102: sectors >> 32 & 0xFFFF, 103: sectors >> 48,
    }  # fmt: skip
    data = bytearray(struct.pack("<256H", *(words.get(number, 0) for number in range(256))))
    data[20:40] = ata_string(serial, 20)
    data[46:54] = ata_string(FIRMWARE, 8)
    data[54:94] = ata_string(MODEL, 40)
    data[510] = 0xA5  # word 255: the checksum that follows is valid
    data[511] = -sum(data) & 0xFF
    return bytes(data)
