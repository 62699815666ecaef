"""JMP, CALL and IRET to a task: what is saved, what is loaded, and whose the faults are (SDM vol. 3A, 7.3)."""

from __future__ import annotations

import struct

import pytest

from emu.machine.vm import Stop
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench, assemble
from tests.cpu.test_taskswitch import TASK_CODE, TASK_SELECTOR, TASK_STACK, install, tss16, tss32

GATE, LENGTH = 0x48, 7  # a task gate in the GDT; bytes of a far JMP or CALL
JUMP, CALL = 0xEA, 0x9A


@pytest.fixture(params=["shadow", "nested"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench(request.param)
    bench.paged()
    install(bench, tss32(cr3=b.TABLES))
    bench.write(b.TSS + 0x1C, struct.pack("<I", b.TABLES))
    bench.write(TASK_CODE, b"\xf4")
    for vector in (10, 11, 12, 13, 14):
        bench.gate(vector, b.INTERRUPT_32)
        bench.write(b.HANDLER + 16 * vector, b"\xf4")
    return bench


def transfer(bench: Bench, opcode: int, selector: int = TASK_SELECTOR) -> None:
    bench.write(b.CODE, struct.pack("<BIH", opcode, 0xDEAD, selector) + b"\xf4")
    assert bench.vm.run(until=bench.vm.now + 1_000_000) is Stop.HALTED
    bench.vm.events.drain()


def busy(bench: Bench, selector: int) -> bool:
    return bool(bench.read(b.GDT + selector + 5, 1) & 2)


@pytest.mark.parametrize("opcode", [JUMP, CALL])
@pytest.mark.parametrize("selector", [TASK_SELECTOR, GATE])
def test_the_new_task(bench: Bench, opcode: int, selector: int) -> None:
    bench.write(b.GDT + GATE, struct.pack("<HHI", 0, TASK_SELECTOR, 0x8500))
    bench.set_eflags(0x8D5 | 2)
    transfer(bench, opcode, selector)
    cpu = bench.cpu
    assert (cpu.rip, cpu.rsp, cpu.rax, cpu.tr.selector) == (TASK_CODE + 1, TASK_STACK, 0x1111_0001, TASK_SELECTOR)
    assert bench.read(b.TSS + 0x20, 4) == b.CODE + LENGTH and bench.read(b.TSS + 0x24, 4) == 0x8D5 | 2
    assert busy(bench, TASK_SELECTOR) and busy(bench, b.TSS_SELECTOR) == (opcode == CALL)
    assert bench.eflags == (0x46 | b.NT if opcode == CALL else 0x46)
    assert bench.read(b.TASK, 2) == (b.TSS_SELECTOR if opcode == CALL else 0)


def test_there_and_back(bench: Bench) -> None:
    bench.write(TASK_CODE, assemble("iretd; hlt", 32, TASK_CODE))
    bench.cpu.rbx = 5
    before = bench.vm.now
    transfer(bench, CALL)
    assert (bench.cpu.rip, bench.cpu.rbx, bench.cpu.tr.selector) == (b.CODE + LENGTH + 1, 5, b.TSS_SELECTOR)
    assert busy(bench, b.TSS_SELECTOR) and not busy(bench, TASK_SELECTOR)
    assert bench.read(b.TASK + 0x20, 4) == TASK_CODE + 1 and bench.read(b.TASK + 0x24, 4) & b.NT == 0
    assert bench.vm.now - before == LENGTH + 1 + 1  # each byte executed counts


@pytest.mark.parametrize("opcode", [JUMP, CALL])
def test_a_16_bit_task(bench: Bench, opcode: int) -> None:
    install(bench, tss16(), b.TSS_16)
    transfer(bench, opcode)
    assert (bench.cpu.rip, bench.cpu.rsp, bench.cpu.rax) == (TASK_CODE + 1, 0x7000, 1)


@pytest.mark.parametrize("opcode", [JUMP, CALL])
@pytest.mark.parametrize("field", ["ds", "ss", "ldt"])
def test_a_bad_selector_is_the_new_task_s_fault(bench: Bench, opcode: int, field: str) -> None:
    bench.write(b.TASK, tss32(**{"cr3": b.TABLES, field: 0x1F0}))
    if field != "ds":
        bench.gate(10, b.TASK_GATE, selector=0x58)  # there is no stack to push on
        bench.write(b.TASK + 0x100, tss32(cr3=b.TABLES))
        bench.segment(0x58, b.TASK + 0x100, 103, b.PRESENT | 9 << 8)
    transfer(bench, opcode)
    assert bench.delivered() == [10]
    if field == "ds":
        assert bench.stack(2, 4) == [0x1F0, TASK_CODE] and bench.cpu.tr.selector == TASK_SELECTOR


REFUSED = {
    "busy": (b.PRESENT | 11 << 8, 103, 13),
    "not present": (9 << 8, 103, 11),
    "too small": (b.PRESENT | 9 << 8, 102, 10),
}


@pytest.mark.parametrize("opcode", [JUMP, CALL])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(bench: Bench, case: str, opcode: int) -> None:
    attributes, limit, vector = REFUSED[case]
    bench.segment(TASK_SELECTOR, b.TASK, limit, attributes)
    transfer(bench, opcode)
    assert bench.delivered() == [vector] and bench.stack(2, 4) == [TASK_SELECTOR, b.CODE]
    assert bench.cpu.tr.selector == b.TSS_SELECTOR and busy(bench, b.TSS_SELECTOR)


def test_iret_to_what_is_no_busy_task(bench: Bench) -> None:
    bench.write(b.TSS, struct.pack("<I", TASK_SELECTOR))
    bench.set_eflags(b.NT | 2)
    bench.write(b.CODE, b"\xcf")
    assert bench.vm.run(until=bench.vm.now + 1_000_000) is Stop.HALTED
    bench.vm.events.drain()
    assert bench.delivered() == [10] and bench.stack(2, 4) == [TASK_SELECTOR, b.CODE]
