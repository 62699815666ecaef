"""The built-in BIOS: INT 13h."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.boot.bios import bios_guest
from emu.debug.look import read
from emu.testing import boot
from tests.boot.bios_disks import (
    BUFFER,
    DISK_SIZE,
    RAM,
    SECTOR,
    Call,
    Dump,
    Result,
    call,
    probe,
    probe_disk,
    results,
    run,
    sector_disk,
    sparse,
    start,
)


def numbered(size: int = DISK_SIZE) -> bytes:
    """A disk on which every sector holds its own number."""
    return b"".join(number.to_bytes(4, "little") * (SECTOR // 4) for number in range(size // SECTOR))


def test_a_read_over_the_end_brings_what_is_there(tmp_path: Path) -> None:
    """Loaders ask for more than their image has; a drive gives all that there is, and then an error."""
    steps = [call(0x13, eax=0x0204, ebx=BUFFER, ecx=4, edx=0x81), Dump(BUFFER, 3 * SECTOR),
             call(0x13, eax=0x0201, ebx=BUFFER, ecx=6, edx=0x81)]  # fmt: skip
    partly, data, beyond = probe(tmp_path, *steps, more=(numbered(5 * SECTOR),))
    assert isinstance(partly, Result) and isinstance(beyond, Result) and isinstance(data, bytes)
    assert partly.carry and (partly.ah, partly.al) == (0x0C, 2)
    assert data[: 2 * SECTOR] == numbered(5 * SECTOR)[3 * SECTOR :]
    assert data[2 * SECTOR :] == bytes(SECTOR)
    assert beyond.carry and beyond.ah == 0x01


def test_sectors_by_cylinder_head_and_sector(tmp_path: Path) -> None:
    """An 8 MiB disk has 16 cylinders, 16 heads and 63 sectors."""
    places = [(0, 0, 1), (0, 0, 63), (0, 1, 1), (1, 0, 1), (3, 7, 20), (15, 15, 63)]
    steps: list[Call | Dump] = []
    for cylinder, head, sector in places:
        steps.append(call(0x13, eax=0x0201, ebx=BUFFER, ecx=cylinder << 8 | sector, edx=head << 8 | 0x81))
        steps.append(Dump(BUFFER, 4))
    found = probe(tmp_path, *steps, more=(numbered(),))
    for place, status, data in zip(places, found[::2], found[1::2], strict=True):
        assert isinstance(status, Result)
        assert not status.carry and status.ax == 1, place
        cylinder, head, sector = place
        assert data == ((cylinder * 16 + head) * 63 + sector - 1).to_bytes(4, "little")


def test_many_sectors_across_a_segment_boundary(tmp_path: Path) -> None:
    """ES:BX = 1000:F000, 127 sectors: the offset would leave the segment."""
    guest = run(
        tmp_path,
        """
.code16
    mov ax, 0x1000
    mov es, ax
    mov bx, 0xF000
    mov ax, 0x027F
    mov cx, 0x0001
    mov dx, 0x0080
    int 0x13
    jc failed
    cmp ax, 0x007F
    jne failed
    mov ax, es
    cmp ax, 0x1000
    jne failed
    mov al, 0
    out 0xF4, al
failed:
    mov al, 1
    out 0xF4, al
""",
    )
    disk = (tmp_path / "disk0").read_bytes()
    assert read(guest.vm, 0x1F000, 127 * SECTOR) == disk[: 127 * SECTOR]


PACKET = 0x6000


def packet_sector(*packets: bytes) -> bytes:
    """A sector with packets, 16 bytes apart."""
    data = bytearray(SECTOR)
    for number, packet in enumerate(packets):
        data[16 * number : 16 * number + len(packet)] = packet
    return bytes(data)


def packet(count: int, offset: int, lba: int, segment: int = 0) -> bytes:
    return struct.pack("<BBHHHQ", 16, 0, count, offset, segment, lba)


def with_packets(steps: list[Call | Dump], *packets: bytes) -> bytes:
    """A probe disk, and in the last sector of its first cylinder packets, which the first step loads to PACKET."""
    disk = bytearray(probe_disk([call(0x13, eax=0x0201, ebx=PACKET, ecx=0x003F, edx=0x0F80), *steps]))
    at = (16 * 63 - 1) * SECTOR
    disk[at : at + SECTOR] = packet_sector(*packets)
    return bytes(disk)


def run_packets(tmp_path: Path, disk: bytes, *more: bytes) -> list[Result | bytes]:
    guest = start(tmp_path, disk, *more)
    guest.expect_status(1, max_time="60s")
    first, *found = results(guest.console)
    assert isinstance(first, Result) and not first.carry
    return found


def test_sectors_by_number(tmp_path: Path) -> None:
    steps: list[Call | Dump] = [
        call(0x13, eax=0x4100, ebx=0x55AA, edx=0x81),
        call(0x13, eax=0x4200, edx=0x81, esi=PACKET),
        Dump(0, 8, 0x1000 + 299 * 32),
        call(0x13, eax=0x4200, edx=0x81, esi=PACKET + 16),
        Dump(PACKET + 16, 16),
    ]
    end = DISK_SIZE // SECTOR
    disk = with_packets(steps, packet(300, 0, 1000, 0x1000), packet(2, BUFFER, end - 1))
    check, good, data, bad, bad_packet = run_packets(tmp_path, disk, numbered())
    assert isinstance(check, Result) and isinstance(good, Result) and isinstance(bad, Result)
    assert not check.carry and check.bx == 0xAA55 and check.ah == 0x30 and check.cx & 1
    assert not good.carry and good.ah == 0
    assert data == (1299).to_bytes(4, "little") * 2
    assert bad.carry and bad.ah
    assert bad_packet[2:4] == b"\1\0"  # the last sector was moved


def test_writing_and_verifying(tmp_path: Path) -> None:
    """Neither touches the image's file: a machine writes into an overlay."""
    steps: list[Call | Dump] = [
        call(0x13, eax=0x0302, ebx=PACKET, ecx=0x0003, edx=0x0081),  # sectors 2 and 3
        call(0x13, eax=0x0402, ebx=0, ecx=0x0003, edx=0x0081),
        call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0003, edx=0x0081),
        Dump(BUFFER, 16),
        call(0x13, eax=0x4300, edx=0x81, esi=PACKET),
        call(0x13, eax=0x4400, edx=0x81, esi=PACKET),
        call(0x13, eax=0x4200, edx=0x81, esi=PACKET + 16),
        Dump(BUFFER, 16),
    ]
    first, second = packet(1, PACKET, 5000), packet(1, BUFFER, 5000)
    found = run_packets(tmp_path, with_packets(steps, first, second), numbered())
    for status in found:
        assert isinstance(status, bytes) or not status.carry
    assert found[3] == found[7] == first
    assert (tmp_path / "disk1").read_bytes() == numbered()


