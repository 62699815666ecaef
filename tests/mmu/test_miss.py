"""What a TLB miss in the middle of an instruction leaves alone, and what it tells the guest."""

from __future__ import annotations

import pytest

from emu.engine.events import PageFault
from emu.machine.vm import Stop
from emu.testing import boot
from tests.mmu.bench import RO, RWX, Bench, U
from tests.mmu.harness import ARCHITECTURES
from tests.oracles.paging_model import CR4_SMAP

CODE, DATA = 0x30000, 0x38000

WRITES = ("add byte ptr [rdi], 1", "or dword ptr [rdi], edx", "adc rdx, rdx; adc qword ptr [rdi], rdx", "sbb [rdi], dl",
          "and word ptr [rdi], dx", "sub dword ptr [rdi], 0x12345678", "xor byte ptr [rdi], dl", "not dword ptr [rdi]",
          "neg byte ptr [rdi]", "inc word ptr [rdi]", "dec qword ptr [rdi]", "shl dword ptr [rdi], 3",
          "ror qword ptr [rdi], 1", "sar byte ptr [rdi], cl", "xchg dword ptr [rdi], edx", "xchg byte ptr [rdi], dl",
          "cmpxchg dword ptr [rdi], edx", "cmpxchg byte ptr [rdi], dl", "cmpxchg8b [rdi]", "cmpxchg16b [rdi]",
          "xadd word ptr [rdi], dx", "bts dword ptr [rdi], edx", "btr word ptr [rdi], 3", "btc qword ptr [rdi], rdx",
          "shld dword ptr [rdi], edx, 4", "shrd qword ptr [rdi], rdx, cl", "lock inc dword ptr [rdi]",
          "add dword ptr fs:[rdi], r9d", "mov byte ptr [rdi], 1", "pop qword ptr [rdi]", "stosd", "setz byte ptr [rdi]",
          "movq qword ptr [rdi], xmm0", "fistp dword ptr [rdi]")  # fmt: skip
READS = ("mov al, byte ptr [rdi]", "cmp dword ptr [rdi], 1", "cmp byte ptr [rdi], dl", "test dword ptr [rdi], edx",
         "bt dword ptr [rdi], edx", "bt word ptr [rdi], 3", "add edx, dword ptr [rdi]", "push qword ptr [rdi]",
         "call qword ptr [rdi]", "jmp qword ptr [rdi]", "mul dword ptr [rdi]", "imul edx, dword ptr [rdi]",
         "test byte ptr [rdi], 1", "movzx edx, byte ptr [rdi]", "scasb", "bsf edx, dword ptr [rdi]")  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def fault(bench: Bench, text: str, **registers: int) -> tuple[int, int, int]:
    """RIP, CR2 and the error code of the page fault that the code ends with."""
    bench.put(CODE, f"{text}; hlt")
    errors: list[int] = []
    bench.vm.events.listen(lambda event: errors.append(event.error), [PageFault])
    assert bench.start(CODE, **registers) is Stop.CRASH
    bench.vm.events.drain()
    return bench.vm.cpu.rip, bench.vm.cpu.cr2, errors[0]


@pytest.mark.parametrize("text", WRITES)
def test_what_reads_in_order_to_write_faults_as_a_write(bench: Bench, text: str) -> None:
    bench.map(DATA, DATA, 0)
    rip, cr2, error = fault(bench, text, rdi=DATA + 0x10, rdx=0, rcx=1)
    assert (cr2, error) == (DATA + 0x10, 2)
    bench.map(DATA, DATA, RO)
    assert fault(bench, text, rdi=DATA + 0x10, rdx=0, rcx=1) == (rip, cr2, 3)


@pytest.mark.parametrize("text", READS)
def test_what_only_reads_does_not(bench: Bench, text: str) -> None:
    bench.map(DATA, DATA, 0)
    assert fault(bench, f"xor eax, eax; {text}", rdi=DATA + 0x10, rdx=0)[1:] == (DATA + 0x10, 0)


TASKS = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.equ DIRECTORY, 0x20000
.equ TABLE, 0x21000
.equ TSS_A, 0x30000
.equ TSS_B, 0x31000
.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    mov edi, DIRECTORY
    xor eax, eax
    mov ecx, 0x12000 / 4
    rep stosd
    mov dword ptr [DIRECTORY], TABLE | 3
    mov edi, TABLE
    mov eax, 3
