"""SMBIOS tables: by an independent reader, by dmidecode, and against QEMU's."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from emu.boot import smbios
from emu.boot.tables import SMBIOS
from emu.devices import layout
from tests.oracles.qemu_guest import QEMU, have_qemu, memory_after_boot

Structures = dict[int, list[tuple[bytes, list[bytes]]]]
SIZES = [640 << 10, 2 << 20, 1 << 30, (3 << 30) + 4096, 4 << 30, 40 << 30, 3 << 40]


def read(memory: bytes, gpa: int) -> tuple[Structures, Structures]:
    """What both entry points lead to, by type. ``memory`` begins at ``gpa``."""
    old = find(memory, b"_SM_", 31)
    new = find(memory, b"_SM3_", 24)
    second = memory[old + 16 : old + 31]
    assert second[:5] == b"_DMI_" and not sum(second) & 0xFF
    size, at, count = struct.unpack_from("<HIH", second, 6)
    first = structures(memory[at - gpa : at - gpa + size])
    assert sum(map(len, first.values())) == count
    if new < 0:
        return first, first
    size, at = struct.unpack_from("<IQ", memory, new + 12)
    return first, structures(memory[at - gpa : at - gpa + size])


def find(memory: bytes, anchor: bytes, size: int) -> int:
    for at in range(0, len(memory), 16):
        if memory[at : at + len(anchor)] == anchor and not sum(memory[at : at + size]) & 0xFF:
            return at
    return -1


def structures(block: bytes) -> Structures:
    found: Structures = {}
    while block:
        kind, size = block[:2]
        strings, end = [], size
        while block[end : end + 2] != b"\0\0" or not strings and block[end]:
            text = block[end : block.index(b"\0", end)]
            strings.append(text)
            end += len(text) + 1
            if block[end] == 0:
                end -= 1
                break
        found.setdefault(kind, []).append((block[:size], strings))
        block = block[end + 2 :]
    return found


def memory_bytes(found: Structures) -> int:
    """What type 17 says."""
    ((formatted, _),) = found[17]
    (size,) = struct.unpack_from("<H", formatted, 0x0C)
    if size == 0x7FFF:
        return int(struct.unpack_from("<I", formatted, 0x1C)[0]) << 20
    return (size & 0x7FFF) << 10 if size & 0x8000 else size << 20


@pytest.mark.parametrize("ram", SIZES)
@pytest.mark.parametrize("cpus", [1, 16])
def test_both_entry_points_and_sizes(ram: int, cpus: int) -> None:
    block = smbios.tables(SMBIOS, ram, cpus)
    old, new = read(block, SMBIOS)
    assert old == new
    assert sorted(old) == [0, 1, 3, 4, 16, 17, 19, 32, 127]
    assert len(old[4]) == cpus
    assert memory_bytes(old) == ram & -(1 << 20 if ram > 1 << 30 else 1 << 10)
    for structure, part in zip(old[19], layout.ram_ranges(ram), strict=True):
        start, end, array, _, start64, end64 = struct.unpack("<IIHBQQ", structure[0][4:])
        assert array == smbios.MEMORY_ARRAY
        if start == 0xFFFF_FFFF:
            assert (start64, end64) == (part.start, part.stop - 1)
        else:
            assert (start << 10, (end + 1) << 10) == (part.start, part.stop)
    handles = [structure[0][2:4] for kind in old.values() for structure in kind]
    assert len(set(handles)) == len(handles)


@pytest.mark.skipif(shutil.which("dmidecode") is None, reason="dmidecode is not installed")
@pytest.mark.parametrize("ram", [2 << 20, 5 << 30])
def test_dmidecode_understands_them(tmp_path: Path, ram: int) -> None:
    block = smbios.tables(SMBIOS, ram, 2)
    dump = bytearray(block[32:64].ljust(32, b"\0") + block[64:])  # its format: the entry point, the structures at 32
    struct.pack_into("<Q", dump, 16, 32)
    dump[5] = 0
    dump[5] = -sum(dump[:24]) & 0xFF
    path = tmp_path / "dump"
    path.write_bytes(dump)
    done = subprocess.run(["dmidecode", "--from-dump", path], capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr
    assert "SMBIOS 3.0" in text and "Manufacturer: emu" in text and "End Of Table" in text
    assert text.count("Processor Information") == 2
    assert ("Size: 2 MB" if ram == 2 << 20 else "Size: 5 GB") in text
    assert not [word for word in ("OUT OF SPEC", "BAD INDEX", "TRUNCATED", "broken", "Wrong") if word in text]


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_it_says_what_qemus_says() -> None:
    there, _ = read(memory_after_boot(["-smp", "2,sockets=2,cores=1,threads=1"])[: 1 << 20], 0)
    here, _ = read(smbios.tables(SMBIOS, 16 << 20, 2), SMBIOS)
    assert sorted(here) == sorted(there)
    assert memory_bytes(here) == memory_bytes(there) == 16 << 20
    for kind in here:
        assert len(here[kind]) == len(there[kind]), kind
        ours, theirs = here[kind][0][0], there[kind][0][0]
        assert len(ours) == len(theirs), kind
    assert here[19][0][0][4:12] == there[19][0][0][4:12]
    assert here[4][1][0][5] == there[4][1][0][5] == 3, "a central processor"
