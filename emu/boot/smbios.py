"""The SMBIOS tables, which tell people what machine this is. Source: DMTF DSP0134 2.8 and 3.0.

Two entry points, each on a 16-byte boundary within 0xF0000 to 0xFFFFF, lead to one block of structures:

    0   BIOS       1    system        3   chassis         4  processor, one each    16  memory array
    17  memory     19   memory range  32  boot status   127  end

A structure is a formatted part (type, length, handle, fields) and strings behind it, which fields name by number. All
is as QEMU has it for its ``pc`` machine, but for names and for types that only repeat these.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from emu.devices import layout

ALIGNMENT = 16  # bytes
ENTRY_21 = "<4sBBBBHB5x5sBHIHB"  # anchor, checksum, length, version, longest structure; second anchor, checksum, …
ENTRY_30 = "<5sBBBBBBxIQ"  # anchor, checksum, length, version, revisions, bytes of the structures, gpa
SECOND_ANCHOR = 0x10  # offset in ENTRY_21
VERSION = (2, 8)
STRUCTURES = 64  # offset of the structures: behind both entry points

MANUFACTURER, PRODUCT = "emu", "PC"
NO_HANDLE = 0xFFFF
NO_ERROR_HANDLE = 0xFFFE
MEMORY_ARRAY, MEMORY_DEVICE, PROCESSOR = 0x1000, 0x1100, 0x0400  # handles; of the first one
BIOS_FEATURES = 1 << 4 | 1 << 7 | 1 << 19 | 1 << 28 | 1 << 29  # ISA, PCI, INT 13h extensions; INT 9h, 14h
HAS_ACPI, VIRTUAL_MACHINE = 0x01, 0x14  # of its extension bytes; with the latter: UEFI's "targeted content"
KIB_UNIT = 0x8000  # a size is in KiB, not MiB
SIZE_ELSEWHERE, LARGEST_KIB = 0x7FFF, 0x8000_0000  # a size is in the extended field


def tables(gpa: int, ram: int, cpus: int) -> bytes:
    """Both entry points and the structures, made to lie at ``gpa``, a multiple of 16 below 1 MiB.

    Args:
        ram: bytes of guest memory.
        cpus: number of processors.
    """
    structures = list(_structures(ram, cpus))
    block = b"".join(structures)
    longest = max(map(len, structures))
    at = gpa + STRUCTURES
    new = _summed(struct.pack(ENTRY_30, b"_SM3_", 0, struct.calcsize(ENTRY_30), 3, 0, 0, 1, len(block), at), 5)
    fields = (0, struct.calcsize(ENTRY_21), *VERSION, longest, 0, b"_DMI_", 0, len(block), at, len(structures), 0x28)
    old = struct.pack(ENTRY_21, b"_SM_", *fields)
    old = _summed(old[:SECOND_ANCHOR] + _summed(old[SECOND_ANCHOR:], 5), 4)
    return old.ljust(STRUCTURES // 2, b"\0") + new.ljust(STRUCTURES // 2, b"\0") + block


def _summed(data: bytes, offset: int) -> bytes:
    """``data`` with the byte at ``offset``, 0 till now, such that the sum of all is 0."""
    return data[:offset] + bytes((-sum(data) & 0xFF,)) + data[offset + 1 :]


def _structure(kind: int, handle: int, formatted: bytes = b"", *strings: str) -> bytes:
    text = b"".join(string.encode("ascii") + b"\0" for string in strings)
    return struct.pack("<BBH", kind, 4 + len(formatted), handle) + formatted + (text or b"\0") + b"\0"


def _structures(ram: int, cpus: int) -> Iterator[bytes]:
    """Section 7 of the specification, by type."""
    extensions = HAS_ACPI, VIRTUAL_MACHINE
    yield _structure(
        0, 0, struct.pack("<BBHBBQ6B", 1, 2, layout.BIOS_AREA >> 4, 3, 0, BIOS_FEATURES, *extensions, 0, 0, 0xFF, 0xFF),
        MANUFACTURER, "firmware/bios", "01/01/2026",
    )  # fmt: skip
    # manufacturer, product, version, serial number, no UUID, woken by its power switch, SKU, family
    yield _structure(1, 0x100, struct.pack("<4B16xBBB", 1, 2, 0, 0, 6, 0, 0), MANUFACTURER, PRODUCT)
    # manufacturer, type: other, 3 strings, states: safe, security: none, no OEM data, height, cords, elements; SKU
    yield _structure(3, 0x300, struct.pack("<9BI4BB", 1, 1, 0, 0, 0, 3, 3, 3, 2, 0, 0, 0, 0, 0, 0), MANUFACTURER)
    for number in range(cpus):
        yield _structure(4, PROCESSOR + number, _processor(), f"CPU {number}", MANUFACTURER)
    kib = ram >> 10
    capacity = (kib, 0) if kib < LARGEST_KIB else (LARGEST_KIB, ram)
    # other place, system memory, no error correction; no error; one device
    yield _structure(
        16, MEMORY_ARRAY, struct.pack("<BBBIHHQ", 1, 3, 3, capacity[0], NO_ERROR_HANDLE, 1, capacity[1])
    )
    yield _structure(17, MEMORY_DEVICE, _memory_device(ram), "DIMM 0", MANUFACTURER)
    for number, part in enumerate(layout.ram_ranges(ram)):
        ends = (part.start >> 10, (part.stop >> 10) - 1, 0, 0)
        if part.stop > layout.HIGH_RAM:
            ends = (0xFFFF_FFFF, 0xFFFF_FFFF, part.start, part.stop - 1)
        yield _structure(19, 0x1300 + number, struct.pack("<IIHBQQ", *ends[:2], MEMORY_ARRAY, 1, *ends[2:]))
    yield _structure(32, 0x2000, struct.pack("<6xB", 0))  # no error
    yield _structure(127, 0x7F00)


def _processor() -> bytes:
    """7.5: a central processor in a socket of its own; CPUID tells the rest."""
    # socket, central, family: other, manufacturer, CPUID, version; voltage, clock, speeds in MHz: unknown;
    # populated and enabled, upgrade: other; caches, serial number, asset tag, part; cores, enabled, threads; unknown
    return struct.pack(
        "<BBBBQBBHHHBB3H6BHH",
        1, 3, 1, 2, 0, 0, 0, 0, 0, 0, 0x41, 1, NO_HANDLE, NO_HANDLE, NO_HANDLE, 0, 0, 0, 1, 1, 1, 2, 1,
    )  # fmt: skip


def _memory_device(ram: int) -> bytes:
    """7.18: all of the memory, in one place."""
    kib, mib = ram >> 10, ram >> 20
    size, extended = (mib, 0) if mib < SIZE_ELSEWHERE else (SIZE_ELSEWHERE, mib)
    if ram % (1 << 20) and kib < KIB_UNIT:
        size = KIB_UNIT | kib
    # array, no error, widths unknown, size; DIMM, no set, locator, bank, RAM, other detail, speed; manufacturer, serial
    # number, asset tag, part; attributes, extended size, configured speed, voltages
    return struct.pack(
        "<HHHHHBBBBBHH5BIH3H",
        MEMORY_ARRAY, NO_ERROR_HANDLE, 0xFFFF, 0xFFFF, size, 9, 0, 1, 0, 7, 2, 0, 2, 0, 0, 0, 0, extended, 0, 0, 0, 0,
    )  # fmt: skip
