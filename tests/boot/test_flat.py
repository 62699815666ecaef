"""Flat binaries: what memory and CPU look like before the first instruction."""

from __future__ import annotations

import struct

import pytest

from emu.boot.flat import BOOT_INFO, COMMAND_LINE_MAX, LOAD_ADDRESS, STACK_TOP, flat_guest
from emu.boot.guest import Guest
from emu.errors import BadInput
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine

RAM = 2 << 20


def booted(guest: Guest) -> VirtualMachine:
    vm = Machine(4 << 20).create_vm("vm0", RAM, mmu="nested")
    vm.boot(guest)
    return vm


def test_image_and_boot_information() -> None:
    guest = flat_guest("g", b"\xf4" * 10, RAM, "mode=1 x")
    page = guest.image.page(LOAD_ADDRESS >> 12)
    assert page[:11] == b"\xf4" * 10 + b"\0"
    info = guest.image.page(BOOT_INFO >> 12)
    assert struct.unpack("<Q", info[:8]) == (RAM,)
    assert info[8:].split(b"\0")[0] == b"mode=1 x"


@pytest.mark.parametrize(("load", "cs", "ip"), [(0x8000, 0, 0x8000), (0xFFF0, 0, 0xFFF0), (0x10000, 0x1000, 0)])
def test_entry_point(load: int, cs: int, ip: int) -> None:
    vm = booted(flat_guest("g", b"\xf4", RAM, load=load))
    cpu = vm.cpu
    assert (cpu.cs.selector, cpu.cs.base, cpu.rip) == (cs, cs << 4, ip)
    assert cpu.pc == load
    assert cpu.rsp == STACK_TOP
    assert [cpu.ds.selector, cpu.es.selector, cpu.ss.selector] == [0, 0, 0]
    assert cpu.bits == 16 and cpu.cpl == 0 and not cpu.interrupts_enabled
    assert vm.guest is not None and vm.guest.kind == "flat binary"


def test_nothing_is_resident_before_the_first_touch() -> None:
    assert booted(flat_guest("g", b"\xf4", RAM)).pool.used == 0


@pytest.mark.parametrize(
    ("data", "load", "append", "complaint"),
    [
        (b"", LOAD_ADDRESS, "", "empty"),
        (b"\xf4", LOAD_ADDRESS + 1, "", "multiple of 16"),
        (b"\xf4", 1 << 20, "", "below 1M"),
        (bytes(RAM), LOAD_ADDRESS, "", "beyond"),
        (b"\xf4", LOAD_ADDRESS, "x" * (COMMAND_LINE_MAX + 1), "at most 254 fit"),
    ],
)
def test_what_does_not_fit(data: bytes, load: int, append: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        flat_guest("g", data, RAM, append, load)


def test_the_longest_command_line_fits() -> None:
    info = flat_guest("g", b"\xf4", RAM, "x" * COMMAND_LINE_MAX).image.page(BOOT_INFO >> 12)
    assert info[8:].split(b"\0")[0] == b"x" * COMMAND_LINE_MAX
