"""The crash report: a guest that destroys itself in any way ends with a readable report, never with a fault of emu."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.machine.vm import VirtualMachine
from emu.observe.crash import decode, exception_name, report
from emu.observe.outcome import Ending, Outcome
from emu.session import boot_vm, run_vm

PAGING_ON = "\n    mov cr3, eax\n    mov eax, cr0\n    or eax, 0x80000000\n    mov cr0, eax\n    nop"

PROTECTED = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.code16
start:
    lidt [no_idt]
    enter_protected_mode gdt_pointer
{code}
no_idt:
    .word 0
    .long 0
.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
"""


def crashed(tmp_path: Path, code: str, mmu: str = "shadow", ram: str = "1M") -> tuple[VirtualMachine, Outcome]:
    source = tmp_path / "guest.s"
    source.write_text(PROTECTED.format(code=code))
    vm = boot_vm(source, ram=ram, mmu=mmu)
    return vm, run_vm(vm, max_time=1_000_000_000)


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_the_report_on_the_crash_guest(mmu: str) -> None:
    vm = boot_vm("crash", mmu=mmu)
    outcome = run_vm(vm)
    assert (outcome.ending, outcome.status) == (Ending.CRASH, 134)
    before = (vm.cpu.save(), vm.pool.used, vm.events.counts())
    text = report(vm)
    assert (vm.cpu.save(), vm.pool.used, vm.events.counts()) == before
    assert "triple fault" in text
    assert "=>     " in text and "push ecx" in text
    assert "inc ecx" in text  # of the same block
    assert "CR2 0xbadeffc" in text
    assert "badf000  00000400 000003ff" in text
    assert "page walk of gva 0xbadeffc (32-bit paging" in text
    assert "PTE    0x22000[734]" in text and "not present" in text
    assert ("shadow tables" in text) == (mmu == "shadow")


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("    ud2", "ud2"),
        ("    mov eax, 0x7FFFFFF0\n    jmp eax", "(no instruction)"),  # beyond RAM all bits are ones
        ("    mov esp, 4\n    mov ebp, [0xFFFFFFF0]\n    int 3", "int 3"),
        ("    mov eax, 0xFFFFF000" + PAGING_ON, ""),  # the page directory lies beyond RAM
        ("    mov eax, 0x10000" + PAGING_ON, ""),  # it is empty
        ("    mov ax, 0x7777\n    mov ss, ax", "mov ss"),
        ("    xor eax, eax\n    div eax", "div"),
        ("    mov ss, ax\n    ljmp 0x1234:0", ""),
    ],
)
def test_every_way_to_crash_is_reported(tmp_path: Path, mmu: str, code: str, expected: str) -> None:
    vm, outcome = crashed(tmp_path, code, mmu)
    assert outcome.ending is Ending.CRASH, outcome
    text = report(vm)
    assert expected in text
    assert "RIP: page walk" in text or "CR2: page walk" in text


def test_a_guest_that_fills_its_stack_and_all_memory_below_it(tmp_path: Path) -> None:
    vm, outcome = crashed(tmp_path, "    mov esp, 0x80000\nagain:\n    push eax\n    jmp again")
    # the stack wraps through the GDT, the code and the holes above RAM; whatever comes of it, emu says so
    assert outcome.ending in (Ending.CRASH, Ending.MAX_TIME, Ending.HALTED)
    assert report(vm)


def test_exceptions_by_name() -> None:
    assert exception_name(14) == "#PF page fault"
    assert exception_name(0x80) == "vector 0x80"


@pytest.mark.parametrize(
    ("bits", "text"), [(16, "mov ax, 0x1234"), (32, "mov eax, 0x56781234"), (64, "mov eax, 0x56781234")]
)
def test_disassembly_follows_the_code_size(bits: int, text: str) -> None:
    assert decode(b"\xb8\x34\x12\x78\x56", 0x1000, bits)[0][::2] == (0x1000, text)
