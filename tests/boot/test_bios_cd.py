"""The built-in BIOS: booting from CDs, and INT 13h for them; and SeaBIOS with the same drive."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from emu.boot.detect import detect
from emu.boot.kinds import Kind
from emu.boot.low_memory import bios_rom
from emu.errors import BadInput
from emu.session import boot_vm, run_vm
from emu.testing import GuestUnderTest, boot
from tests.boot.bios_disks import (
    BUFFER,
    RAM,
    SECTOR,
    Call,
    Dump,
    Result,
    call,
    probe_code,
    probe_disk,
    probe_on_qemu,
    results,
    sector_disk,
    source,
)  # fmt: skip
from tests.boot.discs import BLOCK, FLOPPY_1440K, HARD_DISK, IMAGE, MEDIA, disc, numbered, program_disc
from tests.boot.test_rom import SEABIOS
from tests.oracles.qemu_guest import QEMU, have_qemu

PACKETS = 0x7DC0  # in the first sector of the program, which has no more use
TO_EXIT_PORT = ".code16\n mov al, dl\n out 0xF4, al\n"
BLOCKS = 600


def packet(count: int, offset: int, lba: int, segment: int = 0) -> bytes:
    return struct.pack("<BBHHHQ", 16, 0, count, offset, segment, lba)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def probe_disc(steps: Sequence[Call | Dump], *packets: bytes) -> bytes:
    data = bytearray(program_disc(probe_code(steps)))
    at = IMAGE * BLOCK + PACKETS - 0x7C00
    joined = b"".join(packet.ljust(16, b"\0") for packet in packets)
    data[at : at + len(joined)] = joined
    return numbered(bytes(data), BLOCKS)


def run(tmp_path: Path, image: bytes, **options: object) -> list[Result | bytes]:
    guest = GuestUnderTest(boot_vm(write(tmp_path / "disc.iso", image), ram=RAM, **options))  # type: ignore[arg-type]
    guest.expect_status(1, max_time="60s")
    return results(guest.console)


STEPS: list[Call | Dump] = [
    call(0x13, eax=0x4100, ebx=0x55AA, edx=0xE0),
    call(0x13, eax=0x4200, edx=0xE0, esi=PACKETS),
    Dump(0, 8, 0x1000),
    Dump(0xF800, 8, 0x1000),
    call(0x13, eax=0x4B01, edx=0xE0, esi=BUFFER),
    Dump(BUFFER, 16),
    call(0x13, eax=0x4300, edx=0xE0, esi=PACKETS),
    call(0x13, eax=0x0000, edx=0xE0),
]


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_blocks_by_number(tmp_path: Path, mmu: str) -> None:
    steps = [
        *STEPS,
        call(0x13, eax=0x4200, edx=0xE0, esi=PACKETS + 16),
        Dump(PACKETS + 16, 4),
        call(0x13, eax=0x4800, edx=0xE0, esi=PACKETS + 32),
        Dump(PACKETS + 32, 26),
    ]
    image = probe_disc(steps, packet(32, 0, 300, 0x1000), packet(2, BUFFER, BLOCKS - 1), struct.pack("<H", 26))
    found = run(tmp_path, image, mmu=mmu)
    check, read, first, last, status, specification, written, reset, beyond, left, told, parameters = found
    for good in (check, read, status, reset, told):
        assert isinstance(good, Result) and not good.carry
    assert isinstance(check, Result) and check.bx == 0xAA55
    assert first == (300).to_bytes(4, "little") * 2 and last == (331).to_bytes(4, "little") * 2
    assert isinstance(specification, bytes)
    assert specification[:3] == b"\x13\0\xe0" and specification[4:8] == struct.pack("<I", IMAGE)
    assert isinstance(written, Result) and written.carry and written.ah == 3
    assert isinstance(beyond, Result) and beyond.carry and isinstance(left, bytes) and left[2:4] == b"\0\0"
    assert isinstance(parameters, bytes)
    size, flags, *_, sectors, sector_size = struct.unpack("<HHIIIQH", parameters)
    assert (size, flags & 6, sectors, sector_size) == (26, 4, BLOCKS, BLOCK)


def test_where_it_is_loaded(tmp_path: Path) -> None:
    """To segment 7C0h by default, entered as 0000:7C00; all its sectors."""
    code = source(
        """
