"""MOV to control registers: what raises #GP, UMIP, PCIDs, PDPTE registers."""

from __future__ import annotations

import pytest

from emu.bench.longmode import DATA, PML4, USER_CODE, USER_DATA, USER_STACK
from emu.testing import boot
from tests.cpu.attempts import CR0, CR4, GP, UD, Attempts, move_to, results

MMUS = ("shadow", "nested")
PAE, UMIP, LA57, PCIDE, PKE, PKS = 1 << 5, 1 << 11, 1 << 12, 1 << 17, 1 << 22, 1 << 24
OK, REFUSED = (0, 0), (GP, 0)
TO_USER = (
    f"push {USER_DATA}; push {USER_STACK}; push 0x3202; push {USER_CODE}; lea rax, [rip + user]; push rax; iretq; user:"
)


def outcomes(register: str, *values: int, cpu: str | None = "max", before: str = "") -> list[tuple[int, int]]:
    """MOV of each value to a register, which gets back what it had."""
    program = Attempts().do(before or "nop").do(f"mov rbx, {register}")
    for value in values:
        program.attempt(move_to(register, value)).do(f"mov {register}, rbx")
    return program.run(cpu)


def test_reserved_bits_of_cr4_follow_from_the_model() -> None:
    never = [CR4 | 1 << bit for bit in (0, 1, 13, 14, 15, 19, 23, 25, 31, 32, 63)]
    assert outcomes("cr4", *never) == [REFUSED] * len(never)
    some = [CR4 | bit for bit in (UMIP, PCIDE, PKE, PKS)]
    assert outcomes("cr4", *some) == [OK] * 4
    assert outcomes("cr4", *some, cpu=None) == [REFUSED] * 4
    always = [CR4 | 1 << bit for bit in (2, 3, 4, 6, 7, 8, 16, 18)]
    assert outcomes("cr4", *always, cpu=None) == [OK] * len(always)


def test_long_mode_keeps_its_paging_mode() -> None:
    assert outcomes("cr4", CR4 & ~PAE, CR4 | LA57) == [REFUSED, REFUSED]
    program = Attempts().attempt(move_to("cr4", CR4)).attempt(move_to("cr4", CR4 | LA57 | 1 << 7))
    assert program.run(five_levels=True) == [REFUSED, OK]


def test_cr0() -> None:
    pg, cd, nw, pe = 1 << 31, 1 << 30, 1 << 29, 1
    values = CR0 & ~pg, CR0 & ~pe, CR0 | nw, CR0 | 1 << 32, CR0 | 1 << 63, CR0 | nw | cd, CR0 | cd, CR0 | 1 << 28
    assert outcomes("cr0", *values) == [REFUSED] * 5 + [OK] * 3


def test_ignored_bits_of_cr0_stay_clear() -> None:
    program = Attempts().do(f"{move_to('cr0', CR0 | 0x1FFA_FFC0)}; mov rbx, cr0; mov [{DATA}], rbx")
    vm = program.build()
    vm.run(1_000_000)
    assert int.from_bytes(vm.memory.read(DATA, 8), "little") == CR0


def test_cr3() -> None:
    bits = (40, 51, 52, 62)
    assert outcomes("cr3", *(PML4 | 1 << bit for bit in (*bits, 63))) == [REFUSED] * 5
    low = [PML4 | 1 << bit for bit in (0, 3, 4, 11)]
    assert outcomes("cr3", *low) == [OK] * 4


@pytest.mark.parametrize("mmu", MMUS)
def test_pcids(mmu: str) -> None:
    program = Attempts()
    program.do(move_to("cr3", PML4 | 8)).attempt(move_to("cr4", CR4 | PCIDE)).do(move_to("cr3", PML4))
    program.attempt(move_to("cr4", CR4 | PCIDE))
    program.attempt(move_to("cr3", PML4 | 0x123)).do(f"mov rbx, cr3; mov [{DATA}], rbx")
    program.attempt(move_to("cr3", PML4 | 0xABC | 1 << 63)).do(f"mov rbx, cr3; mov [{DATA + 8}], rbx")
    program.attempt(move_to("cr3", PML4 | 1 << 62)).attempt(move_to("cr0", CR0 & ~(1 << 31)))
    program.attempt(move_to("cr4", CR4)).attempt(move_to("cr4", CR4 | PCIDE))
    vm = program.build(mmu=mmu)
    assert results(vm, program.count) == [REFUSED, OK, OK, OK, REFUSED, REFUSED, OK, REFUSED]
    kept = vm.memory.read(DATA, 16)
    assert int.from_bytes(kept[:8], "little") == PML4 | 0x123
    assert int.from_bytes(kept[8:], "little") == PML4 | 0xABC


@pytest.mark.parametrize("instruction", [f"sgdt [{DATA}]", f"sidt [{DATA}]", "sldt ax", "str ax", "smsw ax"])
def test_umip(instruction: str) -> None:
    for cr4, user, expected in ((UMIP, True, REFUSED), (0, True, OK), (UMIP, False, OK)):
        program = Attempts().do(move_to("cr4", CR4 | cr4))
        if user:
            program.do(TO_USER)
        program.attempt(instruction)
        assert program.run() == [expected]


