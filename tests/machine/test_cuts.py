"""How a run is cut, in steps, pieces or at watched events, is nothing that a guest can see.

Random guests edit page-table entries, clear accessed and dirty bits, run code from pages that they move, and load and
store through all of that.  Those that flush as the manual demands (SDM vol. 3A, 4.10.4.2) have one future, however they
are cut, in both paging architectures and under every policy.

Those that do not may see the old entry or the new one, as on any processor: it depends on whether the old one is still
in the TLB.  The engine's TLB has one place for each 256th page and eight spare ones, and code and data share them; each
stop looks the code up anew, which may push an old entry out.  So a difference needs both: an entry that was changed and
not flushed, and more than eight pages that share a place.  Without the second a guest that never flushes has one
future, too.  EMU_LONG=N tries N guests of each kind.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from emu.machine.vm import Stop, VirtualMachine
from emu.session import boot_vm

GUESTS = int(os.environ.get("EMU_LONG") or 2)
WINDOWS = 16  # pages that are edited
FRAMES, TABLES, RESULT = 0x2_0000, 0x1_1000, 0x5000
CUTS = ("pieces", "steps", "events", "mixed")

START = """
.code16
    jmp start
.include "platform.inc"
.include "protected.inc"
.equ CODE, 8
.equ DATA, 0x10
start:
    cli
    enter_protected_mode gdtp
    mov dword ptr [0x10000], 0x11007
    mov dword ptr [0x10004], 0x12007
    mov dword ptr [0x10008], 0x13007
    mov dword ptr [0x1000c], 0x14007
    mov dword ptr [0x10010], 0x15007
    mov edi, 0x11000
    mov eax, 7
    mov ecx, 1024
low:
    mov [edi], eax
    add edi, 4
    add eax, 0x1000
    dec ecx
    jnz low
    mov edi, 0x20000
    mov ecx, 16
frames:
    mov [edi], ecx
    add edi, 0x1000
    dec ecx
    jnz frames
"""
PAGING = """
    mov eax, 0x10000
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    xor ebx, ebx
    mov ebp, 10
    jmp again
done:
    mov [0x5000], ebx
    mov al, 0
    out 0xF4, al
    hlt
again:
"""
END = """
    dec ebp
    jnz again
    jmp done
gdt: gdt_flat
gdtend:
gdtp: gdt_pointer_to gdt, gdtend
"""


def program(seed: int, flushes: bool, apart: int) -> str:
    """A random guest whose windows are ``apart`` bytes apart: 0x1000, each with its own place in the TLB, or 1 MiB,
    all with the code's."""
    draw = random.Random(seed)
    first = 0x40_8000 if apart > 0x1000 else 0x48_0000
    gvas = [first + number * apart for number in range(WINDOWS)]
    entries = [0x1_2000 + (gva - 0x40_0000 >> 22) * 0x1000 + (gva >> 12 & 0x3FF) * 4 for gva in gvas]
    lines = [START]
    lines += [f"mov dword ptr [{at:#x}], {FRAMES + n * 0x1000 | 7:#x}" for n, at in enumerate(entries)]
    lines.append(PAGING)
    for number in range(60):
        window, choice = draw.randrange(WINDOWS), draw.random()
        gva, entry = gvas[window], entries[window]
        flush = [f"invlpg [{gva:#x}]"] if flushes else []
        if choice < 0.3:
            lines += [f"mov eax, [{gva:#x}]", "rol ebx, 3", "add ebx, eax"]
        elif choice < 0.5:
            lines.append(f"mov [{gva:#x}], ebx")
        elif choice < 0.75:
            lines += [f"mov dword ptr [{entry:#x}], {FRAMES + draw.randrange(16) * 0x1000 | 7:#x}", *flush]
        elif choice < 0.82:
            lines += [f"and dword ptr [{entry:#x}], 0xffffff9f", *flush]
        elif choice < 0.86 and flushes:
            lines += [f"mov byte ptr [{gva + 0x800:#x}], 0xC3", f"mov eax, {gva + 0x800:#x}", "call eax"]
        elif choice < 0.92:
            lines += [f"mov ecx, {draw.randrange(2, 40)}", f"w{number}:", "inc ebx", "dec ecx", f"jnz w{number}"]
        else:
            lines.append("inc ebx")
    return "\n".join([*lines, END])


def cut(vm: VirtualMachine, how: str, seed: int) -> None:
    """Run a VM to its end, cut so."""
    draw = random.Random(seed)
    stop = Stop.STEP
    if how == "events":
        vm.events.listen(lambda event: None)
    while stop in (Stop.STEP, Stop.DEADLINE):
        if how == "free":
            stop = vm.run()
        elif how == "events":
            stop = vm.run_to_event()
        elif how == "steps" or (how == "mixed" and draw.random() < 0.5):
            stop = vm.step(draw.choice((1, 1, 2, 5, 30)))
        else:
            stop = vm.run(vm.now + draw.choice((1, 7, 50, 300, 2000)))


def future(path: Path, how: str, seed: int, **options: object) -> tuple[object, ...]:
    """What a guest can see: how it ended and when, its registers, its tables with accessed and dirty bits, memory."""
    vm = boot_vm(path, ram="2M", **options)
    cut(vm, how, seed)
    memory = [vm.memory.peek(gpa, size) for gpa, size in ((RESULT, 4), (TABLES, 0x5000), (FRAMES, 0x1_0000))]
    seen = (vm.exit_value, vm.now, vm.cpu.rip, vm.cpu.rbx, *memory)
    vm.close()
    return seen


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("seed", range(GUESTS))
def test_guests_that_flush_have_one_future(tmp_path: Path, seed: int, mmu: str) -> None:
    path = tmp_path / "guest.s"
    path.write_text(program(seed, flushes=True, apart=1 << 20))
    free = future(path, "free", seed, mmu="shadow")
    assert free[0] == 0
    for how in CUTS:
        assert future(path, how, seed, mmu=mmu) == free, how
    swapped = {"pool": "64K", "policies": ["swap"]}
    for how in ("free", "mixed"):
        assert future(path, how, seed, mmu=mmu, **swapped)[0] == free[0]
        assert future(path, how, seed, mmu=mmu, **swapped)[4:] == free[4:], f"{how}, swapped"


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("seed", range(GUESTS))
def test_guests_that_never_flush_have_one_future_where_pages_share_no_place(
    tmp_path: Path, seed: int, mmu: str
) -> None:
    path = tmp_path / "guest.s"
    path.write_text(program(seed, flushes=False, apart=0x1000))
    free = future(path, "free", seed, mmu=mmu)
    assert free[0] == 0
    for how in CUTS:
        assert future(path, how, seed, mmu=mmu) == free, how
