"""Task gates in the IDT: what is saved, what is loaded, and whose the faults are."""

from __future__ import annotations

import struct

import pytest

from emu.cpu.delivery import DELIVERED
from emu.mmu.walk import NEED
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import HARDWARE, SOFTWARE, Bench

TASK_SELECTOR, LDT_SELECTOR = 0x30, 0x38
TASK_STACK, TASK_CODE = 0x70000, 0xA000
LOCAL_CODE, LOCAL_DATA = 0x0C, 0x14  # in the LDT
REGISTERS = [0x1111_0001, 0x2222_0002, 0x3333_0003, 0x4444_0004, TASK_STACK, 0x5555_0005, 0x6666_0006, 0x7777_0007]
NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
LAST_FIELD = 0x64


def tss32(**changes: int) -> bytes:
    """A 32-bit TSS of a ring-0 task; keywords: eflags, cr3, ldt, trap, and selectors by name."""
    names = ("es", "cs", "ss", "ds", "fs", "gs")
    selectors = [changes.get(name, b.CODE0 if name == "cs" else b.DATA0) for name in names]
    fields = [0] * 7 + [changes.get("cr3", 0), TASK_CODE, changes.get("eflags", 0x46), *REGISTERS, *selectors]
    return struct.pack("<26I", *fields, changes.get("ldt", 0), changes.get("trap", 0))


def tss16() -> bytes:
    selectors = (b.DATA0, b.CODE0, b.DATA0, b.DATA0)
    registers = [value & 0xFFFF for value in REGISTERS]
    registers[4] = 0x7000
    return struct.pack("<22H", *[0] * 7, TASK_CODE, 0x46, *registers, *selectors, 0)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.protected()
    install(bench, tss32())
    for i, name in enumerate(NAMES):
        if name != "rsp":
            setattr(bench.cpu, name, 0xABC0_0000 + i)
    return bench


def install(bench: Bench, tss: bytes, kind: int = b.TSS_32, limit: int | None = None) -> None:
    bench.write(b.TASK, tss)
    bench.segment(TASK_SELECTOR, b.TASK, len(tss) - 1 if limit is None else limit, b.PRESENT | kind << 8)
    for vector in (0x30, 8, 13, 17):
        bench.gate(vector, b.TASK_GATE, selector=TASK_SELECTOR, dpl=3)


def test_a_task_gate_switches_completely(bench: Bench) -> None:
    before = [getattr(bench.cpu, name) for name in NAMES]
    bench.set_eflags(0x8D5 | b.IF | b.DF | 2)
    assert bench.deliver(0x30, kind=HARDWARE, rip=0x8123) == DELIVERED
    # the old task
    assert bench.read(b.TSS + 0x20, 4) == 0x8123
    assert bench.read(b.TSS + 0x24, 4) == 0x8D5 | b.IF | b.DF | 2
    assert bench.words(b.TSS + 0x28, 8, 4) == before
    assert bench.words(b.TSS + 0x48, 6, 4) == [b.DATA0, b.CODE0, *[b.DATA0] * 4]
    # the new one
    cpu = bench.cpu
    assert [getattr(cpu, name) for name in NAMES] == REGISTERS
    assert cpu.rip == TASK_CODE and cpu.cs.selector == b.CODE0 and cpu.ss.selector == b.DATA0
    assert bench.eflags == 0x46 | b.NT
    assert bench.read(b.TASK, 2) == b.TSS_SELECTOR  # back link
    assert bench.read(b.GDT + TASK_SELECTOR + 5, 1) == 0x8B  # busy
    assert cpu.tr.selector == TASK_SELECTOR and cpu.tr.base == b.TASK and cpu.tr.limit == 103
    assert cpu.cr0 & 8  # TS


def test_iret_goes_back(bench: Bench) -> None:
    bench.write(TASK_CODE, b.assemble("clts; iretd", 32, TASK_CODE))
    bench.run("mov ebx, 5; stc; int 0x30; adc ebx, 1", 32)
    assert bench.cpu.rbx == 7 and bench.cpu.tr.selector == b.TSS_SELECTOR
    assert bench.read(b.GDT + TASK_SELECTOR + 5, 1) == 0x89  # available again
    assert bench.read(b.TASK + 0x20, 4) == TASK_CODE + 3  # behind IRET


