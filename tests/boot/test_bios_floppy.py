"""The built-in BIOS: INT 13h for floppy disks, and booting from them; and SeaBIOS with the same controller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from emu.boot.low_memory import bios_rom
from emu.debug.look import read
from emu.session import boot_vm, run_vm
from emu.testing import GuestUnderTest, boot
from tests.boot.bios_disks import (
    BUFFER,
    DISK_SIZE,
    RAM,
    SECTOR,
    Call,
    Dump,
    Result,
    call,
    probe_disk,
    probe_on_qemu,
    program_disk,
    results,
    sector_disk,
    source,
)  # fmt: skip
from tests.boot.test_rom import SEABIOS
from tests.oracles.qemu_guest import QEMU, have_qemu

KIB = 1024
TO_EXIT_PORT = ".code16\n mov al, dl\n out 0xF4, al\n"


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def numbered(data: bytes, size: int) -> bytes:
    """An image that begins with ``data``; behind it each sector holds its own number."""
    sectors = range(len(data) // SECTOR, size // SECTOR)
    return data + b"".join(number.to_bytes(4, "little") * (SECTOR // 4) for number in sectors)


def probe(tmp_path: Path, *steps: Call | Dump, size: int = 1440 * KIB, **options: object) -> list[Result | bytes]:
    guest = GuestUnderTest(boot_vm(floppy(tmp_path, steps, size), ram=RAM, **options))  # type: ignore[arg-type]
    guest.expect_status(1, max_time="60s")
    return results(guest.console)


def floppy(tmp_path: Path, steps: Sequence[Call | Dump], size: int) -> Path:
    data = probe_disk(steps, SECTOR)
    return write(tmp_path / "floppy", numbered(data + bytes(-len(data) % SECTOR), size))


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("size", [160, 360, 720, 1200, 1440, 1680, 2880])
def test_a_guest_of_a_floppy_s_size_boots_as_one(tmp_path: Path, size: int, mmu: str) -> None:
    image = write(tmp_path / "image", sector_disk(TO_EXIT_PORT, size * KIB))
    vm = boot_vm(image, mmu=mmu, disks=[write(tmp_path / "disk", sector_disk(TO_EXIT_PORT))])
    assert run_vm(vm, max_time=10**9).status == 1
    assert vm.exit_value == 0


def test_what_is_booted_first(tmp_path: Path) -> None:
    """The guest; without a hard disk that can be booted the floppy disk."""
    disk, image = sector_disk(TO_EXIT_PORT), write(tmp_path / "image", sector_disk(TO_EXIT_PORT, 1440 * KIB))
    vm = boot_vm(write(tmp_path / "disk", disk), floppies=[image])
    run_vm(vm, max_time=10**9)
    assert vm.exit_value == 0x80
    empty = write(tmp_path / "empty", bytes(1440 * KIB))
    vm = boot_vm(write(tmp_path / "disk", disk), floppies=[empty])
    run_vm(vm, max_time=10**9)
    assert vm.exit_value == 0x80


@pytest.mark.parametrize(
    ("size", "track"),
    [(160, 8), (180, 9), (320, 8), (360, 9), (720, 9), (1200, 15), (1440, 18), (1680, 21), (2880, 36)],
)
def test_sectors_of_every_format(tmp_path: Path, size: int, track: int) -> None:
    heads = 1 if size < 200 else 2
    cylinders = size * 2 // track // heads
    places = [(cylinders - 1, heads - 1, track), (0, heads - 1, track), (cylinders // 2, 0, 1)]
    steps: list[Call | Dump] = []
    for cylinder, head, sector in places:
        steps.append(call(0x13, eax=0x0201, ebx=BUFFER, ecx=cylinder << 8 | sector, edx=head << 8))
        steps.append(Dump(BUFFER, 4))
    steps.append(call(0x13, eax=0x0201, ebx=BUFFER, ecx=track + 1))
    *found, missing = probe(tmp_path, *steps, size=size * KIB)
    for place, status, data in zip(places, found[::2], found[1::2], strict=True):
        cylinder, head, sector = place
        assert isinstance(status, Result) and not status.carry and status.ax == 1, place
        assert data == ((cylinder * heads + head) * track + sector - 1).to_bytes(4, "little")
    assert isinstance(missing, Result) and missing.carry and missing.ax == 0x0400


def test_many_sectors_from_one_track_to_the_next(tmp_path: Path) -> None:
    image = program_disk(
        source(
            """
