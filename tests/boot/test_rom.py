"""ROM images of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.boot.bios import rom_guest
from emu.debug.look import read
from emu.errors import BadInput
from emu.testing import boot
from tests.boot.bios_disks import RAM, Result, call, probe_disk, results, source, sparse

SEABIOS = Path("/usr/share/seabios")


@pytest.mark.parametrize("name", ["bios.bin", "bios-256k.bin"])
def test_seabios_boots_a_disk(tmp_path: Path, name: str) -> None:
    if not (SEABIOS / name).is_file():
        pytest.skip(f"{SEABIOS / name} is not there: the package seabios is not installed")
    path = tmp_path / "disk"
    path.write_bytes(probe_disk([call(0x12), call(0x13, eax=0x0800, edx=0x80)]))
    guest = boot(rom_guest(SEABIOS / name, RAM), ram=RAM, disks=[path])
    guest.expect_status(1, max_time="60s")
    memory, disk = (r for r in results(guest.console) if isinstance(r, Result))
    assert memory.ax == 639
    assert (disk.cx, disk.dx) == (14 << 8 | 63, 15 << 8 | 1)


@pytest.mark.parametrize("contents", [bytes(1 << 20), b"no disk image".ljust(1024)])
def test_seabios_starts_whatever_the_disk_is(tmp_path: Path, contents: bytes) -> None:
    if not (SEABIOS / "bios.bin").is_file():
        pytest.skip(f"{SEABIOS / 'bios.bin'} is not there: the package seabios is not installed")
    path = tmp_path / "kernel.s"
    path.write_bytes(contents)
    guest = boot(path, bios=SEABIOS / "bios.bin")
    guest.wait_for("SeaBIOS (version ", max_time="20s")
    guest.wait_for("Boot failed", max_time="60s")


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_a_rom_lies_at_the_top_of_4_gib_and_below_1_mib(tmp_path: Path, size: int) -> None:
    """The program at the reset vector looks at the ROM in both places, by the bases that CS has."""
    code = source(".code16\n mov al, cs:[0xFFE0]\n ljmp 0xF000:0xFFD0\n", 0xFFF0)
    low = source(".code16\n mov ah, cs:[0xFFE1]\n out 0xE9, al\n mov al, ah\n out 0xE9, al\n out 0xF4, al\n", 0xFFD0)
    rom = bytearray(size << 10)
    rom[-16 : -16 + len(code)] = code
    rom[-48 : -48 + len(low)] = low
    rom[-32:-30] = b"hi"
    path = tmp_path / "rom"
    path.write_bytes(rom)
    guest = boot(rom_guest(path, RAM), ram=RAM)
    assert guest.vm.cpu.pc == 0xFFFF_FFF0
    guest.run(max_time="1ms")
    assert guest.console == "hi"
    assert read(guest.vm, 0x100000 - 48, 48) == rom[-48:]


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "multiple of 64K"),
        (b"\xea" * 1000, "multiple of 64K"),
        (b"\xea" * 0x18000, "multiple of 64K"),
        (bytes(0x10000), "reset vector"),
        (b"\xff" * 0x20000, "reset vector"),
    ],
)
def test_files_that_are_no_rom(tmp_path: Path, contents: bytes, reason: str) -> None:
    path = tmp_path / "rom"
    path.write_bytes(contents)
    with pytest.raises(BadInput, match=reason):
        rom_guest(path, RAM)


def test_a_rom_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at most 16M"):
        rom_guest(sparse(tmp_path / "rom", 17 << 20, {}), RAM)


def test_places_that_hold_no_rom(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="directory"):
        rom_guest(tmp_path, RAM)
    with pytest.raises(BadInput, match="cannot be read"):
        rom_guest(tmp_path / "nothing", RAM)
