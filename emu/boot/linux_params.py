"""``boot_params``, the "zero page" that a Linux kernel gets which is entered in protected or long mode.
Source: Linux, Documentation/arch/x86/zero-page.rst and boot.rst.
"""

from __future__ import annotations

import re
import struct

from emu.boot.e820 import memory_map
from emu.boot.framebuffer import COLOURS, MODE_ATTRIBUTES, VESA_MODES
from emu.boot.linux_header import CAN_USE_HEAP, HEADER_AT, KERNEL, LOADER_UNDEFINED
from emu.boot.tables import ACPI
from emu.devices import layout
from emu.devices.vbe import VideoMode
from emu.errors import BadInput

BOOT_PARAMS = 0x10000  # gpas: of the page
GDT = 0x11000
COMMAND_LINE = 0x20000
PAGE_TABLES = 0x30000
BOOT_CS, BOOT_DS = 0x10, 0x18  # selectors that the protocols ask for
MAX_COMMAND_LINE = PAGE_TABLES - COMMAND_LINE - 1  # bytes
_E820_MAX = 128
_VLFB = 0x23  # orig_video_isVGA: a linear frame buffer by VESA
_VESA, _VESA_FIRST, _VESA_END = 0x200, 0x300, 0x400  # numbers of vga= for VESA modes, and what is added to theirs


def asked_mode(append: str) -> VideoMode | None:
    """The graphics mode that a command line asks for, as ``vga=0x344``, which the kernel's setup would switch on: 0x200
    and the number of a VESA mode.  Where there are several the last one counts; text modes and words are text.

    Raises:
        BadInput: there is no such VESA mode.
    """
    mode = None
    for value in re.findall(r"(?:^|\s)vga=(\S*)", append):
        try:
            number = int(value, 0)
        except ValueError:  # normal, ext, ask
            number = 0
        mode = VESA_MODES.get(number - _VESA) if _VESA_FIRST <= number < _VESA_END else None
        if mode is None and _VESA_FIRST <= number < _VESA_END:
            known = ", ".join(f"{known + _VESA:#x} ({m.width}x{m.height}x{m.depth})" for known, m in VESA_MODES.items())
            raise BadInput("--append", f"vga={value}: no such mode; there are {known}")
    return mode


def boot_params(
    header: bytes, ram: int, initrd_at: int = 0, initrd_size: int = 0, mode: VideoMode | None = None
) -> bytes:
    """The page.

    Args:
        header: the kernel's setup header, from offset 0x1F1 on.
        ram: bytes of guest memory.
        initrd_at, initrd_size: gpa and bytes of the initial RAM disk.
        mode: the graphics mode that is on; None for text.
    """
    page = bytearray(4096)
    page[HEADER_AT : HEADER_AT + len(header)] = header
    # screen_info: 80x25 text, cursor at the top
    page[0x06], page[0x07] = 3, 80  # orig_video_mode, orig_video_cols
    page[0x0E], page[0x0F] = 25, 1  # orig_video_lines, orig_video_isVGA
    struct.pack_into("<H", page, 0x10, 16)  # points of a character
    if mode is not None:
        page[0x0F] = _VLFB
        struct.pack_into("<HHH", page, 0x12, mode.width, mode.height, mode.depth)
        size = -(-mode.pitch * mode.height >> 16)  # in 64 KiB
        struct.pack_into("<II", page, 0x18, layout.VIDEO_FRAME_BUFFER, size)
        struct.pack_into("<H8s", page, 0x24, mode.pitch, bytes(COLOURS.get(mode.depth, (0,) * 8)))
        struct.pack_into("<HH", page, 0x32, 1, MODE_ATTRIBUTES)  # pages
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
