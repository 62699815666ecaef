"""Linux bzImages: the 32-bit and the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).

The kernel is entered without its real-mode part: the loader fills in ``boot_params`` itself.
"""

from __future__ import annotations

import struct
from pathlib import Path

from emu.boot.e820 import memory_map
from emu.boot.entry import CODE_32, CODE_64, DATA_32, descriptor, enter_long_mode, enter_protected_mode, identity_tables
from emu.boot.guest import Guest
from emu.boot.image import FileSource, GuestImage, open_source
from emu.boot.tables import ACPI
from emu.devices import layout
from emu.engine.cpustate import CpuState
from emu.errors import BadInput

BOOT_PARAMS = 0x10000  # gpa of the "zero page"
GDT = 0x11000
COMMAND_LINE = 0x20000
PAGE_TABLES = 0x30000
KERNEL = 0x10_0000  # gpa of the protected-mode part

_SECTOR = 512
_HEADER = 0x1F1  # of the setup header, in file and zero page alike
_MIN_VERSION = 0x202  # protocol: command line by pointer, kernel loaded high
_VERSION_64 = 0x20C  # xloadflags
_LOADED_HIGH = 1  # loadflags
_CAN_USE_HEAP = 0x80
_XLF_KERNEL_64 = 1  # xloadflags: has the 64-bit entry point, 0x200 behind the 32-bit one
_LOADER_UNDEFINED = 0xFF  # type_of_loader
_E820_MAX = 128
_BOOT_CS, _BOOT_DS = 0x10, 0x18  # selectors that the protocols ask for


class SetupHeader:
    """The setup header of a kernel file.

    Args:
        name: of the file, for errors.
        head: the file's beginning, at least its first KiB.

    Raises:
        BadInput: it is truncated, or older than protocol 2.02.
    """

    def __init__(self, name: str, head: bytes) -> None:
        if len(head) < 0x268:
            raise BadInput(name, f"the kernel is truncated: {len(head)} bytes do not hold its header")
        self.setup_sectors = head[0x1F1] or 4
        (self.paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
        (self.version,) = struct.unpack_from("<H", head, 0x206)
        self.loadflags = head[0x211]
        if self.version < _MIN_VERSION or not self.loadflags & _LOADED_HIGH:
            version = f"{self.version >> 8}.{self.version & 0xFF:02}"
            raise BadInput(name, f"boot protocol {version}: a bzImage with protocol 2.02 or newer is needed")
        (self.initrd_max,) = struct.unpack_from("<I", head, 0x22C)
        if self.version < 0x203:
            self.initrd_max = 0x37FF_FFFF
        self.xloadflags = struct.unpack_from("<H", head, 0x236)[0] if self.version >= _VERSION_64 else 0
        self.command_line_max = struct.unpack_from("<I", head, 0x238)[0] if self.version >= 0x206 else 255
        self.preferred, self.init_size = KERNEL, 0
        if self.version >= 0x20A:
            self.preferred, self.init_size = struct.unpack_from("<QI", head, 0x258)
        self.bytes = head[_HEADER : 0x202 + head[0x201]]

    @property
    def setup_size(self) -> int:
        """Bytes of the real-mode part, with the boot sector."""
        return (self.setup_sectors + 1) * _SECTOR


def linux_guest(path: Path, ram: int, append: str = "", initrd: Path | None = None) -> Guest:
    """A guest from a bzImage.

    Args:
        path: the kernel.
        ram: bytes of guest memory.
        append: the kernel's command line.
        initrd: its initial RAM disk.

    Raises:
        BadInput: the files are broken, or do not fit.
    """
    name = path.name
    size = path.stat().st_size
    with path.open("rb") as file:
        header = SetupHeader(name, file.read(4096))
    kernel_size = size - header.setup_size
    if kernel_size <= (header.paragraphs - 1) * 16 or kernel_size <= 0:  # the last paragraph may be cut short
        wanted = header.setup_size + header.paragraphs * 16
        raise BadInput(str(path), f"the kernel is truncated: {size} of {wanted} bytes")
    low_end = layout.ram_ranges(ram)[0].stop
    needed = max(KERNEL + kernel_size, header.preferred + header.init_size)
    if needed > low_end:
        raise BadInput("--ram", f"{ram >> 20}M is too little: {name} needs {-(-needed >> 20)}M to start")
    command_line = append.encode()
    if len(command_line) > min(header.command_line_max, PAGE_TABLES - COMMAND_LINE - 1):
        raise BadInput("--append", f"{len(command_line)} characters, {name} takes {header.command_line_max}")

    image = GuestImage()
    image.add(KERNEL, FileSource(path, header.setup_size, kernel_size))
    initrd_at, initrd_size = _place_initrd(image, initrd, header, needed, low_end) if initrd else (0, 0)
    image.add(BOOT_PARAMS, _boot_params(header, ram, len(command_line), initrd_at, initrd_size))
    image.add(COMMAND_LINE, command_line + b"\0")
    long_mode = bool(header.xloadflags & _XLF_KERNEL_64)
    image.add(GDT, bytes(16) + descriptor(CODE_64 if long_mode else CODE_32) + descriptor(DATA_32))
    if long_mode:
        image.add(PAGE_TABLES, identity_tables(PAGE_TABLES))

    def start(cpu: CpuState) -> None:
        cpu.gdtr.set(0, GDT, 31, 0)
        if long_mode:
            enter_long_mode(cpu, _BOOT_CS, _BOOT_DS, PAGE_TABLES)
            cpu.rip = KERNEL + 0x200
        else:
            enter_protected_mode(cpu, _BOOT_CS, _BOOT_DS)
            cpu.rip = KERNEL
        cpu.rsi = BOOT_PARAMS

    return Guest(name, "Linux bzImage", image, start, after_bios=True)


def _place_initrd(
    image: GuestImage, initrd: Path, header: SetupHeader, kernel_end: int, low_end: int
) -> tuple[int, int]:
    """Put the RAM disk as high as the kernel allows; returns where it lies and its size."""
    source = open_source(initrd)
    size = len(source)
    if size == 0:
        raise BadInput(str(initrd), "the initrd is empty")
    gpa = (min(low_end, header.initrd_max + 1) - size) & ~0xFFF
    if gpa < kernel_end:
        room = max(min(low_end, header.initrd_max + 1) - kernel_end, 0)
        raise BadInput(str(initrd), f"the initrd of {size} bytes does not fit: {room} bytes of RAM are left for it")
    image.add(gpa, source)
    return gpa, size


def _boot_params(header: SetupHeader, ram: int, command_line: int, initrd_at: int, initrd_size: int) -> bytes:
    page = bytearray(4096)
    page[_HEADER : _HEADER + len(header.bytes)] = header.bytes
    # screen_info: 80x25 text, cursor at the top
    page[0x06], page[0x07] = 3, 80  # orig_video_mode, orig_video_cols
    page[0x0E], page[0x0F] = 25, 1  # orig_video_lines, orig_video_isVGA
    struct.pack_into("<H", page, 0x10, 16)  # points of a character
    struct.pack_into("<Q", page, 0x070, ACPI)  # acpi_rsdp_addr
    page[0x210] = _LOADER_UNDEFINED
    page[0x211] |= _CAN_USE_HEAP
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