@pytest.mark.parametrize("vector", [8, 13])
def test_the_error_code_is_pushed_on_the_new_stack(bench: Bench, vector: int) -> None:
    bench.deliver(vector, 0x128)
    assert bench.cpu.rsp == TASK_STACK - 4 and bench.stack(1, 4) == [0x128]


def test_a_16_bit_task(bench: Bench) -> None:
    install(bench, tss16(), b.TSS_16)
    bench.deliver(13, 0x28)
    cpu = bench.cpu
    assert cpu.rsp == 0x7000 - 2 and bench.read(cpu.rsp, 2) == 0x28
    assert cpu.rax == 1 and cpu.rdi == 7 and cpu.rip == TASK_CODE
    assert (cpu.fs.selector, cpu.gs.selector) == (0, 0)
    assert bench.eflags == 0x46 | b.NT
    # and from it to a 32-bit one: the 16-bit TSS is saved as such
    install_at = b.TASK + 0x200
    bench.write(install_at, tss32())
    bench.segment(b.SPARE, install_at, 103, b.PRESENT | b.TSS_32 << 8)
    bench.gate(0x31, b.TASK_GATE, selector=b.SPARE)
    bench.deliver(0x31, kind=HARDWARE, rip=0x8765)
    assert bench.words(b.TASK + 0x0E, 3, 2) == [0x8765, 0x46 | b.NT, 1]
    assert bench.words(b.TASK + 0x22, 4, 2) == [b.DATA0, b.CODE0, b.DATA0, b.DATA0]


def test_a_virtual_8086_task(bench: Bench) -> None:
    install(bench, tss32(eflags=b.VM | b.IF | 2, cs=0x1234, ss=0x2000, ds=0x3000))
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.cpu.cpl == 3 and bench.cpu.bits == 16
    assert (bench.cpu.cs.selector, bench.cpu.cs.base) == (0x1234, 0x12340)
    assert bench.cpu.ds.base == 0x30000 and bench.eflags & b.VM


def test_a_task_with_an_ldt(bench: Bench) -> None:
    bench.write(b.LDT, bytes(8) + b.descriptor(0x1000, 0xFFFFF, b.CODE_32) + b.descriptor(0x2000, 0xFFFFF, b.DATA_32))
    bench.segment(LDT_SELECTOR, b.LDT, 0x17, b.PRESENT | 2 << 8)
    install(bench, tss32(ldt=LDT_SELECTOR, cs=LOCAL_CODE, ss=LOCAL_DATA, ds=LOCAL_DATA))
    bench.deliver(13, 0x55)
    assert bench.cpu.ldtr.base == b.LDT and bench.cpu.cs.base == 0x1000
    assert bench.read(0x2000 + TASK_STACK - 4, 4) == 0x55


def test_a_task_has_its_own_page_tables() -> None:
    bench = Bench()
    bench.paged(ring=3)
    other = 0x30000  # the stack page of the new task leads somewhere else under its tables
    bench.write(other, struct.pack("<I", other + 0x1000 | 7))
    for page in range(256):
        target = 0x71000 if page << 12 == TASK_STACK - 0x1000 else page << 12
        bench.write(other + 0x1000 + 4 * page, struct.pack("<I", target | 7))
    install(bench, tss32(cr3=other))
    bench.deliver(13, 0x66)
    assert bench.cpu.cr3 == other and bench.cpu.cpl == 0
    assert bench.read(0x71FFC, 4) == 0x66
    assert bench.vm.run(until=bench.vm.now) is not None  # the engine goes on under the new tables