.code16
    call here                       # six bytes
here:
    pop ax
    mov bx, cs
    mov cx, cs:[0x7C00 + 3 * 2048 - 2]
    out 0xE9, al
    mov al, ah
    out 0xE9, al
    mov al, bl
    out 0xE9, al
    mov al, bh
    out 0xE9, al
    mov al, cl
    out 0xE9, al
    mov al, dl
    out 0xE9, al
    out 0xF4, al
""",
        0x7C00,
    )
    image = code.ljust(3 * BLOCK - 2, b"\0") + b"!?" + bytes(BLOCK)
    for segment, where in ((0, (0x7C06, 0)), (0x2000, (6, 0x2000)), (0x123, (0x1236, 0))):
        vm = boot_vm(write(tmp_path / "disc.iso", disc(image, sectors=12, segment=segment)), ram=RAM)
        run_vm(vm, max_time=10**9)
        console = bytes(vm.platform.console)
        assert struct.unpack("<HH", console[:4]) == where
        assert console[5] == 0xE0 and (segment or console[4] == ord("!"))


@pytest.mark.parametrize("size", sorted(MEDIA))
def test_the_image_of_a_floppy_disk(tmp_path: Path, size: int) -> None:
    """It is drive 0; another one that is there cannot be reached."""
    track = {1200: 15, 1440: 18, 2880: 36}[size >> 10]
    steps: list[Call | Dump] = [
        call(0x13, eax=0x0800),
        call(0x13, eax=0x0203, ebx=BUFFER, ecx=0x4E00 | track - 1, edx=0x0000),
        Dump(BUFFER, 4),
        Dump(BUFFER + 2 * SECTOR, 4),
        call(0x13, eax=0x0201, ebx=BUFFER, ecx=track + 1),
        call(0x13, eax=0x0301, ebx=BUFFER, ecx=2),
        call(0x13, eax=0x4B01, esi=BUFFER),
        Dump(BUFFER, 20),
        call(0x13, eax=0x1500),
        call(0x11),
    ]
    data = probe_disk(steps, SECTOR)
    data += b"".join(n.to_bytes(4, "little") * 128 for n in range(len(data) // SECTOR + 1, size // SECTOR))
    image = data.ljust(size, b"\0")
    at = 78 * 2 * track + track - 2  # two sectors of the first track, and one of the other side
    shown, read, first, third, missing, written, status, specification, kind, equipment = run(
        tmp_path, disc(image, MEDIA[size])
    )
    assert isinstance(shown, Result) and (shown.cx, shown.dx) == (79 << 8 | track, 0x0101)
    assert isinstance(read, Result) and not read.carry and read.al == 3
    assert first == image[at * SECTOR :][:4] and third == image[(at + 2) * SECTOR :][:4]
    assert isinstance(missing, Result) and missing.carry and missing.ah == 4
    assert isinstance(written, Result) and written.carry and written.ah == 3
    assert isinstance(status, Result) and not status.carry
    assert isinstance(specification, bytes) and specification[1:3] == bytes((MEDIA[size], 0))
    assert isinstance(kind, Result) and kind.ah == 1
    assert isinstance(equipment, Result) and equipment.ax & 1


def test_what_is_booted_first(tmp_path: Path) -> None:
    """The guest; other discs only when neither disk nor floppy disk can be booted."""
    sector = sector_disk(TO_EXIT_PORT, BLOCK)
    cd, disk = write(tmp_path / "cd", disc(sector)), write(tmp_path / "disk", sector_disk(TO_EXIT_PORT))
    empty = write(tmp_path / "empty", sector_disk(TO_EXIT_PORT)[:-1] + b"x")
    for guest, options, drive in (
        (cd, {"disks": [disk]}, 0xE0),
        (disk, {"cdrom": cd}, 0x80),
        (write(tmp_path / "no", bytes(SECTOR)), {"cdrom": cd, "as_": "disk"}, 0xE0),
    ):
        vm = boot_vm(guest, **options)  # type: ignore[arg-type]
        run_vm(vm, max_time=10**9)
        assert vm.exit_value == drive
    assert empty.exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({IMAGE - 1: b"\0"}, "nothing in its boot catalog"),
        ({IMAGE - 1: bytes(30) + b"xx"}, "nothing in its boot catalog"),
        ({17: b"\xff"}, "no boot record"),
    ],
)
def test_discs_that_boot_nothing(tmp_path: Path, damage: dict[int, bytes], reason: str) -> None:
    image = bytearray(disc(b"\xf4"))
    for block, data in damage.items():
        if block == IMAGE - 1 and data == b"\0":
            image[block * BLOCK + 32] = 0
        else:
            image[block * BLOCK : block * BLOCK + len(data)] = data
    guest = GuestUnderTest(boot_vm(write(tmp_path / "disc", bytes(image)), as_="cd", ram=RAM))
    guest.expect_status(124, max_time="10s")
    assert f"BIOS: the CD has {reason}" in guest.console


def test_a_hard_disk_s_image_is_not_booted(tmp_path: Path) -> None:
    guest = GuestUnderTest(boot_vm(write(tmp_path / "disc.iso", disc(bytes(BLOCK), HARD_DISK)), ram=RAM))
    guest.expect_status(124, max_time="10s")
    assert "nothing in its boot catalog that can be booted here" in guest.console


def test_detection(tmp_path: Path) -> None:
    """An ISO with an MBR in front, as many are, is a disc; without El Torito it is not bootable, or a disk."""
    bootable = bytearray(disc(bytes(BLOCK)))
    assert detect(write(tmp_path / "a.iso", bytes(bootable))).kind is Kind.CD
    bootable[510:512] = b"\x55\xaa"
    assert detect(write(tmp_path / "b.iso", bytes(bootable))).kind is Kind.CD
    assert detect(tmp_path / "b.iso", kind="disk").kind is Kind.DISK
    plain = bytearray(bootable)
    plain[17 * BLOCK :] = bytes(len(plain) - 17 * BLOCK)
    assert detect(write(tmp_path / "c.iso", bytes(plain))).kind is Kind.DISK
    plain[510:512] = bytes(2)
    with pytest.raises(BadInput, match="no bootable CD-ROM: an ISO 9660 image without an El Torito boot record"):
        detect(write(tmp_path / "d.iso", bytes(plain)))
    with pytest.raises(BadInput, match="--cdrom: a.iso is in the drive already"):
        boot_vm(tmp_path / "a.iso", cdrom=tmp_path / "b.iso")


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
@pytest.mark.parametrize("bios", ["SeaBIOS", "ours"])
def test_services_answer_as_on_qemu(tmp_path: Path, bios: str) -> None:
    """What another BIOS says, and what ours says with the drive of others."""
    image = probe_disc(STEPS, packet(32, 0, 300, 0x1000))
    options = ["-boot", "d"]
    if bios == "ours":
        options += ["-bios", str(write(tmp_path / "bios", bios_rom(RAM)))]
    there = results(probe_on_qemu(image, RAM >> 20, options, interface="ide,index=2,media=cdrom"))
    here = run(tmp_path, image)
    assert len(here) == len(there) == len(STEPS)
    for step, one, other in zip(STEPS, here, there, strict=True):
        if isinstance(one, Result) and isinstance(other, Result):
            values = [(r.eax, r.ebx, r.ecx, r.edx, r.es, r.edi, r.carry) for r in (one, other)]
            assert values[0] == values[1], step
        else:
            assert one == other, step


@pytest.mark.parametrize("media", [0, FLOPPY_1440K])
def test_seabios_boots_it(tmp_path: Path, media: int) -> None:
    rom = SEABIOS / "bios-256k.bin"
    if not rom.is_file():
        pytest.skip(f"{rom} is not there: the package seabios is not installed")
    image = disc(sector_disk(TO_EXIT_PORT, 1440 << 10), media)
    guest = boot(str(write(tmp_path / "disc.iso", image)), bios=rom, ram=RAM)
    guest.expect_status(0xE0 << 1 & 0xFF | 1 if not media else 1, max_time="60s")
