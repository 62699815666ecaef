"""INT 10h, AH=4Fh of the built-in BIOS: what programs find and set, here and under QEMU's VGA BIOS."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.devices.vbe import VideoMode
from tests.boot.bios_disks import BUFFER, Dump, Result, call, probe, probe_disk, probe_on_qemu, results, start
from tests.oracles.qemu_guest import QEMU, have_qemu

MODES = {
    0x101: VideoMode(640, 480, 8), 0x111: VideoMode(640, 480, 16), 0x113: VideoMode(800, 600, 15),
    0x118: VideoMode(1024, 768, 24), 0x144: VideoMode(1024, 768, 32), 0x145: VideoMode(1280, 1024, 32),
}  # fmt: skip
STEPS = [
    call(0x10, eax=0x4F00, edi=BUFFER),
    Dump(BUFFER, 256),
    *(step for mode in MODES for step in (call(0x10, eax=0x4F01, ecx=mode, edi=BUFFER), Dump(BUFFER, 256))),
]


def fields(info: bytes) -> tuple[object, ...]:
    """Of a mode: attributes, but for the window; bytes of a line; size; depth, kind; masks; frame buffer."""
    attributes, pitch, width, height = struct.unpack_from("<H14xHHH", info)
    (frame_buffer,) = struct.unpack_from("<I", info, 0x28)
    masks = info[0x1F:0x25] if info[0x19] > 8 else b""
    return attributes & 0x9B, pitch, width, height, info[0x18], info[0x19], info[0x1B], masks, frame_buffer


def test_modes_and_their_fields(tmp_path: Path) -> None:
    found = probe(tmp_path, *STEPS)
    answer, info, *modes = found
    assert isinstance(answer, Result) and answer.ax == 0x004F
    assert isinstance(info, bytes)
    assert info[:6] == b"VESA\x00\x02" and struct.unpack_from("<H", info, 0x12) == (256,)
    for (number, mode), result, dump in zip(MODES.items(), modes[::2], modes[1::2], strict=True):
        assert isinstance(result, Result) and isinstance(dump, bytes)
        assert result.ax == 0x004F, hex(number)
        _, pitch, width, height, planes, depth, kind, _, frame_buffer = fields(dump)
        assert (width, height, depth, pitch) == (mode.width, mode.height, mode.depth, mode.pitch)
        assert (planes, kind, frame_buffer) == (1, 4 if depth == 8 else 6, 0xFD00_0000)


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_the_same_as_qemus(tmp_path: Path) -> None:
    theirs = results(probe_on_qemu(probe_disk(STEPS), 16))
    ours = probe(tmp_path, *STEPS)
    assert len(theirs) == len(ours)
    for their, our in zip(theirs[2:], ours[2:], strict=True):
        if isinstance(our, bytes) and isinstance(their, bytes):
            assert fields(our) == fields(their)
        else:
            assert isinstance(our, Result) and isinstance(their, Result) and our.ax == their.ax


def test_setting_modes(tmp_path: Path) -> None:
    found = probe(
        tmp_path,
        call(0x10, eax=0x4F03),
        call(0x10, eax=0x4F02, ebx=0x4144),
        call(0x10, eax=0x4F03),
        call(0x10, eax=0x4F02, ebx=0x41FF),  # there is none
        call(0x10, eax=0x4F02, ebx=0x0003),
        call(0x10, eax=0x4F03),
        call(0x10, eax=0x4F02, ebx=0x4118),
        call(0x10, eax=0x0003),
        call(0x10, eax=0x4F03),
        call(0x10, eax=0x4F01, ecx=0x01FF, edi=BUFFER),
        call(0x10, eax=0x4F09),
    )
    values = [(result.ax, result.bx) for result in found if isinstance(result, Result)]
    assert values[0] == values[5] == values[8] == (0x004F, 0x0003)
    assert values[2] == (0x004F, 0x4144)
    assert values[1][0] == values[4][0] == 0x004F and values[3][0] == 0x014F
    assert values[9][0] == 0x014F and values[10][0] == 0x0100


def test_a_mode_is_shown(tmp_path: Path) -> None:
    guest = start(tmp_path, probe_disk([call(0x10, eax=0x4F02, ebx=0x4114)]))
    guest.expect_status(1, max_time="5s")
    picture = guest.vm.platform.vbe.picture()
    assert picture is not None and picture.mode == VideoMode(800, 600, 16)


def test_the_list_of_modes(tmp_path: Path) -> None:
    found = probe(tmp_path, call(0x10, eax=0x4F00, edi=BUFFER), Dump(BUFFER, 32))
    assert isinstance(found[1], bytes)
    at, segment = struct.unpack_from("<HH", found[1], 14)
    _, modes = probe(tmp_path, call(0x11), Dump(at, 64, segment))
    assert isinstance(modes, bytes)
    numbers = [number for (number,) in struct.iter_unpack("<H", modes)]
    numbers = numbers[: numbers.index(0xFFFF)]
    answers = probe(tmp_path, *(call(0x10, eax=0x4F01, ecx=number, edi=BUFFER) for number in numbers))
    assert all(isinstance(answer, Result) and answer.ax == 0x4F for answer in answers) and len(numbers) == 27
    name_at, name_segment = struct.unpack_from("<HH", found[1], 6)
    assert probe(tmp_path, Dump(name_at, 4, name_segment)) == [b"emu\0"]
