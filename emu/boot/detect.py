"""What a guest is: a name from ``firmware/``, or a file whose kind is read from its first bytes."""

from __future__ import annotations

import difflib
import struct
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path

from emu.boot.guest import Guest
from emu.boot.image import FileSource
from emu.errors import BadInput

MULTIBOOT_MAGIC = 0x1BADB002  # Multiboot Specification 0.6.96, 3.1.1: dword-aligned in the first 8192 bytes
MULTIBOOT_SEARCH = 8192
MULTIBOOT2_MAGIC = 0xE85250D6  # Multiboot2 Specification 2.0, 3.1.1: qword-aligned in the first 32768 bytes
MULTIBOOT2_SEARCH = 32768
ELF_MAGIC = b"\x7fELF"
ELF_HEADER_SIZE = 52  # bytes; the header of a 32-bit file, the shorter one
EM_386, EM_X86_64 = 3, 62  # e_machine
ARM64_MAGIC, ARM64_MAGIC_AT = b"ARM\x64", 0x38  # Linux, Documentation/arm64/booting.rst
LINUX_MAGIC = b"HdrS"  # Linux, Documentation/arch/x86/boot.rst: "header" at 0x202
LINUX_MAGIC_AT = 0x202
SECTOR_SIZE = 512  # bytes of a boot sector
BOOT_SIGNATURE = b"\x55\xaa"  # the last two of them
HEAD_SIZE = MULTIBOOT2_SEARCH  # bytes of a file that tell its kind


class Kind(Enum):
    """How a guest is started."""

    FIRMWARE = "firmware"  # a name from firmware/
    SOURCE = "assembler source"
    FLAT = "flat binary"
    BOOT_SECTOR = "boot sector"
    MULTIBOOT = "multiboot kernel"
    MULTIBOOT2 = "multiboot 2 kernel"
    LINUX = "Linux bzImage"
    DISK = "disk image"


DISK_KINDS = (Kind.BOOT_SECTOR, Kind.DISK)  # what a BIOS boots


@dataclass(frozen=True)
class Found:
    """A guest whose kind is known.

    Attributes:
        name: for people.
        kind: how it is started.
        path: its file.
        ram: bytes of RAM that it runs well with; None when nothing is known about that.
    """

    name: str
    kind: Kind
    path: Path
    ram: int | None = None


def detect(guest: str | Path, load: int | None = None) -> Found:
    """Find out what ``guest`` is.

    A name from ``firmware/`` goes before a file of the same name; write ``./hello`` for the file.

    Args:
        load: where a flat binary shall lie; with it, any file is one.

    Raises:
        BadInput: there is no such guest, the file cannot be read, or it is of no kind that emu knows.
    """
    from emu.boot import firmware

    text = str(guest)
    known = firmware.guests().get(text) if isinstance(guest, str) else None
    if known is not None:
        return Found(text, Kind.FIRMWARE, known.source, known.ram_bytes)
    path = Path(guest)
    head = _read_head(text, path)
    if path.suffix == ".s":
        return Found(path.stem, Kind.SOURCE, path)
    kind = Kind.FLAT if load is not None else _kind_of(text, path, head)
    return Found(path.name, kind, path)


def make_guest(
    found: Found, ram: int, *, append: str = "", load: int | None = None, initrd: str | None = None, cpus: int = 1
) -> Guest:
    """The guest, ready for :meth:`emu.machine.vm.VirtualMachine.boot`.

    Args:
        found: by :func:`detect`.
        ram: bytes of guest memory.
        append: its command line.
        load: gpa of a flat binary.
        initrd: file with a Linux kernel's initial RAM disk; or a multiboot kernel's modules, "FILE arguments,FILE".
        cpus: number of processors, which tables in the BIOS area tell of. Only Linux has them with one, too.

    Raises:
        BadInput: the guest does not assemble, does not fit, or is of a kind without support.
    """
    # each kind imports what it needs, so that no guest waits for the loaders of the others
    if initrd is not None and found.kind not in (Kind.LINUX, Kind.MULTIBOOT, Kind.MULTIBOOT2):
        raise BadInput("--initrd", f"{found.name} takes none: it is no Linux or multiboot kernel")
    if load is not None and found.kind not in (Kind.FLAT, Kind.SOURCE):
        raise BadInput("--load", f"{found.name} is not a flat binary: it has an address of its own")
    if found.kind == Kind.LINUX:
        from emu.boot.linux import linux_guest

        return linux_guest(found.path, ram, append, Path(initrd) if initrd is not None else None, cpus)
    if found.kind in DISK_KINDS:
        from emu.boot.bios import bios_guest

        return bios_guest(found.name, ram, cpus)
    if found.kind in (Kind.MULTIBOOT, Kind.MULTIBOOT2):
        guest = _multiboot_guest(found, ram, append, initrd)
    else:
        guest = _flat_guest(found, ram, append, load)
    if cpus > 1:
        from emu.boot.tables import place_tables

        place_tables(guest.image, cpus)
    return guest


