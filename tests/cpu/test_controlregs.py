"""Values that control, debug and model-specific registers refuse, and registers that do not exist."""

from __future__ import annotations

import pytest

from emu.engine.vectors import VECTOR_DB, VECTOR_GP, VECTOR_UD
from tests.cpu.probing import Fault, prepare, probe, run

PG, CD, NW, WP, PE = 1 << 31, 1 << 30, 1 << 29, 1 << 16, 1
NONCANONICAL = 0xAAAA_0000_0000_0000


@pytest.mark.parametrize(
    "mode, code, vector",
    [
        ("protected", f"mov eax, cr0; or eax, {NW}; mov cr0, eax", VECTOR_GP),
        ("protected", f"mov eax, cr0; or eax, {NW | CD}; mov cr0, eax", None),
        ("real", f"mov eax, {PG}; mov cr0, eax", VECTOR_GP),
        ("long", "mov rax, cr0; btr rax, 31; mov cr0, rax", VECTOR_GP),
        ("long", "mov rax, cr0; bts rax, 32; mov cr0, rax", VECTOR_GP),
        ("long", "mov rax, cr0; mov cr0, rax", None),
        ("long", "mov rax, cr4; btr rax, 5; mov cr4, rax", VECTOR_GP),  # PAE
        ("long", "mov rax, cr4; bts rax, 13; mov cr4, rax", VECTOR_GP),  # VMXE
        ("long", "mov rax, cr4; bts rax, 40; mov cr4, rax", VECTOR_GP),
        ("protected", "mov eax, cr4; bts eax, 11; mov cr4, eax", VECTOR_GP),  # UMIP, which the model lacks
        ("protected", "mov eax, cr4; bts eax, 31; mov cr4, eax", VECTOR_GP),
        ("protected", "mov eax, 0x620; mov cr4, eax", None),
        ("long", "mov rax, cr3; bts rax, 40; mov cr3, rax", VECTOR_GP),
        ("long", "mov rax, cr3; mov cr3, rax", None),
        ("long", "mov eax, 16; mov cr8, rax", VECTOR_GP),
        ("long", "mov rax, cr2; mov cr2, rax", None),
        ("long", "mov dr0, rax; mov rax, dr6", None),
        ("long", "mov rax, 0x100000400; mov dr7, rax", VECTOR_GP),
        ("long", "mov rax, 0x100000000; mov dr6, rax", VECTOR_GP),
        ("long", "mov rax, 0x100000000; mov dr0, rax", None),
        ("long", "mov rax, cr4; or rax, 8; mov cr4, rax; mov rax, dr4", VECTOR_UD),  # DE
        ("long", "mov rax, dr4", None),
        ("protected", "mov eax, 0x2400; mov dr7, eax; mov eax, dr0", VECTOR_DB),
        ("protected", "mov eax, 0x2400; mov dr7, eax; mov dr3, eax", VECTOR_DB),
    ],
)
def test_what_a_control_register_refuses(mode: str, code: str, vector: int | None) -> None:
    assert probe(code, mode) == vector


def test_general_detect() -> None:
    bench = prepare("long")
    assert run(bench, "mov eax, 0x2400; mov dr7, rax; xor eax, eax; mov rcx, dr0", "long") == Fault(VECTOR_DB, -1, 10)
    assert bench.cpu.dr6 & 1 << 13 and not bench.cpu.dr7 & 1 << 13


