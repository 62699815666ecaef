"""What a guest is found to be, and one clear line for everything that is none."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from emu.boot.detect import detect
from emu.boot.kinds import BOOT_SIGNATURE, SECTOR_SIZE, WORDS, Kind
from emu.boot.make import make_guest
from emu.errors import BadInput
from emu.session import boot_vm

RAM = 1 << 20


def file(tmp_path: Path, name: str, data: bytes) -> str:
    path = tmp_path / name
    path.write_bytes(data)
    return str(path)


def sector(code: bytes = b"\xf4") -> bytes:
    return code.ljust(SECTOR_SIZE - 2, b"\0") + BOOT_SIGNATURE


def multiboot_header(magic: int, *fields: int) -> bytes:
    return struct.pack(f"<{2 + len(fields)}I", magic, *fields, -(magic + sum(fields)) & 0xFFFF_FFFF)


def kludge(*fields: int) -> bytes:
    return struct.pack(f"<3I{len(fields)}I", 0x1BADB002, 0x10003, -(0x1BADB002 + 0x10003) & 0xFFFF_FFFF, *fields)


KLUDGE_AS_SECTOR = sector(kludge(0x10_0000, 0x10_0000, 0, 0, 0x10_0020))
ELF_AS_SECTOR = sector(b"\x7fELF".ljust(64, b"\0") + multiboot_header(0x1BADB002, 3))


def bzimage() -> bytes:
    image = bytearray(4096)
    image[510:512] = BOOT_SIGNATURE
    image[0x202:0x206] = b"HdrS"
    return bytes(image)


def test_a_name_of_firmware_goes_before_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hello").write_bytes(sector())
    assert detect("hello").kind is Kind.FIRMWARE
    assert detect("./hello").kind is Kind.DISK
    assert detect(Path("hello")).kind is Kind.DISK


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("kernel.bin", b"\xf4", Kind.FLAT),
        ("kernel.s", b".code16\n hlt\n", Kind.SOURCE),
        ("boot.img", sector(), Kind.DISK),
        ("boot.bin", sector(), Kind.DISK),
        ("disk.img", sector() + bytes(1024), Kind.DISK),
        ("floppy.img", sector().ljust(1440 << 10, b"\0"), Kind.FLOPPY),
        ("floppy with a kernel", (sector() + multiboot_header(0x1BADB002, 3)).ljust(160 << 10, b"\0"), Kind.FLOPPY),
        ("holds a kernel", sector() + multiboot_header(0x1BADB002, 3), Kind.DISK),
        ("holds a kludge", sector() + bytes(512) + kludge(0x10_0200, 0x10_0000, 0, 0, 0x10_0000), Kind.DISK),
        ("holds zeros", sector() + kludge(0, 0, 0, 0, 0), Kind.DISK),
        ("holds half a header", sector() + kludge(), Kind.DISK),
        ("holds a kernel2", sector() + bytes(512) + multiboot_header(0xE85250D6, 0, 16), Kind.DISK),
        ("kludge with 55AA", KLUDGE_AS_SECTOR, Kind.MULTIBOOT),
        ("elf with 55AA", ELF_AS_SECTOR, Kind.MULTIBOOT),
        ("kernel", b"\x7fELF".ljust(64, b"\0") + multiboot_header(0x1BADB002, 3), Kind.MULTIBOOT),
        ("kludge", bytes(64) + multiboot_header(0x1BADB002, 0x10003), Kind.MULTIBOOT),
        ("kernel2", b"\x7fELF".ljust(64, b"\0") + multiboot_header(0xE85250D6, 0, 16), Kind.MULTIBOOT2),
        ("vmlinuz", bzimage(), Kind.LINUX),
    ],
)
def test_kinds(tmp_path: Path, name: str, data: bytes, kind: Kind) -> None:
    found = detect(file(tmp_path, name, data))
    assert found.kind is kind
    if kind in (Kind.FLAT, Kind.SOURCE, Kind.FLOPPY, Kind.DISK):
        assert make_guest(found, RAM).image.end > 0
    else:
        with pytest.raises(BadInput):  # none of them is whole
            make_guest(found, RAM)


@pytest.mark.parametrize("word", WORDS)
def test_a_file_is_what_it_is_said_to_be(tmp_path: Path, word: str) -> None:
    for name, data in (("hello", sector()), ("notes.txt", b"text"), ("kernel.s", b"hlt")):
        assert detect(file(tmp_path, name, data), kind=word).kind is WORDS[word]
    with pytest.raises(BadInput, match="neither a guest"):  # it is a file, then
        detect("hello", kind=word)
    with pytest.raises(BadInput, match="the file is empty"):
        detect(file(tmp_path, "empty", b""), kind=word)


def test_a_word_that_is_no_kind(tmp_path: Path) -> None:
    path = file(tmp_path, "disk", sector())
    for boot in (lambda: detect(path, kind="diskette"), lambda: boot_vm(path, as_="diskette")):
        with pytest.raises(BadInput, match="--as: 'diskette' is no kind of guest; there are source, linux, "):
            boot()


def test_it_starts_as_what_it_is_said_to_be(tmp_path: Path) -> None:
    path = file(tmp_path, "disk.img", sector(b"\xf4"))
    assert [boot_vm(path, ram="2M", as_=word).guest.kind for word in (None, "flat")] == [
        "disk, by the built-in BIOS",
        "flat binary",
    ]
    with pytest.raises(BadInput, match="no multiboot header"):
        boot_vm(path, as_="multiboot")


def test_a_bios_boots_whatever_it_finds(tmp_path: Path) -> None:
    for name, data in (("zeros", bytes(1024)), ("kernel.s", b"hlt"), ("vmlinuz", bzimage()), ("d", sector())):
        assert detect(file(tmp_path, name, data), for_bios=True).kind is Kind.DISK


def test_with_a_load_address_any_file_is_a_flat_binary(tmp_path: Path) -> None:
    found = detect(file(tmp_path, "notes.txt", b"text"), load=0x1000)
    guest = make_guest(found, RAM, load=0x1000)
    assert found.kind is Kind.FLAT
    assert guest.image.page(1)[:4] == b"text"


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("empty.bin", b"", "the file is empty"),
        ("empty.s", b"", "the file is empty"),
        ("text.txt", b"just some text\n", "--load ADDRESS"),
        ("noise", bytes(range(7, 200)), "--load ADDRESS"),
        ("short.elf", b"\x7fELF\x01\x01", "truncated"),
        ("program", b"\x7fELF".ljust(4096, b"\0"), "no multiboot kernel: no header in its first 8192 bytes"),
        ("nowhere", bytes(64) + multiboot_header(0x1BADB002, 3), "does not tell where to load it"),
        ("boot.img", bytes(512), "no disk image: no 55 AA at the end of its first sector"),
        ("xen.gz", b"\x1f\x8b".ljust(600, b"\1"), "this file is compressed (gzip); decompress it first"),
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
