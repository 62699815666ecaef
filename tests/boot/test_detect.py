"""What a guest is found to be, and one clear line for everything that is none."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from emu.boot.detect import BOOT_SIGNATURE, SECTOR_SIZE, Kind, detect, make_guest
from emu.errors import BadInput

RAM = 1 << 20


def file(tmp_path: Path, name: str, data: bytes) -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def sector(code: bytes = b"\xf4") -> bytes:
    return code.ljust(SECTOR_SIZE - 2, b"\0") + BOOT_SIGNATURE


def multiboot_header(magic: int, *fields: int) -> bytes:
    return struct.pack(f"<{2 + len(fields)}I", magic, *fields, -(magic + sum(fields)) & 0xFFFF_FFFF)


def bzimage() -> bytes:
    image = bytearray(4096)
    image[510:512] = BOOT_SIGNATURE
    image[0x202:0x206] = b"HdrS"
    return bytes(image)


def test_a_name_of_firmware_goes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello").write_bytes(sector())
    assert detect("hello").kind is Kind.FIRMWARE
    assert detect("./hello").kind is Kind.BOOT_SECTOR
    assert detect(Path("hello")).kind is Kind.BOOT_SECTOR


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("kernel.bin", b"\xf4", Kind.FLAT),
        ("kernel.s", b".code16\n hlt\n", Kind.SOURCE),
        ("boot.img", sector(), Kind.BOOT_SECTOR),
        ("boot.bin", sector(), Kind.BOOT_SECTOR),
        ("disk.img", sector() + bytes(1024), Kind.DISK),
        ("kernel", b"\x7fELF".ljust(64, b"\0") + multiboot_header(0x1BADB002, 3), Kind.MULTIBOOT),
        ("kludge", bytes(64) + multiboot_header(0x1BADB002, 0x10003), Kind.MULTIBOOT),
        ("kernel2", b"\x7fELF".ljust(64, b"\0") + multiboot_header(0xE85250D6, 0, 16), Kind.MULTIBOOT2),
        ("vmlinuz", bzimage(), Kind.LINUX),
    ],
)
def test_kinds(tmp_path: Path, name: str, data: bytes, kind: Kind) -> None:
    found = detect(file(tmp_path, name, data))
    assert found.kind is kind
    if kind in (Kind.FLAT, Kind.SOURCE, Kind.BOOT_SECTOR, Kind.DISK):
        assert make_guest(found, RAM).image.end > 0
    else:
        with pytest.raises(BadInput):  # none of them is whole
            make_guest(found, RAM)


def test_with_a_load_address_any_file_is_a_flat_binary(tmp_path: Path) -> None:
    found = detect(file(tmp_path, "notes.txt", b"text"), load=0x1000)
    guest = make_guest(found, RAM, load=0x1000)
    assert found.kind is Kind.FLAT
    assert guest.image.page(1)[:4] == b"text"


def test_a_source_is_assembled_for_its_load_address_and_finds_the_includes(tmp_path: Path) -> None:
    source = b'.code16\n jmp start\n.include "platform.inc"\nstart:\n mov ax, PORT_EXIT\n hlt\n'
    guest = make_guest(detect(file(tmp_path, "own.s", source)), RAM, load=0x2000)
    assert guest.name == "own"
    assert b"\xb8\xf4\x00\xf4" in guest.image.page(2)


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("empty.bin", b"", "the file is empty"),
        ("empty.s", b"", "the file is empty"),
        ("text.txt", b"just some text\n", "--load ADDRESS"),
        ("noise", bytes(range(7, 200)), "--load ADDRESS"),
        ("short.elf", b"\x7fELF\x01\x01", "truncated"),
        ("program", b"\x7fELF".ljust(4096, b"\0"), "no multiboot header"),
        ("almost", multiboot_header(0x1BADB002, 3)[:-1] + b"\x77", "--load ADDRESS"),
        ("half", sector()[:500], "--load ADDRESS"),
        ("wrong.s", b".code16\n mov eax, bananas bananas\n", "wrong.s:2: "),
        ("binary.s", b"\xff\xfe\x00", "binary.s"),
    ],
)
def test_nonsense_is_one_clear_line(tmp_path: Path, name: str, data: bytes, complaint: str) -> None:
    path = file(tmp_path, name, data)
    with pytest.raises(BadInput) as caught:
        make_guest(detect(path), RAM)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert name in caught.value.what


def test_a_directory_and_a_device_are_no_guests(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="directory"):
        detect(str(tmp_path))
    with pytest.raises(BadInput, match="no regular file"):
        detect("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_read_permission(tmp_path: Path) -> None:
    path = file(tmp_path, "kernel.bin", b"\xf4")
    os.chmod(path, 0)
    with pytest.raises(BadInput, match="Permission denied"):
        detect(path)


@pytest.mark.parametrize(("typed", "meant"), [("helo", "hello"), ("paging", "paging32"), ("crahs", "crash")])
def test_a_close_name_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(BadInput, match=f"did you mean {meant}"):
        detect(typed)


def test_strange_names(tmp_path: Path) -> None:
    for name in ("", "\0", "nosuch/nosuch", "x" * 5000):
        with pytest.raises(BadInput):
            detect(name)


def test_firmware_cannot_be_moved() -> None:
    with pytest.raises(BadInput, match="--load"):
        make_guest(detect("hello", 0x1000), RAM, load=0x1000)


def test_tables_list_several_processors_to_guests_of_every_kind(tmp_path: Path) -> None:
    for found in (detect("hello"), detect(file(tmp_path, "flat.bin", b"\xf4"))):
        alone, several = (make_guest(found, RAM, cpus=cpus).image for cpus in (1, 3))
        assert not any(alone.page(gfn).strip(b"\0") for gfn in range(0xF0, 0x100))
        assert several.page(0xF0)[:8] == b"RSD PTR "
        assert several.page(0xF8)[:4] == b"_MP_"
