"""The guests of firmware/: the table is sound, all assemble, and what Keystone gets wrong came out right."""

from __future__ import annotations

import re

import pytest
from capstone import CS_ARCH_X86, CS_MODE_16, CS_MODE_32, CS_MODE_64, Cs, CsInsn

from emu.asm.assembler import Image
from emu.boot import firmware
from emu.errors import BadInput

GUESTS = firmware.guests()
END_OF_LOW_MEMORY = 0x10000  # guests keep their labels in 16 bits


def instructions(image: Image, label: str, mode: int, count: int) -> list[CsInsn]:
    start = image.symbols[label]
    return list(Cs(CS_ARCH_X86, mode).disasm(image.data[start - image.load :], start, count))


def test_the_table_names_every_source() -> None:
    directory = firmware.firmware_directory()
    assert sorted(guest.source.name for guest in GUESTS.values()) == sorted(p.name for p in directory.glob("*.s"))
    for name, guest in GUESTS.items():
        assert guest.name == name
        assert guest.summary and "\n" not in guest.summary
        assert guest.ram_bytes % 4096 == 0 and guest.ram_bytes >= 1 << 20


def test_defaults_in_the_table_are_those_of_the_source() -> None:
    for guest in GUESTS.values():
        source = guest.source.read_text(encoding="utf-8")
        given = {name: int(value) for name, value in re.findall(r'parameter "(\w+)", (\d+)', source)}
        assert given == {name: parameter.default for name, parameter in guest.parameters.items()}


@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_assembles(name: str) -> None:
    image = firmware.load(name)
    assert image.load == 0x8000
    assert image.end <= END_OF_LOW_MEMORY
    assert image.data == firmware.load(name).data


@pytest.mark.parametrize("name", GUESTS)
def test_the_way_to_protected_mode(name: str) -> None:
    image = firmware.load(name)
    first = next(Cs(CS_ARCH_X86, CS_MODE_16).disasm(image.data, image.load))
    assert first.mnemonic == "jmp" and int(first.op_str, 16) == image.symbols["start"]
    lgdt, get, change, put, jump = instructions(image, "start", CS_MODE_16, 5)
    assert (lgdt.mnemonic, lgdt.op_str) == ("lgdt", f"[{image.symbols['gdt_pointer']:#x}]")
    assert (get.op_str, change.op_str, put.op_str) == ("eax, cr0", "eax, 1", "cr0, eax")
    assert jump.mnemonic == "ljmp" and jump.op_str == f"8:{jump.address + jump.size:#x}"
    at = image.symbols["gdt_pointer"] - image.load
    limit, base = (
        int.from_bytes(image.data[at : at + 2], "little"),
        int.from_bytes(image.data[at + 2 : at + 6], "little"),
    )
    assert base == image.symbols["gdt"] and limit == image.symbols["gdt_end"] - image.symbols["gdt"] - 1


def test_exception_returns_have_the_size_of_their_mode() -> None:
    handler = instructions(firmware.load("paging32"), "page_fault_announced", CS_MODE_32, 7)
    assert handler[-1].mnemonic == "iretd" and handler[-1].size == 1
    handler = instructions(firmware.load("long64"), "software_interrupt", CS_MODE_64, 5)
    assert handler[-1].mnemonic == "iretq"


def test_the_idt_is_loaded_with_a_full_base() -> None:
    loads = [i for i in instructions(firmware.load("paging32"), "install_idt", CS_MODE_32, 20) if i.mnemonic == "lidt"]
    assert len(loads) == 1 and loads[0].bytes[:3] == b"\x0f\x01\x1d"  # no operand-size prefix


def test_system_calls_return_to_64_bit_code() -> None:
    image = firmware.load("long64")
    start, end = image.symbols["system_call"] - image.load, image.symbols["software_interrupt"] - image.load
    assert image.data[start : start + 3] == b"\x0f\x01\xf8"  # swapgs
    assert image.data[end - 6 : end] == b"\x0f\x01\xf8\x48\x0f\x07"  # swapgs, sysretq


def test_an_unknown_guest() -> None:
    with pytest.raises(BadInput, match="there are hello, "):
        firmware.load("nosuch")
