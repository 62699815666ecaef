"""An instruction that waits for the DMM, or faults, half way is executed again as if it had not begun.

Each case is run with all of its pages there, and then with each of them missing in turn: evicted by the DMM, or absent
in the guest's page table until its handler maps it.  Registers and memory must be the same at the end.
"""

from __future__ import annotations

import struct
from functools import cache

import pytest

from emu.machine.vm import Stop
from emu.mmu.paging import flush_tlbs
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench, assemble
from tests.mmu.harness import Keeper

MMUS = ("shadow", "nested")
DATA = 0x21000  # what lies across the end of the page before it
EDGE = 0x41000  # a stack across the end of a page
FAR = 0x8800  # where far transfers lead, on the page of the code
HANDLER = 0xA000  # of page faults
GATE, LDT, TASK, FRESH = 0x48, 0x38, 0x30, 0x50  # selectors
DONE = "int 0x30"

COMPARED = (0x1, 0x3, 0x20, 0x21, 0x22, 0x30, 0x40, 0x41, 0x50)
PAGES = (*COMPARED, 0x2, 0x8, 0x9, 0xA, 0x10, 0x11, 0x60, 0x61)
REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "rip", "cr0", "cr3")
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")


def far(offset: int, selector: int, opcode: int) -> str:
    return f".byte {', '.join(map(str, struct.pack('<BIH', opcode, offset, selector)))}"


JUMP, CALL = 0xEA, 0x9A
CASES: dict[str, tuple[int, str]] = {  # ring, code; ESP is EDGE + 6, ESI DATA - 6, EDI DATA + 0xFFA
    "far jump": (0, far(FAR, b.CODE0, JUMP)),
    "far call": (0, far(FAR, b.CODE0, CALL)),
    "far return": (0, f"push {b.CODE0}; push {FAR}; .byte 0xCB"),
    "far return, popping": (0, f"sub esp, 8; push {b.CODE0}; push {FAR}; .byte 0xCA, 8, 0"),
    "iret": (0, f"pushfd; push {b.CODE0}; push {FAR}; .byte 0xCF"),
    "iret to ring 3": (0, f"push {b.DATA3}; push {b.STACK3}; pushfd; push {b.CODE3}; push {FAR}; .byte 0xCF"),
    "iret to virtual-8086 mode": (
        0, f"push 0; push 0; push 0x2000; push 0; push 0x5000; push 0x80; push {b.VM | 2}; push {FAR >> 4}; push 0;"
        " .byte 0xCF"),
    "call gate": (3, "push 1; push 2; push 3; " + far(0, GATE | 3, CALL)),
    "far call in ring 3": (3, far(FAR, b.CODE3, CALL)),
    "iret in ring 3": (3, f"pushfd; push {b.CODE3}; push {FAR}; .byte 0xCF"),
    "far return in ring 3": (3, f"push {b.CODE3}; push {FAR}; .byte 0xCB"),
    "ltr": (0, f"mov eax, {TASK}; ltr ax"),
    "lldt": (0, f"mov eax, {LDT}; lldt ax"),
    "mov ds": (0, f"mov eax, {FRESH}; mov ds, ax"),
    "mov gs in ring 3": (3, f"mov eax, {FRESH | 3}; mov gs, ax"),
    "pop es": (0, f"push {FRESH}; pop es"),
    "les": (0, f"mov word ptr [esi + 4], {FRESH}; les eax, [esi]"),
    "pushad": (3, "pushad"),
    "popad": (3, "sub esp, 24; popad"),
    "enter": (3, "mov ebp, esp; enter 20, 4"),
    "leave": (3, "lea ebp, [esp - 8]; leave"),
    "push memory": (3, "push dword ptr [esi + 4]"),
    "pop memory": (3, "pop dword ptr [esi + 4]"),
    "call near": (3, "mov eax, 0x8800; call eax"),
    "xchg": (3, "xchg dword ptr [esi + 4], ecx"),
    "add": (3, "add dword ptr [esi + 4], ecx"),
    "lock xadd": (3, "lock xadd dword ptr [esi + 4], ecx"),
    "cmpxchg8b": (3, "mov eax, [esi + 2]; mov edx, [esi + 6]; mov ebx, 5; mov ecx, 6; cmpxchg8b [esi + 2]"),
    "rep movsb": (3, "mov ecx, 12; rep movsb"),
    "movsd": (3, "add esi, 4; add edi, 4; .byte 0xA5"),
    "repe cmpsb": (3, "mov ecx, 12; repe cmpsb"),
    "rep stosd": (3, "mov ecx, 5; rep stosd"),
    "rep lodsw": (3, "mov ecx, 6; rep lodsw"),
    "bts": (3, "mov eax, 70; bts dword ptr [esi], eax"),
    "fsave": (3, "fninit; fld1; fldpi; fnsave [esi]; fld1"),
    "frstor": (3, "fninit; fld1; fnsave [esi]; fldpi; frstor [esi]; fstp qword ptr [edi]"),
    "fxsave": (3, "mov eax, 0x20FE0; fninit; fldpi; fxsave [eax]"),
    "fxrstor": (3, "mov eax, 0x20FE0; fninit; fldpi; fxsave [eax]; fld1; fxrstor [eax]; fstp qword ptr [edi]"),
    "fstp": (3, "fninit; fldpi; fstp tbyte ptr [esi]"),
    "bound": (3, "mov eax, 7; bound eax, [esi + 2]"),
    "sgdt": (3, "sgdt [esi + 3]"),
    "jmp to a task": (0, far(0, TASK, JUMP)),
    "call of a task": (0, far(0, TASK, CALL)),
    "iret to a task": (0, far(0, TASK, CALL)),
}  # fmt: skip


