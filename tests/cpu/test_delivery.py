"""What becomes of an event: nested exceptions, page faults on the way, waiting for the DMM, the record of events."""

from __future__ import annotations

import pytest

from emu.cpu.delivery import DELIVERED, SHUTDOWN
from emu.engine.events import ExceptionDelivery, InterruptDelivery, PageFault
from emu.machine.vm import Stop
from emu.mmu.walk import NEED
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import HARDWARE, SOFTWARE, Bench

CONTRIBUTORY = {0, 10, 11, 12, 13}
PAGE_FAULT = 14
ERRORS = {8, 10, 11, 12, 13, 14, 17}


def expected_after(first: int, second: int) -> int:
    """SDM vol. 3A, table 6-5: which exception is delivered when ``second`` comes up while ``first`` is delivered."""
    if first in CONTRIBUTORY and second in CONTRIBUTORY:
        return 8
    if first == PAGE_FAULT and (second in CONTRIBUTORY or second == PAGE_FAULT):
        return 8
    return second


def break_gate(bench: Bench, vector: int, second: int) -> None:
    """Make the delivery of ``vector`` meet the exception ``second``."""
    if second == 11:
        bench.gate(vector, b.INTERRUPT_32, present=False)
    elif second == 13:
        bench.gate(vector, b.INTERRUPT_32, selector=0)
    elif second == 10:  # the task gate's TSS is too small
        bench.segment(b.SPARE, b.TASK, 8, b.PRESENT | b.TSS_32 << 8)
        bench.gate(vector, b.TASK_GATE, selector=b.SPARE)
    else:
        assert second == PAGE_FAULT  # the handler's segment is described on a page that is not there
        bench.cpu.ldtr.set(0x50, 0x70000, 0xFFFF, b.PRESENT | 2 << 8)
        bench.map_page(0x70000, 0)
        bench.gate(vector, b.INTERRUPT_32, selector=0x0C)


@pytest.mark.parametrize("second", [10, 11, 13, PAGE_FAULT])
@pytest.mark.parametrize("first", range(20))
def test_every_combination_of_two_exceptions(first: int, second: int) -> None:
    bench = Bench()
    bench.paged()
    break_gate(bench, first, second)
    outcome = bench.deliver(first, 0 if first in ERRORS else -1)
    if first == 8:
        assert outcome == SHUTDOWN
        return
    vector = expected_after(first, second)
    assert outcome == DELIVERED and bench.vector == vector
    if vector == 8:
        assert bench.stack(2, 4) == [0, b.CODE]
    else:
        assert bench.stack(2, 4)[1] == b.CODE
    if second == PAGE_FAULT:
        assert bench.cpu.cr2 == 0x70008


@pytest.mark.parametrize("kind", [SOFTWARE, HARDWARE])
@pytest.mark.parametrize("vector", [8, 13, 14])
def test_interrupts_are_benign_whatever_their_vector(kind: int, vector: int) -> None:
    bench = Bench()
    bench.paged()
    bench.gate(vector, b.INTERRUPT_32, present=False)
    bench.write(b.CODE - 2, b"\xcd")
    bench.deliver(vector, kind=kind)
    assert bench.vector == 11


@pytest.mark.parametrize("vector", [13, 14, 0x30])
def test_a_broken_double_fault_gate_is_shutdown(vector: int) -> None:
    bench = Bench()
    bench.protected()
    for broken in (8, 11, 13, vector):
        bench.gate(broken, b.INTERRUPT_32, present=False)
    assert bench.deliver(vector, 0) == SHUTDOWN
    assert bench.vm.run() == Stop.CRASH


def test_real_mode_shutdown() -> None:
    bench = Bench()
    bench.real()
    bench.cpu.idtr.set(0, 0, 0, 0)
    assert bench.deliver(0) == SHUTDOWN


