"""pc-testdev: by its buses, and from a guest."""

from __future__ import annotations

import json

import pytest

import emu
from emu.devices import testdev
from emu.devices.bus import MmioBus, PortBus
from emu.errors import BadInput
from emu.testing import boot
from tests.guests.programs import program

MEMORY = 0xFF00_0000


class Line:
    def __init__(self) -> None:
        self.level = False

    def set(self, level: bool) -> None:
        self.level = level


class Board:
    def __init__(self) -> None:
        self.ports, self.mmio = PortBus(), MmioBus()
        self.lines = [Line() for _ in range(24)]
        testdev.plug_in(self.ports, self.mmio, self.lines.__getitem__)


def test_ports_read_as_they_were_written() -> None:
    ports = Board().ports
    ports.write(0xE0, 4, 0x12345678)
    ports.write(0xE1, 1, 0xAB)
    ports.write(0xE2, 2, 0xCDEF)
    assert ports.read(0xE0, 4) == 0xCDEFAB78
    assert (ports.read(0xE1, 1), ports.read(0xE0, 2), ports.read(0xE1, 2)) == (0xAB, 0xAB78, 0xEFAB)
    assert [ports.read(0xE8 + n, 1) for n in range(4)] == [0x78, 0xFF, 0xEF, 0xCD]  # 0xE9 is for the console
    ports.write(0xEB, 1, 0x11)
    assert ports.read(0xE0, 4) == 0x11EFAB78
    ports.write(0xE4, 4, 0x1000)
    assert ports.read(0xE0, 4) == 0x11EFAB78


def test_a_port_for_each_line() -> None:
    board = Board()
    board.ports.write(0x2000 + 14, 1, 1)
    board.ports.write(0x2000 + 23, 1, 0x80)
    assert [n for n, line in enumerate(board.lines) if line.level] == [14, 23]
    board.ports.write(0x2000 + 14, 1, 0)
    assert [n for n, line in enumerate(board.lines) if line.level] == [23]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_memory_reads_as_it_was_written(size: int) -> None:
    mmio = Board().mmio
    value = 0x8877665544332211 & ((1 << 8 * size) - 1)
    for place in (MEMORY, MEMORY + 3, MEMORY + 0x10000 - size):
        mmio.write(place, size, value)
        assert mmio.read(place, size) == value
        assert mmio.read(place, 1) == 0x11


def test_state_survives_json() -> None:
    first, second = testdev.Scratch(bytearray(4)), testdev.Scratch(bytearray(4))
    first.write(1, 2, 0xBEEF)
    second.load_state(json.loads(json.dumps(first.state())))
    assert second.read(0, 4) == 0xBEEF00
    with pytest.raises(BadInput):
        second.load_state({})


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_guest_reaches_its_memory(mmu: str) -> None:
    code = """
    mov edi, 0xFF000123
    mov dword ptr [edi], 0x12345678
    lock add dword ptr [edi], 1
    mov eax, [edi]
    sub eax, 0x12345679
    out 0xF4, eax
    """
    assert boot(program("protected", code), devices=["testdev"], mmu=mmu, ram="1M").run("1ms") == 1
    assert boot(program("protected", code), mmu=mmu, ram="1M").run("1ms") != 1


def test_it_is_not_there_unless_asked_for() -> None:
    assert emu.boot_vm("hello").platform.bus.is_free(0xE0, 4)
    vm = emu.boot_vm("hello", devices=["testdev"])
    vm.platform.bus.write(0x200E, 1, 1)
    vm.platform.bus.write(0xA0, 1, 0x0A)
    assert vm.platform.bus.read(0xA0, 1) == 0x40  # a request at the second 8259
    with pytest.raises(BadInput, match="--device: 'tester' is none of serial2, testdev"):
        emu.boot_vm("hello", devices=["tester"])