next:
    mov [edi], eax
    add eax, 0x1000
    add edi, 4
    cmp edi, TABLE + 0x1000
    jb next
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    mov ax, 0x28
    ltr ax
    mov dword ptr [TSS_A + 0x1C], DIRECTORY
    mov dword ptr [TSS_B + 0x1C], DIRECTORY
    mov dword ptr [TSS_B + 0x20], offset task
    mov dword ptr [TSS_B + 0x24], 2
    mov dword ptr [TSS_B + 0x28], 0x12345678
    mov dword ptr [TSS_B + 0x38], 0x7000
    mov dword ptr [TSS_B + 0x48], DATA
    mov dword ptr [TSS_B + 0x4C], CODE
    mov dword ptr [TSS_B + 0x50], DATA
    mov dword ptr [TSS_B + 0x54], DATA
    mov ebx, 0x0BADCAFE
    stc
    FLUSH
    SWITCH 0x30:0
    jnc wrong
    cmp ebx, 0x0BADCAFE
    jne wrong
    print "back\\n"
    FLUSH
    SWITCH 0x30:0
    print "again\\n"
    xor eax, eax
    jmp exit
wrong:
    mov eax, 1
    jmp exit
task:
    cmp eax, 0x12345678
    jne wrong
    print "in the task\\n"
    mov ecx, cr3
    mov cr3, ecx
    RETURN
    print "in the task again\\n"
    mov ecx, cr3
    mov cr3, ecx
    RETURN
.balign 8
gdt_start:
    gdt_flat
    .word 0x67, 0x0000
    .byte 3, 0x89, 0, 0
    .word 0x67, 0x1000
    .byte 3, 0x89, 0, 0
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt_start, gdt_end
"""


@pytest.mark.parametrize("mmu", ARCHITECTURES)
@pytest.mark.parametrize("policies", [("demand",), ("static",)])
@pytest.mark.parametrize("switch, back", [("ljmp", "ljmp 0x28:0"), ("lcall", "iretd")])
def test_task_switches_with_paging_on(mmu: str, policies: tuple[str, ...], switch: str, back: str) -> None:
    """JMP, CALL and IRET to a task, the TLB empty each time (SDM vol. 3A, 7.3)."""
    text = TASKS.replace("SWITCH", switch).replace("RETURN", back).replace("FLUSH", "mov ecx, cr3\n    mov cr3, ecx")
    guest = boot(text, ram="2M", mmu=mmu, policies=policies)
    assert guest.run(max_time="10ms") == 1
    assert guest.console == "in the task\nback\nin the task again\nagain\n"


def test_far_returns_use_the_program_s_own_stack_as_the_program(bench: Bench) -> None:
    """IRET at CPL 3 pops with the rights of CPL 3; the engine's entry for that is none for the kernel under SMAP."""
    bench.cr4 |= CR4_SMAP
    for page in (CODE, DATA):
        bench.map(page, page, RWX | U)
    bench.write(0x50008, (0x00CF_F300_0000_FFFF).to_bytes(8, "little") + (0x00AF_FB00_0000_FFFF).to_bytes(8, "little"))
    bench.vm.cpu.gdtr.set(0, 0x50000, 0xFFF, 0)
    frame = (CODE + 0x80, 0x13, 0x3002, DATA + 0xF00, 0x0B)
    for stack, page in ((DATA + 0x800, DATA), (0x48800, 0x48000)):
        bench.write(stack, b"".join(word.to_bytes(8, "little") for word in frame))
        bench.put(CODE, "iretq")
        bench.put(CODE + 0x80, "hlt")
        errors: list[int] = []
        bench.vm.events.listen(lambda event, errors=errors: errors.append(event.error), [PageFault])
        assert bench.start(CODE, cpl=3, rsp=stack) is Stop.CRASH
        bench.vm.events.drain()
        if page == DATA:
            assert bench.vm.cpu.rip == CODE + 0x80 and not errors
        else:
            assert (bench.vm.cpu.rip, bench.vm.cpu.cr2, errors) == (CODE, stack, [5])
