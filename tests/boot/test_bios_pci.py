"""PCI BIOS: by INT 1Ah against SeaBIOS, and by the 32-bit service directory."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from emu.boot.low_memory import bios_rom
from emu.testing import boot
from tests.boot.bios_disks import RAM, Result, call, probe, probe_disk, probe_on_qemu, results
from tests.boot.kernels import Load, code, elf, header1
from tests.oracles.qemu_guest import QEMU, have_qemu

BASE = 0x10_0000
PRESENT, FIND_DEVICE, FIND_CLASS, READ_BYTE, READ_WORD, READ_DWORD = 0xB101, 0xB102, 0xB103, 0xB108, 0xB109, 0xB10A
WRITE_BYTE, WRITE_WORD, WRITE_DWORD = 0xB10B, 0xB10C, 0xB10D
LATENCY = 0x0D  # a register of the ISA bridge that takes what is written

STEPS = [
    call(0x1A, eax=PRESENT),
    call(0x1A, eax=FIND_DEVICE, edx=0x8086, ecx=0x1237, esi=0),
    call(0x1A, eax=FIND_DEVICE, edx=0x8086, ecx=0x7113, esi=0),
    call(0x1A, eax=FIND_DEVICE, edx=0x8086, ecx=0x7113, esi=1),
    call(0x1A, eax=FIND_DEVICE, edx=0x1234, ecx=0x5678, esi=0),
    call(0x1A, eax=FIND_CLASS, ecx=0x06_0100, esi=0),
    call(0x1A, eax=FIND_CLASS, ecx=0x06_0100, esi=1),
    call(0x1A, eax=READ_DWORD, ebx=0x0008, edi=0),
    call(0x1A, eax=READ_WORD, ebx=0x0008, edi=2),
    call(0x1A, eax=READ_BYTE, ebx=0x0008, edi=0x0E),
    call(0x1A, eax=READ_DWORD, ebx=0x00F8, edi=0),
    call(0x1A, eax=WRITE_DWORD, ebx=0x0008, ecx=0, edi=0x60),
    call(0x1A, eax=WRITE_BYTE, ebx=0x0008, ecx=0x8B, edi=0x61),
    call(0x1A, eax=WRITE_WORD, ebx=0x0008, ecx=0x0B0A, edi=0x62),
    call(0x1A, eax=READ_DWORD, ebx=0x0008, edi=0x60),
]


def answer(number: int, found: Result) -> tuple[object, ...]:
    """What the specification says that a function answers."""
    said: tuple[object, ...] = (found.carry, found.ah)
    if number == PRESENT:
        return (*said, found.edx, found.al & 1, found.bx, found.ecx & 0xFF)
    if found.carry:
        return said
    if number in (FIND_DEVICE, FIND_CLASS):
        return (*said, found.bx)
    mask = {READ_BYTE: 0xFF, READ_WORD: 0xFFFF, READ_DWORD: 0xFFFF_FFFF}.get(number)
    return said if mask is None else (*said, found.ecx & mask)


def answers(found: list[Result | bytes]) -> list[tuple[object, ...]]:
    made = []
    for step, result in zip(STEPS, found, strict=True):
        assert isinstance(result, Result)
        made.append(answer(step.registers["eax"], result))
    return made


def test_what_programs_find(tmp_path: Path) -> None:
    said = answers(probe(tmp_path, *STEPS))
    assert said[0] == (False, 0, 0x2049_4350, 1, 0x0210, 0)
    assert said[1:7] == [
        (False, 0, 0x00), (False, 0, 0x0B), (True, 0x86), (True, 0x86), (False, 0, 0x08), (True, 0x86),
    ]  # fmt: skip
    assert said[7:11] == [(False, 0, 0x7000_8086), (False, 0, 0x7000), (False, 0, 0x80), (False, 0, 0xFFFF_FFFF)]
    assert said[14] == (False, 0, 0x0B0A_8B00)


def test_what_cannot_be(tmp_path: Path) -> None:
    found = probe(
        tmp_path,
        call(0x1A, eax=READ_WORD, ebx=8, edi=1), call(0x1A, eax=READ_DWORD, ebx=8, edi=2),
        call(0x1A, eax=WRITE_DWORD, ebx=8, edi=1), call(0x1A, eax=READ_BYTE, ebx=8, edi=0x100),
        call(0x1A, eax=FIND_DEVICE, edx=0xFFFF), call(0x1A, eax=0xB10E), call(0x1A, eax=0xB100),
    )  # fmt: skip
    said = [(result.carry, result.ah) for result in found if isinstance(result, Result)]
    assert said == [(True, 0x87)] * 4 + [(True, 0x83)] + [(True, 0x81)] * 2


@pytest.mark.skipif(not have_qemu(), reason=f"{QEMU} is not installed")
def test_it_answers_as_seabios_on_qemu(tmp_path: Path) -> None:
    there = results(probe_on_qemu(probe_disk(STEPS), RAM >> 20))
    assert answers(probe(tmp_path, *STEPS)) == answers(there)


def test_the_directory_has_its_checksum() -> None:
    rom = bios_rom(RAM)
    places = [at for at in range(0, len(rom), 16) if rom[at : at + 4] == b"_32_"]
    assert len(places) == 1
    header = rom[places[0] : places[0] + 16]
    assert not sum(header) & 0xFF
    entry, revision, length = struct.unpack_from("<IBB", header, 4)
    assert (revision, length) == (0, 1) and 0xF_0000 <= entry < 0x10_0000


KERNEL = """
start:
    mov esp, 0x90000
    mov esi, 0xE0000
search:
    cmp dword ptr [esi], 0x5F32335F # "_32_"
    je found
    add esi, 16
    cmp esi, 0x100000
    jb search
    jmp wrong
found:
    mov edi, [esi + 4]
    mov eax, 0x12345678             # no such service
    xor ebx, ebx
    push cs
    call edi
    movzx eax, al
    print_hex eax
    print "\\n"
    mov edi, [esi + 4]
    mov eax, 0x49435024             # "$PCI"
    xor ebx, ebx
    push cs
    call edi
    test al, al
    jnz wrong
    print_hex ebx
    print_hex ecx
    print "\\n"
    add ebx, edx
    mov esi, ebx
    mov eax, 0xB102
    mov ecx, 0x7113
    mov edx, 0x8086
    push esi
    mov edi, esi
    xor esi, esi
    push cs
    call edi
    pop esi
    jc wrong
    movzx ebx, bx
    print_hex ebx
    print "\\n"
    mov eax, 0xB10A
    mov edi, 0
    push cs
    call esi
    jc wrong
    print_hex ecx
    mov al, 0
    out PORT_EXIT, al
wrong:
    mov al, 1
    out PORT_EXIT, al
    hlt
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_kernel_in_protected_mode_calls_it(tmp_path: Path, mmu: str) -> None:
    header = header1()
    data = header + code(tmp_path, KERNEL, BASE + len(header))
    path = tmp_path / "kernel"
    path.write_bytes(elf([Load(BASE, data, len(data) + 0x1000)], BASE + len(header)))
    guest = boot(path, ram="2M", mmu=mmu)
    assert guest.run(max_time="10ms") == 1, guest.describe()
    assert guest.console.split() == ["0x00000080", "0x000f00000x00010000", "0x0000000b", "0x71138086"]