def test_a_page_fault_on_the_inner_stack() -> None:
    bench = Bench()
    bench.paged(ring=3)
    bench.map_page(b.STACK_TSS - 0x1000, 0)
    bench.segment(0x48, 0, 0xFFFFF, b.CODE_32 | b.CONFORMING)  # handled on the stack of ring 3
    bench.gate(14, b.INTERRUPT_32, selector=0x48)
    bench.set_eflags(2 | 1 << 6)
    assert bench.deliver(0x30, kind=HARDWARE) == DELIVERED
    assert bench.vector == 14 and bench.cpu.cr2 == b.STACK_TSS - 20
    assert bench.stack(4, 4) == [2, b.CODE, b.CODE3, 2 | 1 << 6 | b.RF]  # a write by the processor: not user


def test_system_accesses_ignore_the_privilege_of_pages() -> None:
    bench = Bench()
    bench.paged(ring=3)
    for gva in (b.GDT, b.IDT, b.TSS, b.STACK_TSS - 0x1000):
        bench.map_page(gva, 3)
    assert bench.deliver(0x30, kind=HARDWARE) == DELIVERED
    assert bench.vector == 0x30


@pytest.mark.parametrize("ac", [0, b.AC])
def test_smap_holds_for_system_accesses(ac: int) -> None:
    bench = Bench()
    bench.paged(ring=3)
    bench.cpu.cr4 |= 1 << 21
    bench.segment(0x48, 0, 0xFFFFF, b.CODE_32 | b.CONFORMING)
    for gva in (b.GDT, b.TSS, b.STACK_TSS - 0x1000, b.STACK3 - 0x1000):
        bench.map_page(gva, 3)
    bench.set_eflags(2 | ac)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vm.processor.native.shutdown == 1 and bench.cpu.cr2 == b.IDT + 8 * 8  # the IDT is a user page


# --- waiting for the DMM ---


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("mode", ["real", "protected", "paged", "long", "v86"])
def test_delivery_waits_for_pages_and_changes_nothing_before(mode: str, mmu: str) -> None:
    bench = Bench(mmu)
    getattr(bench, mode)(**({"ring": 3} if mode in ("protected", "paged", "long") else {}))
    before = bench.cpu.save()
    bench.set_eflags(bench.eflags)
    waited = 0
    status = bench.start(0x21, kind=HARDWARE)
    while status == NEED:
        waited += 1
        saved = bench.cpu.save()
        assert saved[:144] == before[:144] and saved[184:640] == before[184:640]  # registers, segments, control
        assert bench.vm.processor.native.pending == 1
        status = bench.go_on()
    assert status == DELIVERED and bench.vm.processor.native.pending == 0
    assert waited == 1  # the stack; everything else was written by the bench
    bench.vm.events.drain()
    assert bench.delivered() == [0x21]
    assert (bench.cpu.rip == 16 * 0x21) if mode == "real" else (bench.vector == 0x21)


def test_a_frame_across_two_absent_pages() -> None:
    bench = Bench()
    bench.long()
    bench.cpu.rsp = b.STACK0 + 16
    bench.deliver(14, 3)
    assert sorted(bench.needs) == [(b.STACK0 >> 12) - 1, b.STACK0 >> 12]
    assert bench.stack(6, 8) == [3, b.CODE, b.CODE0, 2 | b.RF, b.STACK0 + 16, b.DATA0]


def test_waiting_in_the_second_of_two_exceptions() -> None:
    bench = Bench()
    bench.paged(ring=3)
    break_gate(bench, 5, 11)
    assert bench.start(5) == NEED
    assert bench.vm.processor.native.pending_vector == 11  # the first one is over
    assert bench.go_on() == DELIVERED
    bench.vm.events.drain()
    assert bench.vector == 11 and bench.delivered() == [11]


def test_frames_that_hold_page_tables_and_code() -> None:
    """The handler's stack lies on the page table that maps it: the stores go the way of guest stores."""
    bench = Bench("shadow")
    bench.paged()
    bench.cpu.rsp = b.TABLES + 0x1FF0  # unused entries of the page table
    bench.write(b.CODE, b"\xeb\xfe")
    bench.vm.run(until=bench.vm.now + 100)  # makes shadow tables
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.words(b.TABLES + 0x1FE4, 3, 4) == [b.CODE, b.CODE0, 2]
    assert [event for event in bench.events if event.NAME == "table-write"]


# --- the engine's own exceptions, and where they return to ---


