"""Graphics: the Bochs display interface, the PCI function's regions, and what a guest draws."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from emu.cli import main
from emu.devices.vbe import Vbe, VideoMode
from emu.devices.vga import Vga
from emu.dmm.p2m import PageType
from emu.machine.vm import VirtualMachine
from emu.observe.picture import picture_png
from emu.session import boot_vm
from emu.testing import boot
from tests.guests.programs import program

Image = pytest.importorskip("PIL.Image")

VGA = 0x8000_1000  # CONFIG_ADDRESS: 00:02.0
LFB, REGISTERS = 0xFD00_0000, 0xFEBF_0000
SET_MODE = """
    mov dx, 0x1CE
    mov ebx, offset mode
next:
    mov ax, [ebx]
    out dx, ax
    inc dx
    mov ax, [ebx + 2]
    out dx, ax
    dec dx
    add ebx, 4
    cmp ax, 0x41
    jne next
"""
MODE = "mode: .word 4, 0, 1, {width}, 2, {height}, 3, {depth}, 4, 0x41\n"
DRAW = """
    mov edi, 0xFD000000
    mov ecx, {dwords}
    mov eax, 0x00112233
fill:
    mov [edi], eax
    add eax, 0x00010203
    add edi, 4
    dec ecx
    jnz fill
    mov al, 0
    out 0xF4, al
