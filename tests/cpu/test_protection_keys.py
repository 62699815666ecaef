"""Protection keys for user and supervisor pages (PKU, PKS) and 5-level paging, as a guest at CPL 0 sees them."""

from __future__ import annotations

import ctypes
import struct

import pytest

from emu.bench.longmode import DATA, GDT, PML4, USER_CODE, USER_DATA, USER_STACK
from emu.engine.cpustate import PKRU
from emu.machine.vm import VirtualMachine
from tests.cpu.attempts import CR0, CR4, GP, PF, PML5, UD, Attempts, move_to, results

MMUS = ("shadow", "nested")
OSXSAVE, PKE, PKS = 1 << 18, 1 << 22, 1 << 24
IA32_PKRS = 0x6E1
OK, REFUSED = (0, 0), (GP, 0)
PAGE = DATA + 0x2000  # a page of its own, with key 3
ENTRY = PML4 + 0x3000 + 8 * 2
USER_ENTRY, SUPERVISOR_ENTRY = PAGE | 3 << 59 | 7, PAGE | 3 << 59 | 3
NO_ACCESS, NO_WRITES = 1 << 6, 2 << 6  # for key 3
READ, WRITE = f"mov rbx, [{PAGE:#x}]", f"mov byte ptr [{PAGE:#x}], 1"
TO_USER = (
    f"push {USER_DATA}; push {USER_STACK}; push 0x3202; push {USER_CODE}; lea rcx, [rip + user]; push rcx; iretq; user:"
)


def wrpkru(value: int) -> str:
    return f"mov eax, {value:#x}; xor ecx, ecx; xor edx, edx; wrpkru"


def wrpkrs(value: int) -> str:
    return f"mov ecx, {IA32_PKRS:#x}; mov eax, {value:#x}; xor edx, edx; wrmsr"


def accesses(program: Attempts) -> Attempts:
    return program.do(f"mov rsi, {PAGE}").attempt("mov rbx, [rsi]").attempt("mov byte ptr [rsi], 1")


def run(program: Attempts, mmu: str, entry: int) -> list[tuple[int, int]]:
    vm = program.build(mmu=mmu)
    vm.memory.write(ENTRY, struct.pack("<Q", entry))
    return results(vm, program.count)


def test_the_registers() -> None:
    program = Attempts().do("xor ecx, ecx; xor edx, edx; xor eax, eax").attempt("rdpkru").attempt("wrpkru")
    program.do(move_to("cr4", CR4 | PKE)).attempt(wrpkru(0xDEAD_BEEC)).attempt("rdpkru")
    program.do("mov r8, rax; mov r9, rdx; mov ecx, 1").attempt("rdpkru").attempt("wrpkru").do("xor ecx, ecx; inc edx")
    program.attempt("wrpkru").do("mov eax, 7; xor ecx, ecx; cpuid; mov r10, rcx")
    vm = program.build()
    expected = [(UD, 0), (UD, 0), OK, OK, REFUSED, REFUSED, REFUSED]
    assert results(vm, program.count) == expected
    assert (vm.cpu.r8, vm.cpu.r9, vm.cpu.r10 >> 3 & 3) == (0xDEAD_BEEC, 0, 3)  # PKU and OSPKE
    assert ctypes.c_uint32.from_address(vm.processor.engine.env + PKRU).value == 0xDEAD_BEEC

    program = Attempts().attempt(wrpkrs(0x1234)).do("xor eax, eax").attempt("rdmsr").do("mov r8, rax")
    program.do("inc edx").attempt("wrmsr")
    vm = program.build()
    assert results(vm, 3) == [OK, OK, REFUSED] and vm.cpu.r8 == 0x1234
    assert Attempts().attempt(wrpkrs(0)).run(cpu=None) == [REFUSED]


@pytest.mark.parametrize("mmu", MMUS)
def test_user_pages(mmu: str) -> None:
    """Rights change with PKRU alone, whatever the TLB holds; CPL 0 is held to them, too, to WD with CR0.WP."""
    program = accesses(Attempts().do(move_to("cr4", CR4 | PKE)))
    for rights in (NO_ACCESS, NO_WRITES, 0, 0xFFFF_FFFF & ~(3 << 6 | 3), NO_WRITES):
        accesses(program.do(wrpkru(rights)))
    accesses(program.do(move_to("cr0", CR0 & ~(1 << 16))))
    accesses(program.do(wrpkru(NO_ACCESS)))
    accesses(program.do(move_to("cr4", CR4)))
    read, write = (PF, 0x21), (PF, 0x23)
    expected = [OK, OK, read, write, OK, write, OK, OK, OK, OK, OK, write, OK, OK, read, write, OK, OK]
    assert run(program, mmu, USER_ENTRY) == expected