@pytest.mark.parametrize(
    "msr, value, vector",
    [
        (0xDEAD, 0, VECTOR_GP),
        (0xC000_0080, 0x501, None),
        (0xC000_0080, 0x503, VECTOR_GP),
        (0xC000_0080, 0x401, VECTOR_GP),  # LME, while paging is on
        (0xC000_0082, NONCANONICAL, VECTOR_GP),
        (0xC000_0083, NONCANONICAL, VECTOR_GP),
        (0xC000_0100, NONCANONICAL, VECTOR_GP),
        (0xC000_0101, NONCANONICAL, VECTOR_GP),
        (0xC000_0102, NONCANONICAL, VECTOR_GP),
        (0xC000_0102, 0xFFFF_8000_0000_0000, None),
        (0x175, NONCANONICAL, VECTOR_GP),
        (0x176, NONCANONICAL, VECTOR_GP),
        (0xC000_0103, 1 << 32, VECTOR_GP),
        (0x277, 0x0007_0406_0007_0406, None),
        (0x277, 0x0202_0202_0202_0202, VECTOR_GP),
        (0x277, 0x08, VECTOR_GP),
        (0x2FF, 0xC06, None),
        (0x2FF, 0x802, VECTOR_GP),
        (0x2FF, 0x1000, VECTOR_GP),
        (0x200, 0x80000006, None),
        (0x200, 0x80000003, VECTOR_GP),
        (0x200, 1 << 40, VECTOR_GP),
        (0x201, 0xFF_8000_0800, None),
        (0x201, 0x400, VECTOR_GP),
        (0x250, 0x0606060606060606, None),
        (0x26F, 0x0606060606060602, VECTOR_GP),
        (0xFE, 0, VECTOR_GP),
        (0x400, 0, None),  # IA32_MC0_CTL
        (0x424, 0xFFFF_FFFF_FFFF_FFFF, None),
        (0x410, 0xFFFF_FFFF_FFFF_FBFF, None),
        (0x424, NONCANONICAL, VECTOR_GP),
        (0x401, 0, None),  # IA32_MC0_STATUS
        (0x401, 1, VECTOR_GP),
        (0x425, 1 << 63, VECTOR_GP),
        (0x402, 0xFFFF_FFFF_FFFF_FFFF, None),
    ],
)
def test_what_a_model_specific_register_refuses(msr: int, value: int, vector: int | None) -> None:
    write = f"mov ecx, {msr:#x}; mov eax, {value & 0xFFFF_FFFF:#x}; mov edx, {value >> 32:#x}; wrmsr"
    assert probe(write) == vector


@pytest.mark.parametrize("msr, vector", [(0xDEAD, VECTOR_GP), (0x3A, VECTOR_GP), (0xFE, None), (0x8B, None)])
def test_which_registers_can_be_read(msr: int, vector: int | None) -> None:
    assert probe(f"mov ecx, {msr:#x}; rdmsr") == vector


@pytest.mark.parametrize("code", ["lgdt [rsi]", "lidt [rsi]", "mov ebx, 2; lidt [rsi + 4 * rbx - 8]"])
def test_tables_have_canonical_bases(code: str) -> None:
    for base, vector in ((NONCANONICAL, VECTOR_GP), (0xFFFF_8000_0000_0000, None)):
        bench = prepare("long")
        bench.cpu.rsi = 0x20000
        bench.write(0x20000, (0x1FF).to_bytes(2, "little") + base.to_bytes(8, "little"))
        fault = run(bench, code, "long")
        assert (None if fault is None else fault.vector) == vector


@pytest.mark.parametrize("register", ["fs", "gs"])
def test_segment_bases_are_canonical(register: str) -> None:
    enable = "mov rax, cr4; bts rax, 16; mov cr4, rax;"
    assert probe(f"{enable} wr{register}base rcx", rcx=NONCANONICAL) == VECTOR_GP
    assert probe(f"{enable} wr{register}base ecx", rcx=NONCANONICAL) is None
    assert probe(f"{enable} wr{register}base rcx", rcx=0x1234) is None


@pytest.mark.parametrize("mode", ["real", "protected"])
def test_smsw_stores_all_of_cr0_in_a_register_of_32_bits(mode: str) -> None:
    bench = prepare(mode)
    code = f"mov eax, -1; mov edx, -1; mov ebx, cr0; or ebx, {CD}; mov cr0, ebx; smsw eax; smsw dx"
    assert run(bench, code, mode) is None
    assert bench.cpu.rax == bench.cpu.rbx and bench.cpu.rbx & CD
    assert bench.cpu.rdx == 0xFFFF_0000 | bench.cpu.rbx & 0xFFFF
