"""Flat binaries: an image at one address, entered in real mode.

``boot_info`` puts the RAM size and the command line where the guests in ``firmware/`` look for them.
"""

from __future__ import annotations

import struct

from emu.boot.entry import CODE_16
from emu.boot.guest import Guest
from emu.boot.image import BytesSource, GuestImage, Source
from emu.engine.cpustate import CpuState
from emu.errors import BadInput

BOOT_INFO = 0x7000  # gpa: u64 RAM size in bytes, then the command line, NUL-terminated
COMMAND_LINE_MAX = 254  # characters
LOAD_ADDRESS = 0x8000  # default gpa of the image and of its first instruction
STACK_TOP = 0x7C00  # first SP, segment 0
LIMIT_REAL_MODE = 1 << 20  # the entry point must be reachable in real mode


def flat_guest(name: str, source: Source | bytes, ram: int, append: str = "", load: int = LOAD_ADDRESS) -> Guest:
    """A guest from an image at ``load``, entered there with CS = DS = ES = SS = 0 (or CS = load >> 4 above 64 KiB).

    Args:
        ram: bytes of guest memory, for the boot information.
        append: the command line.

    Raises:
        BadInput: image, address and memory do not fit together.
    """
    if isinstance(source, bytes):
        source = BytesSource(source)
    if not len(source):
        raise BadInput(name, "the image is empty")
    if load >= LIMIT_REAL_MODE or load % 16:
        raise BadInput(name, f"load address {load:#x} is not a multiple of 16 below 1M, where real mode can enter it")
    if load + len(source) > ram:
        raise BadInput(name, f"the image ends at {load + len(source):#x}, beyond the {ram:#x} bytes of RAM")
    command_line = append.encode("ascii", "replace")
    if len(command_line) > COMMAND_LINE_MAX:
        raise BadInput("--append", f"{len(command_line)} characters, at most {COMMAND_LINE_MAX} fit")
    image = GuestImage()
    image.add(BOOT_INFO, struct.pack("<Q", ram) + command_line + b"\0")
    image.add(load, source)
    segment, offset = (0, load) if load < 0x10000 else (load >> 4, 0)

    def start(cpu: CpuState) -> None:
        cpu.cs.set(segment, segment << 4, 0xFFFF, CODE_16)
        cpu.rip = offset
        cpu.rsp = STACK_TOP

    return Guest(name, "flat binary", image, start)