REFUSED = {
    "selector in the LDT": (0x34, None, None, 13, 0x34),
    "beyond the GDT": (0x108, None, None, 13, 0x108),
    "not a TSS": (b.DATA0, None, None, 13, b.DATA0),
    "busy": (TASK_SELECTOR, b.PRESENT | 11 << 8, 103, 13, TASK_SELECTOR),
    "not present": (TASK_SELECTOR, 9 << 8, 103, 11, TASK_SELECTOR),
    "too small": (TASK_SELECTOR, b.PRESENT | 9 << 8, 102, 10, TASK_SELECTOR),
    "16-bit, too small": (TASK_SELECTOR, b.PRESENT | 1 << 8, 42, 10, TASK_SELECTOR),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_task_that_cannot_be_switched_to(bench: Bench, case: str) -> None:
    selector, attributes, limit, vector, error = REFUSED[case]
    bench.protected()
    if attributes is not None and limit is not None:
        bench.segment(TASK_SELECTOR, b.TASK, limit, attributes)
    bench.gate(0x30, b.TASK_GATE, selector=selector)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vector == vector
    assert bench.stack(2, 4) == [error | 1, b.CODE]
    assert bench.cpu.tr.selector == b.TSS_SELECTOR


FAULTS_OF_THE_TASK = {
    "null CS": ({"cs": 0}, 10, 0),
    "null SS": ({"ss": 0}, 10, 0),
    "data in CS": ({"cs": b.DATA0}, 10, b.DATA0),
    "code in SS": ({"ss": b.CODE0}, 10, b.CODE0),
    "SS of another ring": ({"ss": b.DATA3}, 10, b.DATA3 & ~3),
    "DS beyond the GDT": ({"ds": 0x200}, 10, 0x200),
    "no LDT": ({"ldt": b.DATA0}, 10, b.DATA0),
    "absent GS": ({"gs": b.SPARE}, 11, b.SPARE),
    "absent SS": ({"ss": b.SPARE}, 12, b.SPARE),
}


@pytest.mark.parametrize("case", FAULTS_OF_THE_TASK)
def test_bad_selectors_are_faults_of_the_new_task(bench: Bench, case: str) -> None:
    changes, vector, error = FAULTS_OF_THE_TASK[case]
    bench.segment(b.SPARE, 0, 0xFFFFF, b.DATA_32 & ~b.PRESENT)
    install(bench, tss32(**changes))
    # the fault is handled in a third task, so that it does not depend on the broken segments
    bench.write(b.TASK + 0x200, tss32())
    bench.segment(0x48, b.TASK + 0x200, 103, b.PRESENT | b.TSS_32 << 8)
    bench.gate(vector, b.TASK_GATE, selector=0x48)
    bench.deliver(0x30, kind=SOFTWARE)
    assert bench.cpu.tr.selector == 0x48
    assert bench.stack(1, 4) == [error]
    assert bench.read(b.TASK + 0x20, 4) == TASK_CODE  # the task had begun: its first instruction is to be repeated
    assert bench.read(b.TASK + 0x200, 2) == TASK_SELECTOR
    assert bench.delivered() == [vector]


def test_the_switch_waits_for_every_page_before_it_begins(bench: Bench) -> None:
    bench.segment(LDT_SELECTOR, 0x90000, 0xFFFF, b.PRESENT | 2 << 8)  # an LDT that is not resident, all zero
    install(bench, tss32(ldt=LDT_SELECTOR, gs=LOCAL_CODE))
    status = bench.start(17, 0x77)
    while status == NEED:
        assert bench.cpu.tr.selector == b.TSS_SELECTOR and bench.cpu.rip == b.CODE
        assert bench.read(b.GDT + TASK_SELECTOR + 5, 1) == 0x89
        status = bench.go_on()
    assert {0x90, (TASK_STACK >> 12) - 1} <= set(bench.needs)
    assert bench.vector == 10  # GS: an empty descriptor is a system descriptor
    bench.vm.events.drain()
    assert bench.delivered() == [10]


def test_a_task_may_ask_for_a_debug_exception(bench: Bench) -> None:
    install(bench, tss32(trap=1))
    assert bench.deliver(0x30, kind=HARDWARE) == DELIVERED
    assert bench.delivered() == [0x30, 1]
    assert bench.cpu.dr6 & 0xE00F == 0x8000  # BT
    assert bench.stack(2, 4) == [TASK_CODE, b.CODE0]  # nothing of the task has been executed


def test_so_may_one_that_is_called(bench: Bench) -> None:
    install(bench, tss32(trap=1))
    bench.write(b.HANDLER + 16, b"\xf4")
    bench.run(f".byte 0x9A; .long 0; .word {TASK_SELECTOR}", 32)
    assert bench.vector == 1 and bench.cpu.dr6 & 0x8000
    assert bench.stack(2, 4) == [TASK_CODE, b.CODE0]