@pytest.mark.parametrize("mmu", MMUS)
def test_user_pages_at_cpl_3(mmu: str) -> None:
    program = Attempts().do(move_to("cr0", CR0 & ~(1 << 16))).do(move_to("cr4", CR4 | PKE)).do(TO_USER)
    for rights in (0, NO_WRITES, NO_ACCESS):
        accesses(program.do(wrpkru(rights)))
    assert run(program, mmu, USER_ENTRY) == [OK, OK, OK, (PF, 0x27), (PF, 0x25), (PF, 0x27)]


@pytest.mark.parametrize("mmu", MMUS)
def test_supervisor_pages(mmu: str) -> None:
    program = accesses(Attempts().do(move_to("cr4", CR4 | PKS)))
    for rights in (NO_ACCESS, NO_WRITES, 0, NO_WRITES):
        accesses(program.do(wrpkrs(rights)))
    accesses(program.do(move_to("cr0", CR0 & ~(1 << 16))))
    accesses(program.do(wrpkrs(NO_ACCESS)).do(move_to("cr4", CR4 | PKE)))
    accesses(program.do(wrpkru(NO_ACCESS)))
    read, write = (PF, 0x21), (PF, 0x23)
    expected = [OK, OK, read, write, OK, write, OK, OK, OK, write, OK, OK, OK, OK, OK, OK]
    assert run(program, mmu, SUPERVISOR_ENTRY) == expected


@pytest.mark.parametrize("mmu", MMUS)
def test_code_in_pages_without_access(mmu: str) -> None:
    """Fetches have no key: execute-only memory."""
    program = Attempts().do(f"mov rsi, {PAGE}; mov byte ptr [rsi], 0xC3").do(move_to("cr4", CR4 | PKE))
    program.do(wrpkru(NO_ACCESS)).attempt("call rsi").attempt("mov bl, [rsi]").attempt("call rsi")
    assert run(program, mmu, USER_ENTRY) == [OK, (PF, 0x21), OK]


@pytest.mark.parametrize("mmu", MMUS)
def test_large_pages_with_different_keys(mmu: str) -> None:
    """Two entries map the same 2 MiB with different keys: each gva has its own."""
    first, second = 0x1400000, 0x1600000
    program = Attempts().do(move_to("cr4", CR4 | PKE)).do(f"mov rsi, {first}; mov rdi, {second}")
    for rights in (0, 1 << 2, 1 << 4, 2 << 2):
        program.do(wrpkru(rights))
        for access in ("mov al, [rsi]", "mov al, [rdi]", "mov [rsi], al", "mov [rdi], al"):
            program.attempt(access)
    vm = program.build(mmu=mmu)
    for gva, key in ((first, 1), (second, 2)):
        vm.memory.write(PML4 + 0x2000 + 8 * (gva >> 21), struct.pack("<Q", 0x1000000 | key << 59 | 0x87))
    read, write = (PF, 0x21), (PF, 0x23)
    expected = [OK] * 4 + [read, OK, write, OK] + [OK, read, OK, write] + [OK, OK, write, OK]
    assert results(vm, program.count) == expected
    vm.audit()


def test_pkru_is_extended_state() -> None:
    """XSAVE keeps it as component 9, XRSTOR puts it back; CPUID says where (SDM vol. 1, 13.5.7)."""
    program = Attempts().do(move_to("cr4", CR4 | PKE | OSXSAVE))
    program.do("xor ecx, ecx; xor edx, edx; mov eax, 0x203; xsetbv").do(wrpkru(0x5555_5554))
    program.do(f"mov rdi, {DATA}; mov eax, 0x200; xor edx, edx; xsave [rdi]").do(wrpkru(NO_ACCESS))
    accesses(program).do("mov eax, 0x200; xor edx, edx; xrstor [rdi]").do("xor ecx, ecx; rdpkru; mov r8, rax")
    accesses(program).do("mov eax, 0xD; mov ecx, 9; cpuid; mov r9, rax; mov r10, rbx")
    program.do("mov eax, 0xD; xor ecx, ecx; cpuid; mov r11, rax")
    vm = program.build()
    vm.memory.write(ENTRY, struct.pack("<Q", USER_ENTRY))
    denied = [(PF, 0x21), (PF, 0x23)]
    assert results(vm, 4) == denied + denied
    assert (vm.cpu.r8, vm.cpu.r9, vm.cpu.r10, vm.cpu.r11) == (0x5555_5554, 8, 0xA80, 0x203)
    assert struct.unpack("<I", vm.memory.read(DATA + 0xA80, 4)) == (0x5555_5554,)