"""


class Registers:
    def __init__(self) -> None:
        self.memory = bytearray(16 << 20)
        self.switched: list[bool] = []
        vga = Vga(lambda gpa, size: bytes(size), lambda: 0)
        self.vbe = Vbe(vga, self.switched.append, lambda at, size: bytes(self.memory[at : at + size]))

    def put(self, index: int, value: int) -> None:
        self.vbe.write(0, 2, index)
        self.vbe.write(1, 2, value)

    def get(self, index: int) -> int:
        self.vbe.write(0, 2, index)
        return self.vbe.read(1, 2)


def test_a_driver_finds_it() -> None:
    board = Registers()
    assert board.get(0) == 0xB0C5 and board.get(0xA) == 256
    board.put(0, 0xB0C0)
    assert board.get(0) == 0xB0C0
    board.put(0, 0x1234)
    assert board.get(0) == 0xB0C0
    board.put(4, 2)
    assert [board.get(index) for index in (1, 2, 3)] == [16000, 12000, 32]
    assert board.get(11) == 0 and not board.switched


def test_a_mode_and_its_picture() -> None:
    board = Registers()
    assert board.vbe.picture() is None
    for index, value in ((1, 4), (2, 3), (3, 32), (4, 0x41)):
        board.put(index, value)
    assert board.switched == [True] and board.get(6) == 4 and board.get(7) == 0xFFFF
    board.put(6, 8)  # twice as wide, and looked at in the middle
    board.put(8, 2)
    board.put(9, 1)
    board.memory[32 + 8 : 32 + 12] = b"\x11\x22\x33\x00"
    picture = board.vbe.picture()
    assert picture is not None and picture.mode == VideoMode(4, 3, 32) and picture.pitch == 32
    assert Image.open(io.BytesIO(picture_png(picture))).getpixel((0, 0)) == (0x33, 0x22, 0x11)
    board.put(4, 0)
    board.put(4, 0xC1)
    assert board.switched == [True, False] and board.get(6) == 4 and board.get(8) == 0


@pytest.mark.parametrize(
    ("depth", "data", "colour"),
    [
        (8, b"\x02", (0, 0xAA, 0)),
        (15, b"\x00\x7c", (255, 0, 0)),
        (16, b"\xe0\x07", (0, 255, 0)),
        (24, b"\x11\x22\x33", (0x33, 0x22, 0x11)),
        (32, b"\x11\x22\x33\xff", (0x33, 0x22, 0x11)),
    ],
)
def test_formats(depth: int, data: bytes, colour: tuple[int, int, int]) -> None:
    board = Registers()
    board.vbe.set_mode(VideoMode(3, 2, depth))
    at = 3 * len(data) + len(data)  # x 1, y 1
    board.memory[at : at + len(data)] = data
    picture = board.vbe.picture()
    assert picture is not None
    image = Image.open(io.BytesIO(picture_png(picture))).convert("RGB")
    assert image.size == (3, 2) and image.getpixel((1, 1)) == colour and image.getpixel((0, 1)) == (0, 0, 0)


def test_what_cannot_be_shown() -> None:
    board = Registers()
    board.vbe.set_mode(VideoMode(640, 480, 4))
    assert board.vbe.picture() is None
    board.vbe.set_mode(VideoMode(4096, 4096, 32))  # four times the memory
    picture = board.vbe.picture()
    assert picture is not None and picture.mode.height == 1024
    board.put(9, 60000)
    assert board.vbe.picture() is None


def test_state_survives_json() -> None:
    board, other = Registers(), Registers()
    board.vbe.set_mode(VideoMode(320, 200, 8))
    other.vbe.load_state(json.loads(json.dumps(board.vbe.state())))
    assert other.vbe.state() == board.vbe.state() and other.vbe.is_on


def configure(vm: VirtualMachine, register: int, value: int) -> int:
    vm.platform.bus.write(0xCF8, 4, VGA | register)
    before = vm.platform.bus.read(0xCFC, 4)
    vm.platform.bus.write(0xCFC, 4, value)
    return before


def new_vm(**options: object) -> VirtualMachine:
    return boot_vm("hello", **options)


def test_the_pci_function() -> None:
    vm = new_vm()
    assert configure(vm, 0, 0) == 0x1111_1234 and configure(vm, 8, 0) >> 8 == 0x030000
    assert configure(vm, 0x10, 0xFFFF_FFFF) == LFB | 8 and configure(vm, 0x10, LFB) == 0xFF00_0008
    assert configure(vm, 0x18, 0xFFFF_FFFF) == REGISTERS and configure(vm, 0x18, REGISTERS) == 0xFFFF_F000
    assert vm.platform.mmio.read(REGISTERS + 0x500, 2) == 0xB0C5
    assert vm.platform.mmio.read(REGISTERS + 0x514, 2) == 256
    assert vm.platform.mmio.read(REGISTERS + 0x604, 4) == 0x1E1E1E1E
    vm.platform.mmio.write(REGISTERS + 0x502, 2, 800)
    vm.platform.bus.write(0x1CE, 2, 1)
    assert vm.platform.bus.read(0x1CF, 2) == vm.platform.bus.read(0x1D0, 2) == 800
    vm.platform.mmio.write(REGISTERS + 0x408, 1, 5)  # DAC: entry to write
    assert vm.platform.mmio.read(REGISTERS + 0x408, 1) == vm.platform.bus.read(0x3C8, 1) == 5


def test_its_registers_move() -> None:
    vm = new_vm()
    configure(vm, 0x18, 0xE000_0000)
    assert vm.platform.mmio.read(0xE000_0500, 2) == 0xB0C5
    assert vm.platform.mmio.read(REGISTERS + 0x500, 2) == 0xFFFF
    assert vm.p2m.type(0xE0000) is PageType.MMIO and vm.p2m.type(REGISTERS >> 12) is PageType.HOLE
    configure(vm, 0x18, 0xFEE0_0000)  # the local APIC's
    assert vm.platform.mmio.read(0xFEE0_0030, 4) & 0xFF == 0x14 and vm.p2m.type(0xE0000) is PageType.HOLE
    configure(vm, 0x18, REGISTERS)
    configure(vm, 4, 0)  # decodes nothing
    assert vm.platform.mmio.read(REGISTERS + 0x500, 2) == 0xFFFF
    configure(vm, 4, 3)
    assert vm.platform.mmio.read(REGISTERS + 0x500, 2) == 0xB0C5


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_memory_is_there_from_the_first_mode_on_and_moves(mmu: str) -> None:
    vm = new_vm(mmu=mmu, audit=True)
    pool = vm.pool.size
    assert vm.memory.read(LFB, 4) == b"\xff" * 4
    vm.platform.vbe.set_mode(VideoMode(640, 480, 32))
    assert vm.memory.read(LFB, 4) == bytes(4) and vm.pool.size == pool + 4096
    vm.memory.write(LFB + 0x5000, b"drawn")
    configure(vm, 0x10, 0xFFFF_FFFF)  # how its size is found: other things are there
    assert vm.memory.read(LFB + 0x5000, 5) == b"\xff" * 5
    picture = vm.platform.vbe.picture()
    assert picture is not None and picture.data[0x5000:0x5005] == b"drawn"
    configure(vm, 0x10, 0xE000_0000)
    assert vm.memory.read(0xE000_5000, 5) == b"drawn" and vm.p2m.type(LFB >> 12) is PageType.HOLE
    picture = vm.platform.vbe.picture()
    assert picture is not None and picture.data[0x5000:0x5005] == b"drawn"
    vm.platform.vbe.set_mode(VideoMode(800, 600, 16))  # clears it
    assert vm.memory.read(0xE000_5000, 5) == bytes(5) and vm.pool.size == pool + 4096
    vm.audit()


def drawing(mode: str, width: int, height: int, depth: int, dwords: int) -> str:
    code = SET_MODE + DRAW.format(dwords=dwords) + MODE.format(width=width, height=height, depth=depth)
    return program(mode, code)


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("policies", [(), ("swap",)])
def test_a_guest_draws(mmu: str, policies: tuple[str, ...]) -> None:
    pool = "256K" if policies else None
    text = drawing("protected", 320, 200, 32, 320 * 200)
    guest = boot(text, ram="1M", mmu=mmu, policies=policies, pool=pool, audit=bool(policies))
    before = guest.vm.exits.counts
    assert guest.run("10ms") == 1
    picture = guest.vm.platform.vbe.picture()
    assert picture is not None and len(picture.data) == 320 * 200 * 4
    image = Image.open(io.BytesIO(picture_png(picture)))
    for index in (0, 1, 320 * 200 - 1):
        value = 0x112233 + 0x10203 * index
        assert image.getpixel((index % 320, index // 320)) == (value >> 16 & 255, value >> 8 & 255, value & 255)
    pages = 320 * 200 * 4 // 4096 + 1
    if not policies:
        assert guest.vm.exits.counts["need"] - before["need"] < 2 * pages  # a page at a time, not a store


def test_a_reset_switches_it_off(tmp_path: Path) -> None:
    vm = new_vm()
    vm.platform.vbe.set_mode(VideoMode(640, 480, 32))
    configure(vm, 0x10, 0xE000_0000)
    vm.memory.write(0xE000_0000, b"drawn")
    vm.platform.reset()
    assert vm.platform.vbe.picture() is None and vm.memory.read(LFB, 5) == b"drawn"


def test_screen_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "draw.s", tmp_path / "screen.png"
    path.write_text(drawing("protected", 320, 200, 32, 1000))
    assert main(["run", str(path), "--screen", str(picture)]) == 1
    assert Image.open(picture).size == (320, 200)
    assert main(["run", str(path), "--screen", "-"]) == 1
    assert "graphics, 320x200 with 32 bits a pixel" in capsys.readouterr().out
