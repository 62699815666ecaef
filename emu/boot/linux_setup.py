"""Linux images that are entered in real mode, at their setup: the oldest boot protocol, by which also boot loaders and
tools in the shape of a kernel are started. Source: Linux, Documentation/arch/x86/boot.rst, "Details of Header Fields"
to "Running the Kernel".

                 bzImage           zImage
    setup        0x10000           0x90000   the boot sector, the setup behind it; its heap and stack end at HEAP_END
    command line behind the heap   behind the heap
    kernel       0x100000          0x10000

The setup asks a BIOS about the machine, which is there (:mod:`emu.boot.low_memory`), and enters the kernel itself.
"""

from __future__ import annotations

import struct
from pathlib import Path

from emu.boot.entry import CODE_16, DATA_16
from emu.boot.guest import Guest
from emu.boot.image import FileSource, GuestImage
from emu.boot.linux_header import CAN_USE_HEAP, KERNEL, LOADER_UNDEFINED, SetupHeader, place_initrd, place_kernel
from emu.devices import layout
from emu.engine.cpustate import CpuState
from emu.errors import BadInput

SETUP, SETUP_LOW = 0x1_0000, 0x9_0000  # gpas of the real-mode part; the latter for a zImage
KERNEL_LOW = 0x1_0000
HEAP_END, HEAP_END_OLD = 0xE000, 0x9800  # offsets from there; the latter before protocol 2.02
COMMAND_LINE_MAX = 2047  # characters, where the header does not tell; 255 before protocol 2.02
ENTRY = 0x20  # paragraphs from the real-mode part to its entry point
OLD_COMMAND_LINE_MAGIC = 0xA33F
HEAP_MARGIN = 0x200  # heap_end_ptr is so far below the end


def setup_guest(path: Path, header: SetupHeader, ram: int, append: str = "", initrd: Path | None = None) -> Guest:
    """A guest that is entered in real mode.

    Args:
        path: the image.
        header: its setup header.
        ram: bytes of guest memory.
        append: its command line.
        initrd: its initial RAM disk; for memdisk, the disk image.

    Raises:
        BadInput: the files are broken, or do not fit.
    """
    modern = header.version >= 0x202
    setup = SETUP if modern and header.loaded_high else SETUP_LOW
    heap_end = HEAP_END if setup == SETUP else HEAP_END_OLD
    kernel = KERNEL if header.loaded_high else KERNEL_LOW
    low_end = layout.ram_ranges(ram)[0].stop
    image = GuestImage()
    size = place_kernel(image, path, header, kernel)
    if not header.loaded_high and kernel + size > SETUP_LOW:
        raise BadInput(str(path), f"the kernel of {size} bytes does not fit below {SETUP_LOW:#x}, where it is loaded")
    if kernel + size > low_end or low_end < layout.VIDEO_MEMORY:
        raise BadInput("--ram", f"{ram >> 20}M is too little: {path.name} needs {-(-(kernel + size) >> 20)}M to start")
    command_line = append.encode()
    most = min(header.command_line_max, COMMAND_LINE_MAX) if header.version >= 0x206 else 255
    if len(command_line) > max(most, 255):
        raise BadInput("--append", f"{len(command_line)} characters, {path.name} takes {most}")
    image.add(setup, FileSource(path, 0, header.setup_size))
    image.add(setup + heap_end, command_line + b"\0")
    if initrd is not None:
        place = place_initrd(image, initrd, header.initrd_max, kernel + size, low_end)
        image.add(setup + 0x218, struct.pack("<II", *place))
    image.add(setup + 0x210, bytes((LOADER_UNDEFINED,)))
    if header.version >= 0x201:
        image.add(setup + 0x211, bytes((header.loadflags | CAN_USE_HEAP,)))
        image.add(setup + 0x224, struct.pack("<H", heap_end - HEAP_MARGIN))
    if modern:
        image.add(setup + 0x228, struct.pack("<I", setup + heap_end))
    else:
        image.add(setup + 0x020, struct.pack("<HH", OLD_COMMAND_LINE_MAGIC, heap_end))
        image.add(setup + 0x212, struct.pack("<H", heap_end + len(command_line) + 1))  # setup_move_size

    def start(cpu: CpuState) -> None:
        for segment in (cpu.ds, cpu.es, cpu.fs, cpu.gs, cpu.ss):
            segment.set(setup >> 4, setup, 0xFFFF, DATA_16)
        code = (setup >> 4) + ENTRY
        cpu.cs.set(code, code << 4, 0xFFFF, CODE_16)
        cpu.rip, cpu.rsp = 0, heap_end

    return Guest(path.name, "Linux image, at its setup", image, start, after_bios=True)
