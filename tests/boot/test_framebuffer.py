"""Graphics that a multiboot kernel asks for: the mode is on, and its boot information says what it is like."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.boot.framebuffer import DEFAULT, wanted_mode
from emu.boot.guest import Guest
from emu.boot.linux_params import asked_mode, boot_params
from emu.boot.multiboot import multiboot_guest
from emu.boot.multiboot2 import multiboot2_guest
from emu.devices.vbe import MEMORY_SIZE, VideoMode
from emu.errors import BadInput
from emu.testing import GuestUnderTest, boot
from tests.boot.kernels import Load, elf, header2, tag

RAM = 16 << 20
BASE = 0x10_0000
FRAME_BUFFER = 0xFD00_0000
# mov edi, FRAME_BUFFER; mov [edi], 0x00332211; mov [0x8000], ebx; xor eax, eax; out 0xF4, al
DRAW = bytes.fromhex("bf000000fd c70711223300 891d00800000 31c0 e6f4 f4")


def header1(flags: int, *video: int) -> bytes:
    fields = (0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFF_FFFF, 0, 0, 0, 0, 0, *video)
    return struct.pack(f"<{len(fields)}I", *fields)


def kernel(tmp_path: Path, header: bytes) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(elf([Load(BASE, header + DRAW, 0x1000)], BASE + len(header)))
    return path


def run(guest: Guest) -> tuple[GuestUnderTest, bytes]:
    """The guest at its end, and its boot information."""
    under_test = boot(guest, ram=RAM)
    assert under_test.run("1ms") == 1, under_test.describe()
    memory = under_test.vm.memory
    (info,) = struct.unpack("<I", memory.read(0x8000, 4))
    return under_test, memory.read(info, 0x400)


@pytest.mark.parametrize(
    ("video", "mode"),
    [
        ((0, 800, 600, 32), VideoMode(800, 600, 32)),
        ((0, 0, 0, 0), DEFAULT),
        ((0, 640, 480, 16), VideoMode(640, 480, 16)),
        ((0, 640, 480, 7), VideoMode(640, 480, 32)),
        ((0, 9000, 9000, 24), VideoMode(1024, 768, 24)),
    ],
)
def test_multiboot(tmp_path: Path, video: tuple[int, ...], mode: VideoMode) -> None:
    guest, info = run(multiboot_guest(kernel(tmp_path, header1(4, *video)), RAM))
    (flags,) = struct.unpack_from("<I", info)
    assert flags & 0x1800 == 0x1800
    assert struct.unpack_from("<QIIIBB", info, 88) == (
        FRAME_BUFFER, mode.pitch, mode.width, mode.height, mode.depth, 1
    )  # fmt: skip
    if mode.depth == 32:
        assert info[110:116] == bytes((16, 8, 8, 8, 0, 8))
    control, about, number = struct.unpack_from("<IIH", info, 72)
    assert guest.vm.memory.read(control, 6) == b"VESA\0\2" and number & 0x4000
    assert struct.unpack("<HH", guest.vm.memory.read(about + 0x12, 4)) == (mode.width, mode.height)
    assert struct.unpack("<I", guest.vm.memory.read(about + 0x28, 4)) == (FRAME_BUFFER,)
    picture = guest.vm.platform.vbe.picture()
    assert picture is not None and picture.mode == mode and picture.data[:3] == b"\x11\x22\x33"


@pytest.mark.parametrize(("flags", "video", "told"), [(4, (1, 80, 25, 0), True), (0, (), False)])
def test_multiboot_in_text_mode(tmp_path: Path, flags: int, video: tuple[int, ...], told: bool) -> None:
    guest, info = run(multiboot_guest(kernel(tmp_path, header1(flags, *video)), RAM))
    assert struct.unpack_from("<I", info)[0] & 0x1800 == (0x1000 if told else 0)
    if told:
        assert struct.unpack_from("<QIIIBB", info, 88) == (0xB8000, 160, 80, 25, 16, 2)
    assert guest.vm.platform.vbe.picture() is None


def test_multiboot2(tmp_path: Path) -> None:
    guest, info = run(multiboot2_guest(kernel(tmp_path, header2(tag(5, 800, 600, 32))), RAM))
    at = 8
    while (kind := struct.unpack_from("<I", info, at)[0]) != 8:
        assert kind
        at += (struct.unpack_from("<I", info, at + 4)[0] + 7) & ~7
    assert struct.unpack_from("<IIQIIIBB", info, at) == (8, 38, FRAME_BUFFER, 3200, 800, 600, 32, 1)
    assert info[at + 32 : at + 38] == bytes((16, 8, 8, 8, 0, 8))
    picture = guest.vm.platform.vbe.picture()
    assert picture is not None and picture.mode == VideoMode(800, 600, 32) and picture.data[:3] == b"\x11\x22\x33"


def test_the_mode_is_on_again_after_a_reset(tmp_path: Path) -> None:
    guest, _ = run(multiboot2_guest(kernel(tmp_path, header2(tag(5, 800, 600, 32))), RAM))
    vm = guest.vm
    vm.forget_end()
    vm.platform.bus.write(0xCF9, 1, 6)
    assert guest.run("1ms") == 1 and vm.resets == 1
    picture = vm.platform.vbe.picture()
    assert picture is not None and picture.mode == VideoMode(800, 600, 32) and picture.data[:3] == b"\x11\x22\x33"


def test_every_wish_becomes_a_mode_that_fits() -> None:
    for width in (0, 1, 640, 5000, 1 << 31):
        for height in (0, 1, 480, 5000, 1 << 31):
            for depth in (0, 8, 15, 24, 32, 64):
                mode = wanted_mode(width, height, depth)
                assert mode.pitch * mode.height <= MEMORY_SIZE and mode.width < 0x10000


@pytest.mark.parametrize(
    ("append", "mode"),
    [
        ("quiet", None),
        ("vga=normal", None),
        ("vga=0xF07", None),
        ("quiet vga=791 ro", VideoMode(1024, 768, 16)),
        ("vga=0x344", VideoMode(1024, 768, 32)),
        ("vga=0x344 vga=ask", None),
        ("nvga=0x344", None),
    ],
)
def test_the_mode_of_a_linux_command_line(append: str, mode: VideoMode | None) -> None:
    assert asked_mode(append) == mode


def test_a_mode_that_linux_cannot_have() -> None:
    with pytest.raises(BadInput, match=r"--append: vga=0x3aa: no such mode; there are .*0x344 \(1024x768x32\)"):
        asked_mode("vga=0x3aa")


def test_what_linux_is_told() -> None:
    page = boot_params(b"", RAM, mode=VideoMode(800, 600, 32))
    assert page[0x0F] == 0x23 and struct.unpack_from("<HHH", page, 0x12) == (800, 600, 32)
    assert struct.unpack_from("<II", page, 0x18) == (FRAME_BUFFER, 30)
    assert struct.unpack_from("<H", page, 0x24) == (3200,) and page[0x26:0x2E] == bytes((8, 16, 8, 8, 8, 0, 8, 24))