def test_other_instructions_do_not_mind_umip() -> None:
    program = Attempts().do(move_to("cr4", CR4 | UMIP))
    for instruction in ("rdtsc", "in al, 0x80", "mov rax, cr0", "lsl eax, ecx", "cpuid", "str ax", "lmsw ax"):
        program.do("xor ecx, ecx" if instruction != "lmsw ax" else "mov rax, cr0").attempt(instruction)
    assert program.run() == [OK] * 7


def test_without_the_feature_invpcid_is_unknown() -> None:
    program = Attempts().do(f"mov rcx, {DATA}; xor eax, eax").attempt("invpcid rax, [rcx]")
    assert program.run(cpu=None) == [(UD, 0)]
    assert program.run() == [OK]


# --- PAE: the PDPTE registers -----------------------------------------------------------------------------------

PDPTES_GUEST = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.equ PDPT, 0x20000
.equ PD, 0x21000
.equ OTHER_PD, 0x22000
.equ RESULTS, 0x30000
.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate 13, refused
    set_gate 14, faulted
    mov edi, PDPT
    mov ecx, 0x3000 / 4
    xor eax, eax
    rep stosd
    mov dword ptr [PDPT], PD + 1
    mov dword ptr [PDPT + 8], PD + 1
    mov dword ptr [PD], 0x83            # 2 MiB at 0
    mov dword ptr [OTHER_PD], 0x83
    mov dword ptr [OTHER_PD + 8], 0x200083
    mov dword ptr [PD + 8], 0x400083
    mov dword ptr [0x200000], 0x22
    mov dword ptr [0x400000], 0x44
    mov edi, RESULTS
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, PDPT
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax

    mov ebx, 0x40200000
    call look                           # through PD: 0x44
    mov dword ptr [PDPT + 8], OTHER_PD + 1
    mov eax, 0x40200000
    invlpg [eax]
    call look                           # nothing has changed
    mov dword ptr [PDPT + 8], 0         # not present, in memory only
    invlpg [eax]
    call look
    mov eax, cr3
    mov cr3, eax
    call look                           # now it is: a page fault
    mov dword ptr [PDPT + 8], OTHER_PD + 1
    call look                           # still
    mov eax, cr3
    mov cr3, eax
    call look                           # 0x22
    mov dword ptr [PDPT + 8], PD + 1
    mov eax, cr4
    xor eax, 0x80                       # PGE loads them, too
    mov cr4, eax
    call look                           # 0x44
    mov dword ptr [PDPT + 8], OTHER_PD + 1
    mov eax, cr4
    or eax, 4                           # TSD does not
    mov cr4, eax
    call look                           # 0x44
    mov eax, cr0
    or eax, 0x40000000                  # CD does
    mov cr0, eax
    call look                           # 0x22

    mov dword ptr [PDPT + 24], 3        # a reserved bit in one that is present, R/W
    mov eax, cr3
    call try_cr3                        # refused
    mov eax, cr4
    xor eax, 0x80
    call try_cr4
    call look                           # 0x22
    mov dword ptr [PDPT + 24], 0x1E6    # not present: everything is ignored
    mov eax, cr3
    call try_cr3
    mov dword ptr [PDPT + 24], 0x21     # bit 5
    call try_cr3
    mov dword ptr [PDPT + 24], 0x101    # bit 8
    call try_cr3
    mov dword ptr [PDPT + 24], 0xE19    # those are cache control and free ones
    call try_cr3
    mov dword ptr [PDPT + 28], 0x100    # bit 40
    call try_cr3
    mov dword ptr [PDPT + 28], 0x80000000  # XD
    call try_cr3
    mov dword ptr [PDPT + 24], 0
    mov dword ptr [PDPT + 28], 0
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax                        # paging off
    mov dword ptr [PDPT + 24], 3
    or eax, 0x80000000
    mov edx, offset back_cr0
    mov cr0, eax
    mov al, 'E'
    jmp note_cr0
back_cr0:
    mov al, 'G'
note_cr0:
    mov [edi], al
    mov eax, 0
    out 0xF4, al

try_cr3:                                # to CR3 from EAX; notes E, or G for #GP
    mov edx, offset refused_cr3
    mov cr3, eax
    mov byte ptr [edi], 'E'
    inc edi
    ret
refused_cr3:
    mov byte ptr [edi], 'G'
    inc edi
    ret
try_cr4:
    mov edx, offset refused_cr3
    mov cr4, eax
    mov byte ptr [edi], 'E'
    inc edi
    ret

look:                                   # notes what lies at EBX, or F for a fault
    mov edx, offset looked
    mov cl, [ebx]
    jmp kept
looked:
    mov cl, 'F'
kept:
    mov [edi], cl
    inc edi
    ret

refused:
faulted:
    add esp, 4
    mov [esp], edx
    iretd

gdt:
    gdt_flat
gdt_pointer:
    gdt_pointer_to gdt, gdt_pointer
"""


@pytest.mark.parametrize("mmu", MMUS)
def test_pdpte_registers(mmu: str) -> None:
    guest = boot(PDPTES_GUEST, ram="8M", mmu=mmu, audit=True)
    assert guest.run(max_time="10ms") == 1, guest.console
    expected = b"\x44\x44\x44FF\x22\x44\x44\x22" + b"GG\x22" + b"EGGEGG" + b"G"
    assert guest.vm.memory.read(0x30000, len(expected)) == expected
