"""The kinds of guests: how each is called, and how a file is recognised as one.

``TESTS`` is a table, in the order in which a file is tried. A test gets the file's beginning and says None when it is
of its kind, else why it is not: in a few words that go on after "no disk image: ". A further kind is a word in
``Kind``, a test here, and a loader in :mod:`emu.boot.make`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from emu.boot import multiboot_header
from emu.devices.floppy import has_floppy_size
from emu.errors import BadInput

ELF_MAGIC = b"\x7fELF"
ELF_HEADER_SIZE = 52  # bytes; the header of a 32-bit file, the shorter one
EM_386, EM_X86_64 = 3, 62  # e_machine
ARM64_MAGIC, ARM64_MAGIC_AT = b"ARM\x64", 0x38  # Linux, Documentation/arm64/booting.rst
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by first bytes
LINUX_MAGIC = b"HdrS"  # Linux, Documentation/arch/x86/boot.rst: "header" at 0x202
LINUX_MAGIC_AT = 0x202
SECTOR_SIZE = 512  # bytes of a boot sector
BOOT_SIGNATURE = b"\x55\xaa"  # the last two of them
ISO_MAGIC, ISO_AT = b"CD001", 0x8001  # ECMA-119 (ISO 9660), 8.1: volume descriptors from block 16 on
BOOT_RECORD = b"\0CD001\1EL TORITO SPECIFICATION"  # El Torito 1.0: block 17
BOOT_RECORD_AT = 0x8800
HEAD_SIZE = 0x9000  # bytes of a file that tell its kind


class Kind(Enum):
    """How a guest is started. The value is what ``--as`` calls it."""

    FIRMWARE = "firmware"  # a name from firmware/, never a file
    SOURCE = "source"
    LINUX = "linux"
    MULTIBOOT = "multiboot"
    MULTIBOOT2 = "multiboot2"
    ELF = "elf"
    CD = "cd"
    FLOPPY = "floppy"
    DISK = "disk"
    FLAT = "flat"


DESCRIPTIONS = {
    Kind.FIRMWARE: "guest of emu", Kind.SOURCE: "assembler source", Kind.LINUX: "Linux bzImage",
    Kind.MULTIBOOT: "multiboot kernel", Kind.MULTIBOOT2: "multiboot 2 kernel", Kind.ELF: "ELF kernel",
    Kind.CD: "bootable CD-ROM",
    Kind.FLOPPY: "floppy disk", Kind.DISK: "disk image", Kind.FLAT: "flat binary",
}  # fmt: skip
WORDS = {kind.value: kind for kind in Kind if kind is not Kind.FIRMWARE}  # of --as
DISK_KINDS = (Kind.CD, Kind.FLOPPY, Kind.DISK)  # what a BIOS boots


def kind_called(word: str) -> Kind:
    """The kind that ``--as`` calls so. Raises BadInput when there is none."""
    if word not in WORDS:
        raise BadInput("--as", f"{word!r} is no kind of guest; there are {', '.join(WORDS)}")
    return WORDS[word]


@dataclass(frozen=True)
class Head:
    """What is looked at of a file.

    Attributes:
        suffix: of its name, with the dot.
        size: in bytes.
        data: its first bytes, HEAD_SIZE at most.
    """

    suffix: str
    size: int
    data: bytes

    @property
    def is_elf(self) -> bool:
        """Whether it is an ELF file, whole or not."""
        return self.data.startswith(ELF_MAGIC)

    @property
    def is_bootable(self) -> bool:
        """Whether it begins with a boot sector."""
        return self.data[SECTOR_SIZE - 2 : SECTOR_SIZE] == BOOT_SIGNATURE


def _source(head: Head) -> str | None:
    return None if head.suffix == ".s" else "its name does not end in .s"


def _cd(head: Head) -> str | None:
    if head.data[ISO_AT : ISO_AT + len(ISO_MAGIC)] != ISO_MAGIC:
        return "no CD001 at 0x8001"
    record = head.data[BOOT_RECORD_AT : BOOT_RECORD_AT + len(BOOT_RECORD)]
    return None if record == BOOT_RECORD else "an ISO 9660 image without an El Torito boot record"


def _linux(head: Head) -> str | None:
    if head.data[LINUX_MAGIC_AT : LINUX_MAGIC_AT + len(LINUX_MAGIC)] != LINUX_MAGIC:
        return "no HdrS at 0x202"
    return None if head.is_bootable else "HdrS at 0x202, but no 55 AA before it"


def _multiboot(head: Head) -> str | None:
    at = multiboot_header.find_header(head.data)
    if at is None:
        return "no header in its first 8192 bytes"
    if head.is_elf:
        return None
    if not multiboot_header.has_addresses(head.data, at):
        return "it is no ELF file, and its multiboot header does not tell where to load it"
    if head.is_bootable and not multiboot_header.loads_whole_file(head.data, at, head.size):
        return "a boot sector is at its beginning"
    return None


def _multiboot2(head: Head) -> str | None:
    if multiboot_header.find_header_2(head.data) is None:
        return "no header in its first 32768 bytes"
    return "a boot sector is at its beginning" if head.is_bootable and not head.is_elf else None


def _elf(head: Head) -> str | None:
    if not head.is_elf:
        return "no ELF file"
    if len(head.data) < ELF_HEADER_SIZE:
        return "its header is truncated"
    machine = int.from_bytes(head.data[18:20], "little")
    return None if machine in (EM_386, EM_X86_64) else f"it is for machine {machine}"


def _floppy(head: Head) -> str | None:
    if not has_floppy_size(head.size):
        return f"{head.size} bytes are the size of none"
    return _disk(head)


def _disk(head: Head) -> str | None:
    if head.is_elf:
        return "it is an ELF file"
    if head.is_bootable:
        return None
    if head.size < SECTOR_SIZE:
        return f"{head.size} bytes are no sector of {SECTOR_SIZE}"
    return "no 55 AA at the end of its first sector"


def _flat(head: Head) -> str | None:
    return None if head.suffix == ".bin" and not head.is_elf else "its name does not end in .bin"


TESTS: tuple[tuple[Kind, Callable[[Head], str | None]], ...] = (
    (Kind.SOURCE, _source),
    (Kind.CD, _cd),
    (Kind.LINUX, _linux),
    (Kind.MULTIBOOT, _multiboot),
    (Kind.MULTIBOOT2, _multiboot2),
    (Kind.ELF, _elf),
    (Kind.FLOPPY, _floppy),
    (Kind.DISK, _disk),
    (Kind.FLAT, _flat),
)


def recognise(head: Head) -> tuple[Kind | None, str]:
    """The kind of a file, or None and why it is of none."""
    reasons = []
    for kind, test in TESTS:
        reason = test(head)
        if reason is None:
            return kind, ""
        reasons.append(f"no {DESCRIPTIONS[kind]}: {reason}")
    return None, _known_to_be_other(head.data) or "; ".join(reasons)


def _known_to_be_other(data: bytes) -> str | None:
    """What a file is that has no chance here, whatever it is called."""
    if data[ARM64_MAGIC_AT : ARM64_MAGIC_AT + 4] == ARM64_MAGIC:
        return "this is a Linux kernel for another architecture (ARM64)"
    for magic, name in COMPRESSED.items():
        if data.startswith(magic):
            return f"this file is compressed ({name}); decompress it first"
    if data.startswith(ELF_MAGIC):
        if len(data) < ELF_HEADER_SIZE:
            return f"the ELF file is truncated: {len(data)} bytes do not hold its header"
        machine = int.from_bytes(data[18:20], "big" if data[5] == 2 else "little")
        if machine not in (0, EM_386, EM_X86_64):
            return f"this is an ELF file for another architecture (machine {machine})"
    return None