# --- 5-level paging ---------------------------------------------------------------------------------------------


def five_levels(program: Attempts, mmu: str) -> VirtualMachine:
    """With the lower half's first 256 TiB once more from 2**55 on, and from -2**56."""
    vm = program.build(mmu=mmu, five_levels=True)
    for index in (0x80, 0x100):
        vm.memory.write(PML5 + 8 * index, struct.pack("<Q", PML4 | 7))
    return vm


@pytest.mark.parametrize("mmu", MMUS)
def test_five_levels(mmu: str) -> None:
    program = Attempts().do("mov rax, 0x1234; mov [rdi], rax")
    high = [1 << 55, 0xFF << 56]
    for at in high:
        program.do(f"mov rsi, {at | DATA:#x}").attempt("mov r8, [rsi]").attempt("mov byte ptr [rsi + 8], 1")
    for at in (1 << 56, 1 << 57, 0xFE << 56, 1 << 63):
        program.do(f"mov rsi, {at | DATA:#x}").attempt("mov r9, [rsi]")
    for at in (1 << 47, 1 << 54):  # canonical now, and not mapped
        program.do(f"mov rsi, {at | DATA:#x}").attempt("mov r9, [rsi]")
    program.do("mov r10, cr2").do(f"mov rsi, {1 << 55 | PAGE:#x}; mov byte ptr [rsi], 0xC3").attempt("call rsi")
    vm = five_levels(program, mmu)
    expected = [OK] * 4 + [REFUSED] * 4 + [(PF, 0), (PF, 0), OK]
    assert results(vm, program.count) == expected
    assert (vm.cpu.r8, vm.cpu.r10) == (0x1234, 1 << 54 | DATA)
    assert struct.unpack("<Q", vm.memory.read(PML5, 8))[0] & 0x20  # accessed
    vm.audit()


@pytest.mark.parametrize("mmu", MMUS)
def test_reserved_bits_of_the_fifth_level(mmu: str) -> None:
    program = Attempts()
    for bit in (7, 40, 51):
        entry = PML4 | 7 | 1 << bit
        program.do(f"mov rax, {entry:#x}; mov rsi, {PML5 + 8}; mov [rsi], rax; mov rax, cr3; mov cr3, rax")
        program.do(f"mov rsi, {1 << 48 | DATA:#x}").attempt("mov r9, [rsi]").attempt("mov [rsi], r9")
    assert results(five_levels(program, mmu), 6) == [(PF, 9), (PF, 0xB)] * 3


BASES = (0xFFFF_AAAA_AAAA_A000, 0xFFAA_AAAA_AAAA_A000, 0xAAAA_AAAA_AAAA_A000)  # 48 bits, 57 bits, neither


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("cpu", ["EPYC", "EPYC,+la57"])
def test_bases_are_as_wide_as_the_processor_can(cpu: str, mmu: str) -> None:
    """CR4.LA57 is clear: what counts is whether it could be set."""
    program = Attempts().do(f"mov rsi, {DATA}; mov word ptr [rsi], 0x7F; mov rbx, {GDT}; mov [rsi + 2], rbx")
    program.do(f"lgdt [rsi]; mov rdi, {GDT + 0x40}")
    for base in BASES:
        low = 0x0000_8200_0000_0067 | (base & 0xFF_FFFF) << 16 | (base >> 24 & 0xFF) << 56
        program.do(f"mov rbx, {low}; mov [rdi], rbx; mov ebx, {base >> 32}; mov [rdi + 8], rbx; mov ax, 0x40")
        program.attempt("lldt ax")
        program.do("mov [rsi + 0x40], ax").attempt("lldt [rsi + 0x40]")
        program.do(f"mov ecx, 0xC0000102; mov eax, {base & 0xFFFF_FFFF}; mov edx, {base >> 32}").attempt("wrmsr")
    wide = OK if "la57" in cpu else REFUSED
    table = OK if "la57" in cpu else (GP, 0x40)
    vm = program.build(cpu=cpu, mmu=mmu)
    assert results(vm, program.count) == [OK, OK, OK, table, table, wide, (GP, 0x40), (GP, 0x40), REFUSED]
