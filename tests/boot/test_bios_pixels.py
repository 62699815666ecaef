"""Mode 13h and the palette by INT 10h, here and under QEMU's VGA BIOS, and what is then to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.devices.vbe import VideoMode
from emu.devices.vga import ega_colours
from tests.boot.bios_disks import BUFFER, Dump, Result, call, probe, probe_disk, probe_on_qemu, results, run, start
from tests.oracles.qemu_guest import QEMU, have_qemu

STEPS = [
    call(0x10, eax=0x0013),
    call(0x10, eax=0x0F00),
    call(0x10, eax=0x1017, ebx=0, ecx=256, edx=BUFFER),
    Dump(BUFFER, 768),
    call(0x10, eax=0x0C2A, ecx=319, edx=199),
    call(0x10, eax=0x0D00, ecx=319, edx=199),
    Dump(64000 - 4, 4, 0xA000),
    call(0x10, eax=0x1010, ebx=7, ecx=0x1122, edx=0x3300),
    call(0x10, eax=0x1015, ebx=7),
    call(0x10, eax=0x0003),
    call(0x10, eax=0x1017, ebx=0, ecx=64, edx=BUFFER),
    Dump(BUFFER, 192),
]


def test_mode_13h(tmp_path: Path) -> None:
    found = probe(tmp_path, *STEPS)
    mode, palette, pixel, line, colour, text = (found[index] for index in (1, 3, 5, 6, 8, 11))
    assert isinstance(mode, Result) and mode.ax == 40 << 8 | 0x13
    assert isinstance(palette, bytes)
    assert palette[3 * 4 :][:3] == bytes((42, 0, 0)) and palette[3 * 31 :][:6] == bytes((63, 63, 63, 0, 0, 63))
    assert isinstance(pixel, Result) and pixel.al == 0x2A and line == b"\0\0\0\x2a"
    assert isinstance(colour, Result) and (colour.dx >> 8, colour.cx) == (0x33, 0x1122)
    assert text == bytes(ega_colours()[:192])


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_the_same_as_qemus(tmp_path: Path) -> None:
    theirs, ours = results(probe_on_qemu(probe_disk(STEPS), 16)), probe(tmp_path, *STEPS)
    for index in (3, 6, 11):
        assert ours[index] == theirs[index]
    for index in (1, 5, 8):
        our, their = ours[index], theirs[index]
        assert isinstance(our, Result) and isinstance(their, Result)
        assert (our.ax, our.cx, our.dx) == (their.ax, their.cx, their.dx)


DRAW = """
.code16
    mov ax, 0x0013
    int 0x10
    mov ax, 0xA000
    mov es, ax
    mov di, 320 * 10 + 20
    mov al, 4
    mov cx, 100
    rep stosb
    BACK
    mov al, 0
    out 0xF4, al
"""


def test_it_is_shown(tmp_path: Path) -> None:
    guest = run(tmp_path, DRAW.replace("BACK", ""))
    picture = guest.vm.platform.vbe.picture()
    assert picture is not None and picture.mode == VideoMode(320, 200, 8) and len(picture.data) == 64000
    assert picture.data[320 * 10 + 19 :][:2] == b"\0\4" and picture.data[320 * 10 + 119 :][:2] == b"\4\0"
    assert picture.palette[4] == (0xAA, 0, 0)


def test_back_to_text(tmp_path: Path) -> None:
    vga = start(tmp_path, probe_disk([call(0x11)]))
    vga.expect_status(1, max_time="5s")
    before = vga.vm.platform.vga.state()
    guest = run(tmp_path, DRAW.replace("BACK", "mov ax, 3\n int 0x10\n mov ax, 0x0E41\n int 0x10"))
    assert guest.vm.platform.vbe.picture() is None
    assert guest.screen.startswith("A\n")
    after = guest.vm.platform.vga.state()
    moved = {"crtc", "crtc_index", "dac_write", "dac_component", "dac_latch"}
    assert {name for name in before if before[name] != after[name]} <= moved
