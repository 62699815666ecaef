"""The guest that a name or file is (:mod:`emu.boot.detect`), made by the loader of its kind."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from emu.boot.detect import Found
from emu.boot.entry import at_reset_vector
from emu.boot.guest import Guest
from emu.boot.image import FileSource
from emu.boot.kinds import DISK_KINDS, Kind
from emu.devices import layout
from emu.errors import BadInput


def make_guest(
    found: Found, ram: int, *, append: str = "", load: int | None = None, initrd: str | None = None, cpus: int = 1
) -> Guest:
    """The guest, ready for :meth:`emu.machine.vm.VirtualMachine.boot`.

    Args:
        found: by :func:`emu.boot.detect.detect`.
        ram: bytes of guest memory.
        append: its command line.
        load: gpa of a flat binary.
        initrd: file with a Linux kernel's initial RAM disk; or a multiboot kernel's modules, "FILE arguments,FILE".
        cpus: number of processors, for the tables in the BIOS area.

    Raises:
        BadInput: the guest does not assemble, does not fit, or is of a kind without support.
    """
    # each kind imports what it needs, so that no guest waits for the loaders of the others
    if initrd is not None and found.kind not in (Kind.LINUX, Kind.MULTIBOOT, Kind.MULTIBOOT2, Kind.ELF):
        raise BadInput("--initrd", f"{found.name} takes none: it is no kernel")
    if load is not None and found.kind not in (Kind.FLAT, Kind.SOURCE):
        raise BadInput("--load", f"{found.name} is not a flat binary: it has an address of its own")
    if found.kind == Kind.LINUX:
        from emu.boot.linux import linux_guest

        guest = linux_guest(found.path, ram, append, Path(initrd) if initrd is not None else None)
    elif found.kind in DISK_KINDS:
        from emu.boot.bios import bios_guest

        return bios_guest(found.name, ram, cpus)
    elif found.kind == Kind.ELF:
        from emu.boot.elf_kernel import elf_guest
        from emu.boot.tables import ACPI

        guest = elf_guest(found.path, ram, append, initrd, ACPI)
    elif found.kind in (Kind.MULTIBOOT, Kind.MULTIBOOT2):
        guest = _multiboot_guest(found, ram, append, initrd, cpus)
    else:
        guest = _flat_guest(found, ram, append, load)
    from emu.boot.low_memory import place_low_memory

    place_low_memory(guest.image, ram, cpus, guest.after_bios)
    return replace(guest, resume=at_reset_vector(layout.BIOS_AREA))


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


def _multiboot_guest(found: Found, ram: int, append: str, initrd: str | None, cpus: int) -> Guest:
    from emu.boot.loader import split_modules
    from emu.boot.multiboot import multiboot_guest
    from emu.boot.multiboot2 import multiboot2_guest
    from emu.boot.tables import rsdp

    modules = split_modules(initrd) if initrd is not None else []
    if found.kind == Kind.MULTIBOOT:
        return multiboot_guest(found.path, ram, append, modules)
    return multiboot2_guest(found.path, ram, append, modules, rsdp(cpus))


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