def test_bad_requests(tmp_path: Path) -> None:
    bad = [
        {"eax": 0x0200, "ecx": 1},  # no sectors
        {"eax": 0x0281, "ecx": 1},  # too many
        {"eax": 0x0201, "ecx": 0},  # sector 0
        {"eax": 0x0201, "ecx": 0x1001},  # no such cylinder
        {"eax": 0x0201, "ecx": 1, "edx": 0x1080},  # head
        {"eax": 0x0201, "ecx": 1, "edx": 0x81},  # drive
        {"eax": 0x0201, "ecx": 1, "edx": 0x00},  # diskette
        {"eax": 0xEE00},  # service
    ]
    steps: list[Call] = []
    for registers in bad:
        steps.append(call(0x13, **({"ebx": BUFFER, "edx": 0x80} | registers)))
        steps.append(call(0x13, eax=0x0100, edx=0x80))  # the status of the last one
    found = [r for r in probe(tmp_path, *steps) if isinstance(r, Result)]
    assert [(r.carry, r.ah) for r in found] == [(True, 0x01)] * len(found)


def test_parameters_of_a_small_disk(tmp_path: Path) -> None:
    shown, kind, none, nothing = probe(
        tmp_path,
        call(0x13, eax=0x0800, edx=0x80),
        call(0x13, eax=0x1500, edx=0x80),
        call(0x13, eax=0x0800, edx=0x81),
        call(0x13, eax=0x1500, edx=0x81),
    )
    assert isinstance(shown, Result) and isinstance(kind, Result)
    assert (shown.carry, shown.ah, shown.cx, shown.dx) == (False, 0, 14 << 8 | 63, 15 << 8 | 1)
    assert (kind.carry, kind.ah, kind.cx << 16 | kind.dx) == (False, 3, 15 * 16 * 63)
    for missing in (none, nothing):
        assert isinstance(missing, Result)
        assert missing.carry and missing.ah == 1


@pytest.mark.parametrize(
    ("size", "cylinders", "heads"),
    [(504 << 20, 1024, 16), (600 << 20, 609, 32), (2 << 30, 520, 128), (7 << 30, 913, 255), (200 << 30, 1024, 255)],
)
def test_geometry_of_large_disks(tmp_path: Path, size: int, cylinders: int, heads: int) -> None:
    """INT 13h has no more than 1024 cylinders: BIOSes pretend to more heads."""
    disk = probe_disk(
        [
            call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x003F, edx=0x80),  # how much room there is for the result: 26 bytes
            call(0x13, eax=0x0800, edx=0x80),
            call(0x13, eax=0x4800, edx=0x80, esi=BUFFER),
            Dump(BUFFER, 26),
        ]
    )
    path = sparse(tmp_path / "big", size, {0: disk[: 62 * SECTOR] + struct.pack("<H", 26)})
    guest = boot(bios_guest("disk", RAM), ram=RAM, disks=[path])
    guest.expect_status(1, max_time="10s")
    _, shown, status, data = results(guest.console)
    assert isinstance(shown, Result) and isinstance(status, Result) and isinstance(data, bytes)
    last = cylinders - 2
    assert shown.cx == (last & 0xFF) << 8 | last >> 8 << 6 | 63
    assert shown.dx >> 8 == heads - 1
    assert not status.carry
    room, flags, *_, sectors, sector_size = struct.unpack("<HHIIIQH", data)
    assert (room, sectors, sector_size) == (26, size // SECTOR, SECTOR)
    assert bool(flags & 2) == (size // SECTOR <= 16383 * 16 * 63)


@pytest.mark.parametrize("lba", [(1 << 28) - 1, (1 << 28) - 64, 1 << 28, (1 << 28) + 12345])
def test_sectors_beyond_28_bits(tmp_path: Path, lba: int) -> None:
    code = f"""
.code16
    mov si, offset packet
    mov ah, 0x42
    mov dl, 0x80
    int 0x13
    jc failed
    mov si, {BUFFER:#x}
    mov cx, 4
show:
    lodsb
    out 0xE9, al
    loop show
    mov al, 0
    out 0xF4, al
failed:
    mov al, ah
    out 0xF4, al
.balign 4
packet:
    .word 16, 3, {BUFFER:#x}, 0
    .quad {lba}
"""
    path = sparse(tmp_path / "huge", 200 << 30, {0: sector_disk(code, SECTOR), lba: b"here"})
    guest = boot(bios_guest("disk", RAM), ram=RAM, disks=[path])
    guest.expect_status(1, max_time="1s")
    assert guest.console == "here"
