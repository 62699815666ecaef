"""``boot_params``, the "zero page" that a Linux kernel gets which is entered in protected or long mode.
Source: Linux, Documentation/arch/x86/zero-page.rst and boot.rst.
"""

from __future__ import annotations

import struct

from emu.boot.e820 import memory_map
from emu.boot.linux_header import CAN_USE_HEAP, HEADER_AT, KERNEL, LOADER_UNDEFINED
from emu.boot.tables import ACPI

BOOT_PARAMS = 0x10000  # gpas: of the page
GDT = 0x11000
COMMAND_LINE = 0x20000
PAGE_TABLES = 0x30000
BOOT_CS, BOOT_DS = 0x10, 0x18  # selectors that the protocols ask for
MAX_COMMAND_LINE = PAGE_TABLES - COMMAND_LINE - 1  # bytes
_E820_MAX = 128


def boot_params(header: bytes, ram: int, initrd_at: int = 0, initrd_size: int = 0) -> bytes:
    """The page.

    Args:
        header: the kernel's setup header, from offset 0x1F1 on.
        ram: bytes of guest memory.
        initrd_at, initrd_size: gpa and bytes of the initial RAM disk.
    """
    page = bytearray(4096)
    page[HEADER_AT : HEADER_AT + len(header)] = header
    # screen_info: 80x25 text, cursor at the top
    page[0x06], page[0x07] = 3, 80  # orig_video_mode, orig_video_cols
    page[0x0E], page[0x0F] = 25, 1  # orig_video_lines, orig_video_isVGA
    struct.pack_into("<H", page, 0x10, 16)  # points of a character
    struct.pack_into("<Q", page, 0x070, ACPI)  # acpi_rsdp_addr
    page[0x210] = LOADER_UNDEFINED
    page[0x211] |= CAN_USE_HEAP
    struct.pack_into("<I", page, 0x214, KERNEL)
    struct.pack_into("<II", page, 0x218, initrd_at & 0xFFFF_FFFF, initrd_size & 0xFFFF_FFFF)
    struct.pack_into("<H", page, 0x224, 0xFE00)  # heap_end_ptr
    struct.pack_into("<I", page, 0x228, COMMAND_LINE)
    struct.pack_into("<I", page, 0x1E0, min((ram >> 10) - 1024, 0xFFFF_FFFF))  # alt_mem_k
    entries = memory_map(ram)[:_E820_MAX]
    page[0x1E8] = len(entries)
    for index, entry in enumerate(entries):
        page[0x2D0 + 20 * index : 0x2D0 + 20 * (index + 1)] = entry.pack()
    return bytes(page)
