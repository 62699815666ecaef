"""Graphics that are on before a guest's first instruction: what its loader chooses, and what it tells about that.

Sources: Multiboot Specification 0.6.96 and Multiboot2 Specification 2.0 (framebuffer), VESA BIOS Extension 2.0.
"""

from __future__ import annotations

import struct

from emu.devices import layout
from emu.devices.vbe import DEPTHS, MEMORY_SIZE, VideoMode

DEFAULT = VideoMode(1024, 768, 32)  # for a kernel that has no preference
INDEXED, RGB, TEXT = 0, 1, 2  # framebuffer types of both specifications
TEXT_PITCH, TEXT_COLUMNS, TEXT_ROWS = 160, 80, 25

VESA_MODES = {
    **{number: VideoMode(640, 480, depth) for number, depth in ((0x101, 8), (0x110, 15), (0x111, 16), (0x112, 24))},
    **{number: VideoMode(800, 600, depth) for number, depth in ((0x103, 8), (0x113, 15), (0x114, 16), (0x115, 24))},
    **{number: VideoMode(1024, 768, depth) for number, depth in ((0x105, 8), (0x116, 15), (0x117, 16), (0x118, 24))},
    **{number: VideoMode(1280, 1024, depth) for number, depth in ((0x107, 8), (0x119, 15), (0x11A, 16), (0x11B, 24))},
    0x100: VideoMode(640, 400, 8), 0x142: VideoMode(640, 480, 32), 0x143: VideoMode(800, 600, 32),
    0x144: VideoMode(1024, 768, 32), 0x145: VideoMode(1280, 1024, 32),
}  # fmt: skip
"""Modes by number, as the built-in BIOS has them, too (firmware/bios/vbe.inc)."""

COLOURS = {  # size and position of red, green and blue by depth, in bits; and of what is not used
    15: (5, 10, 5, 5, 5, 0, 1, 15), 16: (5, 11, 6, 5, 5, 0, 0, 0), 24: (8, 16, 8, 8, 8, 0, 0, 0),
    32: (8, 16, 8, 8, 8, 0, 8, 24),
}  # fmt: skip

MODE_ATTRIBUTES = 0xFB  # there, in colour, graphics, no VGA, no window, linear
_LINEAR = 0x4000  # bit of a mode's number
_NO_NUMBER = 0x01FF


def wanted_mode(width: int, height: int, depth: int) -> VideoMode:
    """The mode for a kernel that would like this one; 0 is no preference, and what is not possible becomes another."""
    mode = VideoMode(width or DEFAULT.width, height or DEFAULT.height, depth if depth in DEPTHS else DEFAULT.depth)
    fits = mode.width <= 0x4000 and mode.pitch * mode.height <= MEMORY_SIZE
    return mode if fits else VideoMode(DEFAULT.width, DEFAULT.height, mode.depth)


def framebuffer_fields(mode: VideoMode | None) -> bytes:
    """Address u64, pitch, width, height u32, bits a pixel u8, type u8, as both specifications have them; None is the
    text screen."""
    if mode is None:
        text = (0xB8000, TEXT_PITCH, TEXT_COLUMNS, TEXT_ROWS, 16, TEXT)
        return struct.pack("<QIIIBB", *text)
    kind = INDEXED if mode.depth == 8 else RGB
    return struct.pack(
        "<QIIIBB", layout.VIDEO_FRAME_BUFFER, mode.pitch, mode.width, mode.height, mode.depth, kind
    )  # fmt: skip


def colour_fields(mode: VideoMode | None) -> bytes:
    """Position and size of red, green and blue, u8 each; nothing where there are none."""
    if mode is None or mode.depth not in COLOURS:
        return b""
    sizes = COLOURS[mode.depth]
    return bytes((sizes[1], sizes[0], sizes[3], sizes[2], sizes[5], sizes[4]))


def vesa_number(mode: VideoMode) -> int:
    """The number of a mode, with the bit for a linear frame buffer."""
    numbers = [number for number, known in VESA_MODES.items() if known == mode]
    return (numbers[0] if numbers else _NO_NUMBER) | _LINEAR


def vesa_information() -> bytes:
    """What INT 10h, AX=4F00h tells of the adapter, 512 bytes; without strings and the list of modes."""
    return struct.pack("<4sH12xH", b"VESA", 0x0200, MEMORY_SIZE >> 16).ljust(512, b"\0")


def vesa_mode_information(mode: VideoMode) -> bytes:
    """What INT 10h, AX=4F01h tells of a mode, 256 bytes."""
    info = bytearray(256)
    struct.pack_into("<H14xHHH", info, 0, MODE_ATTRIBUTES, mode.pitch, mode.width, mode.height)
    info[0x16:0x1F] = bytes((8, 16, 1, mode.depth, 1, 4 if mode.depth == 8 else 6, 0, 0, 1))
    info[0x1F:0x27] = bytes(COLOURS.get(mode.depth, (0,) * 8))
    struct.pack_into("<I", info, 0x28, layout.VIDEO_FRAME_BUFFER)
    return bytes(info)