def task(code: int) -> bytes:
    selectors = (b.DATA0, b.CODE0, b.DATA0, FRESH, b.DATA0, b.DATA0)
    return struct.pack("<26I", *[0] * 7, b.TABLES, code, 2, 1, 2, 3, 4, 0x60000, 6, 7, 8, *selectors, 0, 0)


@cache
def machine(mmu: str) -> tuple[Bench, Keeper]:
    bench, keeper = Bench(mmu), Keeper()
    bench.vm.attach(keeper)
    return bench, keeper


def prepare(name: str, mmu: str) -> Bench:
    ring, code = CASES[name]
    bench, _ = machine(mmu)
    for page in PAGES:
        bench.write(page << 12, bytes(4096))
    native = bench.vm.processor.native
    native.shutdown = native.pending = 0
    bench.set_eflags(2)
    bench.paged(ring)
    bench.write(b.TSS + 0x1C, struct.pack("<I", b.TABLES))
    bench.cpu.ldtr.set(0, 0, 0, 0x8200)
    flush_tlbs(bench.vm.processor.native_at)
    returns = 0x8900
    bench.segment(TASK, DATA - 0x30, 103, b.PRESENT | 9 << 8)
    bench.segment(LDT, 0x30000, 0xF, b.PRESENT | 2 << 8)
    bench.segment(FRESH, 0, 0xFFFFF, 0xC09200 | b.RING3)  # not accessed yet
    bench.write(b.GDT + GATE, struct.pack("<HHI", FAR, b.CODE0, 0x0000_EC03))  # three parameters
    bench.gate(0x30, b.INTERRUPT_32, dpl=3)
    bench.write(b.HANDLER + 0x30 * 16, b"\xf4")
    bench.write(b.TSS + 4, struct.pack("<II", 0x61008, b.DATA0))  # across the end of a page
    for page in (DATA - 0x1000, DATA, DATA + 0x1000, EDGE - 0x1000, EDGE, 0x50000, 0x60000, 0x61000, 0x30000, 0x22000):
        bench.write(page + 8, struct.pack("<I", page | 5))
    bench.write(DATA - 6, struct.pack("<II", 0x0A0B_0C0D, 0x1A1B_1C1D))
    bench.write(DATA + 0xFFA, struct.pack("<III", 1, 2, 3))
    bench.write(EDGE - 20, struct.pack("<8I", *range(0x1000, 0x1008)))
    bench.write(DATA - 4, struct.pack("<II", 1, 9)) if name == "bound" else None
    if "task" in name:
        bench.write(DATA - 0x30, task(returns))
    bench.write(returns, assemble("iretd; hlt" if name == "iret to a task" else "hlt", 32, returns))
    bench.write(FAR, assemble(DONE if name != "iret to virtual-8086 mode" else "nop; hlt", 32, FAR))
    bench.write(b.HANDLER + 14 * 16, assemble(f"jmp {HANDLER}", 32, b.HANDLER + 14 * 16))
    bench.write(b.HANDLER + 13 * 16, b"\xf4")
    bench.write(HANDLER, assemble(
        f"push eax; mov eax, cr2; invlpg [eax]; shr eax, 12; or dword ptr [{b.TABLES + 0x1000} + eax * 4], 1;"
        " pop eax; add esp, 4", 32, HANDLER) + b"\xcf")  # fmt: skip
    bench.write(b.CODE, assemble(f"{code}; {DONE}", 32))
    for register, value in {"rax": 0xA, "rcx": 0xC, "rdx": 0xD, "rbx": 0xB, "rbp": 0xE}.items():
        setattr(bench.cpu, register, value)
    bench.cpu.rsp, bench.cpu.rsi, bench.cpu.rdi = EDGE + 6, DATA - 6, DATA + 0xFFA
    return bench


def finish(bench: Bench, without: tuple[int, ...] = ()) -> tuple[object, ...]:
    """What the run ends with: registers, segment registers, flags, memory without the pages ``without``."""
    assert bench.vm.run(until=bench.vm.now + 1_000_000) is Stop.HALTED
    cpu = bench.cpu
    segments = [(s.selector, s.base, s.limit, s.flags) for s in (getattr(cpu, name) for name in SEGMENTS)]
    memory = [bytes(bench.vm.memory.read(page << 12, 4096)) for page in COMPARED if page not in without]
    return [getattr(cpu, name) for name in REGISTERS], segments, bench.eflags, memory


@cache
def expected(name: str, mmu: str, without: tuple[int, ...] = ()) -> tuple[object, ...]:
    return finish(prepare(name, mmu), without)


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", CASES)
def test_pages_that_the_dmm_has_taken(name: str, mmu: str) -> None:
    wanted = expected(name, mmu)
    for missing in [*([gfn] for gfn in PAGES), PAGES]:
        bench = prepare(name, mmu)
        for gfn in missing:
            bench.vm.dmm.evict(gfn, machine(mmu)[1])
        assert finish(bench) == wanted, [hex(gfn) for gfn in missing]


NEEDED = {0x1, 0x2, 0x3, 0x9, 0xA, 0x10, 0x11}  # by the handler itself


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize("name", CASES)
def test_pages_that_the_guest_maps_when_they_are_touched(name: str, mmu: str) -> None:
    ring, _ = CASES[name]
    stack = (0x60, 0x61) if ring else (0x40, 0x41)  # where the handler leaves its traces
    needed = NEEDED.union(stack, (0x60, 0x61))
    wanted = expected(name, mmu, stack)
    for gfn in [gfn for gfn in PAGES if gfn not in needed]:
        bench = prepare(name, mmu)
        bench.map_page(gfn << 12, 6)
        assert finish(bench, stack) == wanted, hex(gfn)