.code16
    mov ax, 0x1000
    mov es, ax
    xor bx, bx
    mov ax, 0x0250                  # 80 sectors from cylinder 3, head 0, sector 10 on
    mov cx, 0x030A
    xor dx, dx
    int 0x13
    jc failed
    cmp ax, 0x0050
    jne failed
    mov bx, 0x2000                  # and back, to cylinder 60
    mov ax, 0x0312
    mov cx, 0x3C01
    int 0x13
    jc failed
    mov ax, 0x0201
    mov bx, 0xFF00                  # 64 KiB may not be crossed
    int 0x13
    jnc failed
    mov al, ah
    sub al, 0x09
    out 0xF4, al
failed:
    mov al, 1
    out 0xF4, al
""",
            0x7E00,
        ),
        SECTOR,
    )
    path = write(tmp_path / "floppy", numbered(image + bytes(-len(image) % SECTOR), 1440 * KIB))
    guest = GuestUnderTest(boot_vm(path, ram=RAM))
    guest.expect_status(1, max_time="10s")
    disk, at = path.read_bytes(), (3 * 36 + 9) * SECTOR
    assert read(guest.vm, 0x10000, 80 * SECTOR) == disk[at : at + 80 * SECTOR]


def test_parameters_and_bad_requests(tmp_path: Path) -> None:
    shown, kind, changed, table, other, none, service, status = probe(
        tmp_path,
        call(0x13, eax=0x0800, edx=0),
        call(0x13, eax=0x1500, edx=0),
        call(0x13, eax=0x1600, edx=0),
        Dump(0x1E * 4, 4),
        call(0x13, eax=0x1500, edx=1),
        call(0x13, eax=0x0200, ecx=1, ebx=BUFFER),
        call(0x13, eax=0x4200),
        call(0x13, eax=0x0100),
    )
    assert isinstance(shown, Result) and isinstance(kind, Result) and isinstance(table, bytes)
    assert (shown.carry, shown.ax, shown.bx, shown.cx, shown.dx) == (False, 0, 4, 79 << 8 | 18, 0x0101)
    assert table == (shown.edi & 0xFFFF | shown.es << 16).to_bytes(4, "little")
    assert (kind.carry, kind.ah) == (False, 2)
    assert isinstance(changed, Result) and not changed.carry
    for refused in (other, none, service, status):
        assert isinstance(refused, Result) and refused.carry and refused.ah == 1


def test_writing_verifying_and_formatting(tmp_path: Path) -> None:
    fields = b"".join(bytes((40, 1, r, 2)) for r in range(1, 19))
    image = bytearray(floppy(tmp_path, [
        call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0001),
        call(0x13, eax=0x0301, ebx=BUFFER, ecx=0x1405, edx=0x0100),
        call(0x13, eax=0x0401, ecx=0x1405, edx=0x0100),
        call(0x13, eax=0x0201, ebx=BUFFER + SECTOR, ecx=0x1405, edx=0x0100),
        Dump(BUFFER, 2 * SECTOR),
        call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x4F12, edx=0x0100),  # the addresses, in the last sector
        call(0x13, eax=0x0512, ebx=BUFFER, ecx=0x2800, edx=0x0100),
        call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x2812, edx=0x0100),
        Dump(BUFFER, SECTOR),
    ], 1440 * KIB).read_bytes())  # fmt: skip
    image[-SECTOR:] = fields.ljust(SECTOR, b"\0")
    guest = GuestUnderTest(boot_vm(write(tmp_path / "image", image), ram=RAM))
    guest.expect_status(1, max_time="60s")
    found = results(guest.console)
    assert all(isinstance(r, bytes) or not r.carry for r in found)
    assert found[4] == bytes(image[:SECTOR]) * 2
    assert found[8] == b"\xf6" * SECTOR
    assert (tmp_path / "image").read_bytes() == image  # the file is as it was


def test_two_drives_and_the_equipment(tmp_path: Path) -> None:
    second = write(tmp_path / "second", numbered(b"", 720 * KIB))
    steps = [call(0x11), call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x4F09, edx=0x0101), Dump(BUFFER, 4),
             call(0x13, eax=0x0800, edx=1)]  # fmt: skip
    equipment, status, data, shown = probe(tmp_path, *steps, floppies=[second])
    assert isinstance(equipment, Result) and equipment.ax & 0xC1 == 0x41
    assert isinstance(status, Result) and not status.carry
    assert data == (1439).to_bytes(4, "little")
    assert isinstance(shown, Result) and (shown.bx, shown.cx, shown.dx) == (3, 79 << 8 | 9, 0x0102)


def test_the_motor_stops(tmp_path: Path) -> None:
    wait = call(0x15, eax=0x8600, ecx=0x1F)  # 2 s
    on, _, off, _ = probe(
        tmp_path, Dump(0x43F, 1), wait, Dump(0x43F, 1), call(0x13, eax=0x0201, ebx=BUFFER, ecx=0x0102)
    )
    assert on[0] & 3 == 1 and off[0] & 3 == 0  # type: ignore[index]


COMPARED: list[Call | Dump] = [
    call(0x11),
    call(0x13, eax=0x0000),
    call(0x13, eax=0x0212, ebx=BUFFER, ecx=0x0001),
    Dump(BUFFER, 512),
    call(0x13, eax=0x0403, ebx=BUFFER, ecx=0x0504, edx=0x0100),
    call(0x13, eax=0x0301, ebx=BUFFER, ecx=0x2801),
    call(0x13, eax=0x0201, ebx=BUFFER + SECTOR, ecx=0x2801),
    Dump(BUFFER + SECTOR, 512),
    call(0x13, eax=0x0200, ebx=BUFFER, ecx=0x0001),
    call(0x13, eax=0x0202, ebx=0xFF00, ecx=0x0001),
    call(0x13, eax=0x0100),
    call(0x13, eax=0x0800),
]


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
@pytest.mark.parametrize("bios", ["SeaBIOS", "ours"])
def test_services_answer_as_on_qemu(tmp_path: Path, bios: str) -> None:
    """What another BIOS says, and what ours says with the controller of others."""
    image = floppy(tmp_path, COMPARED, 1440 * KIB)
    options = ["-boot", "a"]
    if bios == "ours":
        options += ["-bios", str(write(tmp_path / "bios", bios_rom(RAM)))]
    there = results(probe_on_qemu(image.read_bytes(), RAM >> 20, options, interface="floppy"))
    here = probe(tmp_path, *COMPARED)
    assert len(here) == len(there) == len(COMPARED)
    for step, one, other in zip(COMPARED, here, there, strict=True):
        if isinstance(one, Result) and isinstance(other, Result):
            tables = isinstance(step, Call) and step.registers.get("eax") == 0x0800  # ES:DI points into each BIOS
            values = [(r.eax, r.ebx, r.ecx, r.edx, tables or (r.es, r.edi), r.carry) for r in (one, other)]
            assert values[0] == values[1], step
        else:
            assert one == other, step


def test_seabios_boots_it(tmp_path: Path) -> None:
    rom = SEABIOS / "bios-256k.bin"
    if not rom.is_file():
        pytest.skip(f"{rom} is not there: the package seabios is not installed")
    image = floppy(tmp_path, COMPARED, 1440 * KIB)
    guest = boot(str(image), bios=rom, ram=RAM)
    guest.expect_status(1, max_time="60s")
    assert guest.console.count("@") + guest.console.count("=") >= len(COMPARED)


def test_a_hard_disk_is_no_floppy(tmp_path: Path) -> None:
    vm = boot_vm(write(tmp_path / "disk", sector_disk(TO_EXIT_PORT, DISK_SIZE)))
    run_vm(vm, max_time=10**9)
    assert vm.exit_value == 0x80
