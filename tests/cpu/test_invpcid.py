"""INVPCID: its four types, its exceptions, its addresses."""

from __future__ import annotations

import pytest

from emu.bench.longmode import DATA, PML4, UNMAPPED, USER_CODE, USER_DATA, USER_STACK
from tests.cpu.attempts import CR4, GP, PF, UD, Attempts, move_to, results

MMUS = ("shadow", "nested")
PCIDE = 1 << 17
OK, REFUSED = (0, 0), (GP, 0)
OTHER, NON_CANONICAL = DATA + 0x2000, 0x1234 << 48


def invalidate(kind: int, pcid: int = 0, address: int = 0) -> str:
    """INVPCID with a descriptor at DATA."""
    return f"mov rdi, {DATA}; mov rbx, {pcid}; mov [rdi], rbx; mov rbx, {address}; mov [rdi + 8], rbx; mov rax, {kind}"


def outcomes(*descriptors: tuple[int, ...], pcide: bool = False) -> list[tuple[int, int]]:
    program = Attempts().do(move_to("cr4", CR4 | (PCIDE if pcide else 0)))
    for descriptor in descriptors:
        program.do(invalidate(*descriptor)).attempt("invpcid rax, [rdi]")
    return program.run()


def test_types_and_descriptors() -> None:
    fine = [(0, 0, OTHER), (1, 0, NON_CANONICAL), (2, 0, NON_CANONICAL), (3,), (2, 0xFFF), (3, 5)]
    assert outcomes(*fine) == outcomes(*fine, pcide=True) == [OK] * len(fine)
    wrong = [(4,), (1 << 32,), (2, 0x1000), (3, 1 << 63), (0, 0, NON_CANONICAL)]
    assert outcomes(*wrong) == outcomes(*wrong, pcide=True) == [REFUSED] * len(wrong)
    assert outcomes((0, 1, OTHER), (1, 0xFFF)) == [REFUSED] * 2
    assert outcomes((0, 1, OTHER), (1, 0xFFF), pcide=True) == [OK] * 2


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("kind", range(4))
def test_what_was_changed_is_seen(kind: int, mmu: str) -> None:
    """A page is looked at, mapped elsewhere, given up, and looked at again; it is global, which type 3 leaves alone."""
    entry = PML4 + 0x3000 + 8 * 2
    flag = 0 if kind == 3 else 0x100
    program = Attempts().do(move_to("cr4", CR4 | PCIDE | 0x80))
    program.do(f"mov rcx, {OTHER}; mov rax, 1; mov [rcx], rax; mov rax, 2; mov [rcx + 0x1000], rax")
    program.do(f"mov rsi, {entry}; mov rdx, {OTHER + 0x1007 | flag}; mov r8, [rcx]; mov [rsi], rdx")
    program.do(invalidate(kind, 0, OTHER)).attempt("invpcid rax, [rdi]").do("mov r9, [rcx]")
    vm = program.build(mmu=mmu)
    assert results(vm, 1) == [OK]
    assert (vm.cpu.r8, vm.cpu.r9) == (1, 2)


def test_addresses() -> None:
    """Each form reads the descriptor where it should: that one has a reserved bit set, all others are fine."""
    wrong = DATA + 0x3000
    program = Attempts().do(f"mov rdi, {wrong}; mov rbx, 0x1000; mov [rdi], rbx; mov rax, 2")
    program.do(f"mov rsi, 0x10; mov r9, -8; mov rbx, {wrong - 0x40}; mov r10, {wrong + 0x40}")
    forms = ["[rdi]", "[rbx + 0x40]", "[rbx + 4 * rsi]", "[rdi + r9 + 8]", "[r10 - 0x40]", "[edi]", "[r10 + 8 * r9]"]
    for form in forms:
        program.attempt(f"invpcid rax, {form}").attempt(f"invpcid rax, {form[:-1]} + 0x100]")
    program.do("mov r8, rsp; lea rsp, [rdi]").attempt("invpcid rax, [rsp]").do("mov rsp, r8")
    program.do("mov r9, 2").attempt("invpcid r9, [rdi]").attempt("invpcid r9, [rdi + 0x20]")
    program.attempt(".byte 0x66, 0x0F, 0x38, 0x82, 0x05, 0, 0, 0, 0")  # RIP-relative: code, which is no descriptor
    outcome = program.run()
    assert outcome[: 2 * len(forms)] == [REFUSED, OK] * len(forms)
    assert outcome[2 * len(forms) :] == [REFUSED, REFUSED, OK, REFUSED]


def test_segments() -> None:
    program = Attempts().do(f"mov ecx, 0xC0000101; mov eax, {DATA}; xor edx, edx; wrmsr")
    program.do(f"mov rdi, {DATA + 0x100}; mov rbx, 0x1000; mov [rdi], rbx; mov rax, 2; mov rdi, 0x100")
    program.attempt(".byte 0x65, 0x66, 0x0F, 0x38, 0x82, 0x07")
    program.attempt(".byte 0x65, 0x66, 0x0F, 0x38, 0x82, 0x47, 0x20")
    assert program.run() == [REFUSED, OK]


def test_encodings_that_are_none() -> None:
    program = Attempts().do(f"mov rdi, {DATA}; mov rax, 2")
    for code in (
        "0x0F, 0x38, 0x82, 0x07", "0x66, 0x0F, 0x38, 0x82, 0xC7", "0xF3, 0x66, 0x0F, 0x38, 0x82, 0x07",
        "0xF0, 0x66, 0x0F, 0x38, 0x82, 0x07", "0x66, 0xF2, 0x0F, 0x38, 0x82, 0x07", "0x66, 0x0F, 0x38, 0x83, 0x07",
    ):  # fmt: skip
        program.attempt(f".byte {code}")
    assert program.run() == [(UD, 0)] * 6


@pytest.mark.parametrize("mmu", MMUS)
def test_the_operand_may_fault(mmu: str) -> None:
    program = Attempts().do(f"mov rdi, {UNMAPPED}; mov rax, 2").attempt("invpcid rax, [rdi]").do("mov r8, cr2")
    program.attempt("invpcid rax, [rdi - 8]").do("mov r9, cr2")
    program.do(f"mov rdi, {NON_CANONICAL}").attempt("invpcid rax, [rdi]")
    vm = program.build(mmu=mmu)
    outcome = results(vm, 3)
    assert outcome == [(PF, 0), (PF, 0), REFUSED] and (vm.cpu.r8, vm.cpu.r9) == (UNMAPPED, UNMAPPED)


@pytest.mark.parametrize("mmu", MMUS)
def test_the_operand_may_have_to_be_fetched(mmu: str) -> None:
    """Its page has no frame yet: the instruction waits for the DMM and is executed again."""
    program = Attempts().do(f"mov rdi, {DATA + 0x20000}; mov rax, 2").attempt("invpcid rax, [rdi]")
    vm = program.build(mmu=mmu)
    assert vm.p2m.mfn((DATA + 0x20000) >> 12) <= 0
    assert results(vm, 1) == [OK] and vm.p2m.mfn((DATA + 0x20000) >> 12) > 0


def test_only_the_kernel_may() -> None:
    program = Attempts().do(f"mov rdi, {DATA}; mov rax, 2")
    program.do(
        f"push {USER_DATA}; push {USER_STACK}; push 0x3202; push {USER_CODE}; lea rcx, [rip + user]; push rcx; iretq;"
        "user:"
    )
    program.attempt("invpcid rax, [rdi]").attempt(".byte 0x66, 0x0F, 0x38, 0x82, 0xC7")
    assert program.run() == [REFUSED, (UD, 0)]
