"""The setup header of a Linux bzImage or zImage, and of whatever else pretends to be one.
Source: Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import struct
from pathlib import Path

from emu.boot.image import FileSource, GuestImage, open_source
from emu.errors import BadInput

KERNEL = 0x10_0000  # gpa of the protected-mode part

HEADER_AT = 0x1F1  # in file and zero page alike
CAN_USE_HEAP = 0x80  # loadflags
LOADER_UNDEFINED = 0xFF  # type_of_loader
_LOADED_HIGH = 1  # loadflags
_XLF_KERNEL_64 = 1  # xloadflags: has the 64-bit entry point, 0x200 behind the 32-bit one
_SECTOR = 512
_MIN_VERSION = 0x200  # of those that have a setup header at all
_VERSION_DIRECT = 0x20C  # xloadflags, and all that entry points in protected mode need


class SetupHeader:
    """The setup header of a kernel file.

    Args:
        name: of the file, for errors.
        head: the file's beginning, at least its first KiB.

    Raises:
        BadInput: it is truncated, or older than protocol 2.00.
    """

    def __init__(self, name: str, head: bytes) -> None:
        if len(head) < 0x268:
            raise BadInput(name, f"the kernel is truncated: {len(head)} bytes do not hold its header")
        if head[0x202:0x206] != b"HdrS":
            raise BadInput(name, "this is no Linux kernel: no HdrS at 0x202")
        self.setup_sectors = head[0x1F1] or 4
        (self.paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
        (self.version,) = struct.unpack_from("<H", head, 0x206)
        self.loadflags = head[0x211]
        if self.version < _MIN_VERSION:
            version = f"{self.version >> 8}.{self.version & 0xFF:02}"
            raise BadInput(name, f"boot protocol {version}: a kernel with protocol 2.00 or newer is needed")
        self.loaded_high = bool(self.loadflags & _LOADED_HIGH)
        if self.version < 0x204:
            self.paragraphs &= 0xFFFF
        (self.initrd_max,) = struct.unpack_from("<I", head, 0x22C)
        if self.version < 0x203:
            self.initrd_max = 0x37FF_FFFF
        self.xloadflags = struct.unpack_from("<H", head, 0x236)[0] if self.version >= _VERSION_DIRECT else 0
        self.command_line_max = struct.unpack_from("<I", head, 0x238)[0] if self.version >= 0x206 else 255
        self.preferred, self.init_size = KERNEL, 0
        if self.version >= 0x20A:
            self.preferred, self.init_size = struct.unpack_from("<QI", head, 0x258)
        self.bytes = head[HEADER_AT : 0x202 + head[0x201]]

    @property
    def setup_size(self) -> int:
        """Bytes of the real-mode part, with the boot sector."""
        return (self.setup_sectors + 1) * _SECTOR

    @property
    def in_real_mode(self) -> bool:
        """Whether the image is entered as boot loaders did it: at its setup, in real mode, with a BIOS to ask.

        Newer kernels have entry points in protected mode, which need nothing of that. Old ones have them as well, but
        loaders and tools that only look like a kernel (ipxe, memdisk) do not.
        """
        return self.version < _VERSION_DIRECT or not self.loaded_high

    @property
    def in_long_mode(self) -> bool:
        """Whether there is an entry point for 64-bit mode."""
        return bool(self.xloadflags & _XLF_KERNEL_64)


def place_initrd(image: GuestImage, initrd: Path, highest: int, kernel_end: int, low_end: int) -> tuple[int, int]:
    """Put the RAM disk as high as the kernel allows; returns where it lies and its size.

    Args:
        highest: the last gpa that it may occupy.
        kernel_end, low_end: gpas of the first and behind the last byte of free RAM.

    Raises:
        BadInput: it cannot be read, or does not fit.
    """
    source = open_source(initrd)
    size = len(source)
    if size == 0:
        raise BadInput(str(initrd), "the initrd is empty")
    gpa = (min(low_end, highest + 1) - size) & ~0xFFF
    if gpa < kernel_end:
        room = max(min(low_end, highest + 1) - kernel_end, 0)
        raise BadInput(str(initrd), f"the initrd of {size} bytes does not fit: {room} bytes of RAM are left for it")
    image.add(gpa, source)
    return gpa, size


def place_kernel(image: GuestImage, path: Path, header: SetupHeader, gpa: int) -> int:
    """Put the protected-mode part at ``gpa``; returns its size in bytes.

    Raises:
        BadInput: it is truncated.
    """
    source = open_source(path)
    size = len(source) - header.setup_size
    if size <= (header.paragraphs - 1) * 16 or size <= 0:  # the last paragraph may be cut short
        wanted = header.setup_size + header.paragraphs * 16
        raise BadInput(str(path), f"the kernel is truncated: {len(source)} of {wanted} bytes")
    image.add(gpa, FileSource(path, header.setup_size, size))
    return size