@pytest.mark.parametrize(
    ("source", "vector", "offset", "software"),
    [
        ("int 0x21", 0x21, 2, 1), ("int3", 3, 1, 1), ("int 3", 3, 2, 1), ("int 6", 6, 2, 1),
        ("xor ecx, ecx; div ecx", 0, 2, 0), ("ud2", 6, 0, 0), ("hlt", None, 1, 0),
        ("mov al, 0x7f; inc al; into", 4, 5, 1), ("mov ax, 0x77; mov ds, ax", 13, 4, 0),
        ("mov ecx, 100; bound ecx, [0x8000]", 5, 5, 0),
    ],
)  # fmt: skip
def test_exceptions_of_the_engine(source: str, vector: int | None, offset: int, software: int) -> None:
    bench = Bench()
    bench.protected()
    for handler in range(64):
        bench.write(b.HANDLER + 16 * handler, b"\xf4")  # HLT
    bench.write(b.HANDLER - 16, b"\xf4")
    bench.run(source, 32)
    events = [event for event in bench.events if isinstance(event, ExceptionDelivery)]
    if vector is None:
        assert not events
        return
    assert [(e.vector, e.rip - b.CODE, e.software, e.cpl) for e in events] == [(vector, offset, software, 0)]
    assert bench.cpu.rip == b.HANDLER + 16 * vector + 1


def test_icebp_is_a_debug_trap() -> None:
    bench = Bench()
    bench.protected(ring=3)
    bench.write(b.CODE, b"\x90\xf1")
    bench.write(b.HANDLER + 16, b"\xf4")
    bench.vm.run()
    assert bench.stack(1, 4) == [b.CODE + 2] and bench.delivered() == [1]


def test_single_steps_when_the_engine_stops_in_between() -> None:
    counts = []
    for stops in (0, 5):
        bench = Bench()
        bench.protected()
        bench.write(b.HANDLER + 16, b.assemble("inc ebx; iretd", 32, b.HANDLER + 16))
        bench.run("pushfd; or dword ptr [esp], 0x100; popfd; nop; inc eax; jmp l; nop; l: nop; pushfd; "
                  "and dword ptr [esp], 0xfffffeff; popfd; nop", 32, stops)  # fmt: skip
        steps = [event.rip - b.CODE for event in bench.events if isinstance(event, ExceptionDelivery)]
        counts.append((bench.cpu.rbx & 0xFFFF, steps))
        assert bench.cpu.dr6 & 1 << 14
    assert counts[0] == counts[1] and counts[0][0] == 7


def test_general_protection_for_addresses_that_are_not_canonical() -> None:
    bench = Bench()
    bench.long()
    bench.write(b.HANDLER + 16 * 13, b"\xf4")
    bench.run("mov rax, 0x800000000000; mov rbx, [rax]", 64)
    assert bench.stack(2, 8) == [0, b.CODE + 10]


# --- the record ---


def test_events() -> None:
    bench = Bench()
    bench.paged(ring=3)
    bench.cpu.cr2 = 0x1234
    bench.deliver(14, 5)
    bench.ring(0)
    bench.deliver(0x20, kind=HARDWARE)
    found = [event for event in bench.events if isinstance(event, PageFault | ExceptionDelivery | InterruptDelivery)]
    fault, exception, interrupt = found
    assert isinstance(fault, PageFault)
    assert (fault.gva, fault.error, fault.rip, fault.cpl) == (0x1234, 5, b.CODE, 3)
    assert isinstance(exception, ExceptionDelivery)
    assert (exception.vector, exception.error, exception.rip, exception.cpl, exception.software) == (
        14, 5, b.CODE, 3, 0,
    )  # fmt: skip
    assert isinstance(interrupt, InterruptDelivery)
    assert (interrupt.vector, interrupt.rip, interrupt.cpl) == (0x20, b.CODE, 0)


def test_delivery_ends_the_interrupt_shadow() -> None:
    bench = Bench()
    bench.protected()
    bench.write(b.HANDLER + 16 * 6, b"\xf4")
    bench.run("sti; ud2", 32)
    assert not bench.cpu.hflags & 1 << 3
    assert bench.delivered() == [6]