def _flat_guest(found: Found, ram: int, append: str, load: int | None) -> Guest:
    from emu.boot.flat import LOAD_ADDRESS, flat_guest

    address = LOAD_ADDRESS if load is None else load
    if found.kind == Kind.FLAT:
        source = FileSource(found.path, 0, found.path.stat().st_size)
        return flat_guest(found.name, source, ram, append, address)
    if found.kind == Kind.FIRMWARE:
        from emu.boot import firmware

        address = firmware.guests()[found.name].load
    return flat_guest(found.name, _assemble(found.path, address), ram, append, address)


def _multiboot_guest(found: Found, ram: int, append: str, initrd: str | None) -> Guest:
    from emu.boot.loader import split_modules
    from emu.boot.multiboot import multiboot_guest
    from emu.boot.multiboot2 import multiboot2_guest

    modules = split_modules(initrd) if initrd is not None else []
    make = multiboot_guest if found.kind == Kind.MULTIBOOT else multiboot2_guest
    return make(found.path, ram, append, modules)


def _read_head(text: str, path: Path) -> bytes:
    try:
        if path.is_dir():
            raise BadInput(text, "this is a directory, not a guest")
        if path.exists() and not path.is_file():
            raise BadInput(text, "this is no regular file")
        with path.open("rb") as file:
            head = file.read(HEAD_SIZE)
    except FileNotFoundError:
        raise BadInput(text, _not_found(text)) from None
    except (OSError, ValueError) as error:
        raise BadInput(text, f"cannot be read: {_reason(error)}") from None
    if not head:
        raise BadInput(text, "the file is empty")
    return head


def _not_found(text: str) -> str:
    from emu.boot import firmware

    reason = "there is neither a guest of this name nor such a file"
    close = difflib.get_close_matches(text, firmware.guests(), 1)
    return f"{reason}; did you mean {close[0]}?" if close else f"{reason}; `emu guests` lists the names"


def _kind_of(text: str, path: Path, head: bytes) -> Kind:
    size = path.stat().st_size
    if head[LINUX_MAGIC_AT : LINUX_MAGIC_AT + len(LINUX_MAGIC)] == LINUX_MAGIC and is_boot_sector(head):
        return Kind.LINUX
    if _has_multiboot_header(head):
        return Kind.MULTIBOOT
    if _has_multiboot2_header(head):
        return Kind.MULTIBOOT2
    if head[ARM64_MAGIC_AT : ARM64_MAGIC_AT + 4] == ARM64_MAGIC:
        raise BadInput(text, "this is a Linux kernel for another architecture (ARM64)")
    if head.startswith(ELF_MAGIC):
        if len(head) < ELF_HEADER_SIZE:
            raise BadInput(text, f"the ELF file is truncated: {len(head)} bytes do not hold its header")
        machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
        if machine not in (0, EM_386, EM_X86_64):
            raise BadInput(text, f"this is an ELF file for another architecture (machine {machine})")
        raise BadInput(text, "this ELF file has no multiboot header, so emu does not know how to enter it")
    if is_boot_sector(head):
        return Kind.BOOT_SECTOR if size == SECTOR_SIZE else Kind.DISK
    if path.suffix == ".bin":
        return Kind.FLAT
    raise BadInput(text, "this is no guest that emu knows; --load ADDRESS runs any file as a flat binary")


def is_boot_sector(head: bytes) -> bool:
    """Whether a file that begins with ``head`` begins with a boot sector."""
    return head[SECTOR_SIZE - 2 : SECTOR_SIZE] == BOOT_SIGNATURE


def _has_multiboot_header(head: bytes) -> bool:
    words = struct.unpack_from(f"<{min(len(head), MULTIBOOT_SEARCH) // 4}I", head)
    triples = zip(words, words[1:], words[2:], strict=False)
    return any(magic == MULTIBOOT_MAGIC and sum(rest) + magic & 0xFFFF_FFFF == 0 for magic, *rest in triples)


def _has_multiboot2_header(head: bytes) -> bool:
    for at in range(0, min(len(head), MULTIBOOT2_SEARCH) - 15, 8):
        fields = struct.unpack_from("<4I", head, at)
        if fields[0] == MULTIBOOT2_MAGIC and sum(fields) & 0xFFFF_FFFF == 0:
            return True
    return False


def _assemble(path: Path, load: int) -> bytes:
    from emu.boot import firmware

    own = path.is_relative_to(firmware.firmware_directory())  # these do not change while emu runs
    return _assembled_once(path, load) if own else _assembled(path, load)


@lru_cache
def _assembled_once(path: Path, load: int) -> bytes:
    return _assembled(path, load)


def _assembled(path: Path, load: int) -> bytes:
    from emu.asm.assembler import AssemblyError, assemble_image
    from emu.boot import firmware

    try:
        return assemble_image(path, load=load, include_directories=[firmware.firmware_directory() / "include"]).data
    except AssemblyError as error:
        raise BadInput(f"{error.file}:{error.line}", f"{error.reason}: {error.text.strip()}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
