"""One step of event delivery at a time: vector table, gates, privilege checks, stack switches, EFLAGS images."""

from __future__ import annotations

import struct

import pytest

from emu.cpu.delivery import DELIVERED, SHUTDOWN
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import EXCEPTION, HARDWARE, SOFTWARE, Bench

ALL_FLAGS = 0x8D5 | b.IF | b.TF | b.DF | b.NT | b.AC | b.IOPL3 | 2  # all arithmetic flags are in 0x8D5
WITH_ERROR = {8, 10, 11, 12, 13, 14, 17}


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- real mode ---


@pytest.mark.parametrize(("vector", "kind"), [(0, EXCEPTION), (13, EXCEPTION), (0x21, SOFTWARE), (8, HARDWARE)])
def test_real_mode_pushes_three_words(bench: Bench, vector: int, kind: int) -> None:
    bench.real()
    bench.set_eflags(b.IF | b.TF | b.AC | 0x8D5 | 2)
    assert bench.deliver(vector, 0, kind, 0x1234) == DELIVERED
    assert bench.stack(3, 2) == [0x1234, b.CODE >> 4, b.IF | b.TF | 0x8D5 | 2]
    assert bench.cpu.rsp == 0x8000 - 6
    assert bench.cpu.cs.base == b.HANDLER and bench.cpu.cs.selector == b.HANDLER >> 4
    assert bench.cpu.rip == 16 * vector
    assert bench.eflags == 0x8D5 | 2


def test_real_mode_stack_wraps_within_its_segment(bench: Bench) -> None:
    bench.real()
    bench.cpu.rsp = 0xAAAA_0002
    bench.deliver(3, kind=SOFTWARE)
    assert bench.cpu.rsp == 0xAAAA_FFFC
    assert bench.read(bench.cpu.ss.base, 2) == 2  # FLAGS


def test_real_mode_vector_beyond_the_table_is_gp(bench: Bench) -> None:
    bench.real()
    bench.cpu.idtr.set(0, 0, 0x20 * 4 - 1, 0)
    bench.write(4 * 13, struct.pack("<HH", 0x77, 0x900))
    assert bench.deliver(0x20, kind=HARDWARE) == DELIVERED
    assert bench.cpu.rip == 0x77 and bench.delivered() == [13]


# --- protected mode, same privilege ---


@pytest.mark.parametrize("vector", range(20))
def test_exceptions_push_error_codes(bench: Bench, vector: int) -> None:
    bench.protected()
    error = 0xABC0 if vector in WITH_ERROR else -1
    assert bench.deliver(vector, error) == DELIVERED
    is_fault = vector in WITH_ERROR - {8} or vector in (0, 5, 6, 7, 16, 19)
    frame = [b.CODE, b.CODE0, 2 | b.RF * is_fault]
    assert bench.stack(4, 4)[: 3 + (error >= 0)] == ([error] if error >= 0 else []) + frame
    assert bench.cpu.rsp == b.STACK0 - 12 - 4 * (error >= 0)
    assert bench.vector == vector


@pytest.mark.parametrize("kind", [SOFTWARE, HARDWARE])
def test_interrupts_push_no_error_code(bench: Bench, kind: int) -> None:
    bench.protected()
    bench.deliver(13, kind=kind)
    assert bench.stack(3, 4) == [b.CODE, b.CODE0, 2]


@pytest.mark.parametrize("gate", [b.INTERRUPT_32, b.TRAP_32, b.INTERRUPT_16, b.TRAP_16])
def test_flags_in_the_image_and_in_the_handler(bench: Bench, gate: int) -> None:
    bench.protected()
    bench.gate(0x30, gate)
    bench.set_eflags(ALL_FLAGS)
    bench.deliver(0x30, kind=HARDWARE)
    size = 4 if gate >= 14 else 2
    assert bench.stack(3, size) == [b.CODE, b.CODE0, ALL_FLAGS & (1 << 8 * size) - 1]
    cleared = b.TF | b.NT | (0 if gate & 1 else b.IF)
    assert bench.eflags == ALL_FLAGS & ~cleared
    assert bench.cpu.rip == b.HANDLER + 0x300


def test_the_stack_pointer_of_a_16_bit_stack_keeps_its_upper_half(bench: Bench) -> None:
    bench.protected()
    bench.cpu.ss.set(b.DATA0, 0x30000, 0xFFFF, b.DATA_16)
    bench.cpu.rsp = 0x1234_0100
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.cpu.rsp == 0x1234_00F4
    assert bench.words(0x300F4, 3, 4) == [b.CODE, b.CODE0, 2]


@pytest.mark.parametrize(
    ("vector", "breakpoint", "expected"),
    [(0, True, b.RF), (13, True, b.RF), (0, False, b.RF), (1, True, 0), (3, True, 0), (8, True, 0)],
)
def test_rf_is_pushed_for_faults(
    bench: Bench, vector: int, breakpoint: bool, expected: int
) -> None:
    bench.protected()
    bench.cpu.dr7 = 0x401 if breakpoint else 0x400
    bench.deliver(vector, 0, SOFTWARE if vector == 3 else EXCEPTION)
    image = bench.stack(4, 4)[3 if vector in WITH_ERROR else 2]
    assert image & b.RF == expected


# --- checks on the way; each case: what is broken, vector and error code of the exception that comes instead ---

IDT_ERROR = 0x30 * 8 + 2


def broken_gates(bench: Bench, case: str) -> tuple[int, int]:
    match case:
        case "beyond the IDT":
            bench.cpu.idtr.set(0, b.IDT, 0x30 * 8 - 1, 0)
            return 13, IDT_ERROR
        case "no gate":
            bench.gate(0x30, 2)
            return 13, IDT_ERROR
        case "a segment descriptor":
            bench.gate(0x30, 0x1B)
            return 13, IDT_ERROR
        case "not present":
            bench.gate(0x30, b.INTERRUPT_32, present=False)
            return 11, IDT_ERROR
        case "task gate, not present":
            bench.gate(0x30, b.TASK_GATE, present=False)
            return 11, IDT_ERROR
        case "null code selector":
            bench.gate(0x30, b.INTERRUPT_32, selector=3)
            return 13, 0
        case "code selector beyond the GDT":
            bench.gate(0x30, b.INTERRUPT_32, selector=0x103)
            return 13, 0x100
        case "code selector in no LDT":
            bench.cpu.ldtr.set(0, 0, 0, 0)
            bench.gate(0x30, b.INTERRUPT_32, selector=0xC)
            return 13, 0xC
        case "data for code":
            bench.gate(0x30, b.INTERRUPT_32, selector=b.DATA0)
            return 13, b.DATA0
        case "TSS for code":
            bench.gate(0x30, b.INTERRUPT_32, selector=b.TSS_SELECTOR)
            return 13, b.TSS_SELECTOR
        case "outer code":
            bench.gate(0x30, b.INTERRUPT_32, selector=b.CODE3)
            return 13, b.CODE3 & ~3
        case "code not present":
            bench.segment(b.SPARE, 0, 0xFFFFF, b.CODE_32 & ~b.PRESENT)
            bench.gate(0x30, b.INTERRUPT_32, selector=b.SPARE)
            return 11, b.SPARE
        case "offset beyond the code segment":
            bench.segment(b.SPARE, 0, 0x100, b.CODE_32 & ~(1 << 23))
            bench.gate(0x30, b.INTERRUPT_32, selector=b.SPARE)
            return 13, 0
    raise AssertionError(case)


BROKEN_GATES = [
    "beyond the IDT", "no gate", "a segment descriptor", "not present", "task gate, not present",
    "null code selector", "code selector beyond the GDT", "code selector in no LDT", "data for code", "TSS for code",
    "outer code", "code not present", "offset beyond the code segment",
]  # fmt: skip


@pytest.mark.parametrize("kind", [EXCEPTION, SOFTWARE, HARDWARE])
@pytest.mark.parametrize("case", BROKEN_GATES)
def test_a_broken_gate_is_an_exception_of_its_own(bench: Bench, case: str, kind: int) -> None:
    bench.protected()
    vector, error = broken_gates(bench, case)
    bench.write(b.CODE - 2, b"\xcd\x30")  # INT 30h
    assert bench.deliver(0x30, kind=kind) == DELIVERED
    assert bench.vector == vector
    external = 0 if kind == SOFTWARE else 1
    # a software interrupt that fails is a fault of the INT instruction, behind which RIP stands
    assert bench.stack(2, 4) == [error | external, b.CODE - (2 if kind == SOFTWARE else 0)]
    assert bench.delivered() == [vector]


def test_no_room_on_the_stack_leads_to_shutdown(bench: Bench) -> None:
    bench.protected()
    bench.cpu.rsp = 8
    assert bench.deliver(0x30, kind=HARDWARE) == SHUTDOWN
    assert bench.vm.processor.native.shutdown == 1  # #SS has no room either, nor has #DF


def test_an_expand_down_stack_ends_above_its_limit(bench: Bench) -> None:
    bench.protected()
    bench.cpu.ss.set(b.DATA0, 0, 0x3FFFF, b.DATA_32 | 1 << 10)
    bench.cpu.rsp = 0x4000C
    assert bench.deliver(0x30, kind=HARDWARE) == DELIVERED
    assert bench.cpu.rsp == 0x40000
    assert bench.deliver(0x30, kind=HARDWARE) == SHUTDOWN


@pytest.mark.parametrize(("encoding", "vector", "length"), [(b"\xcc", 3, 1), (b"\xce", 4, 1), (b"\xcd\x03", 3, 2)])
def test_where_a_failing_software_interrupt_began(bench: Bench, encoding: bytes, vector: int, length: int) -> None:
    bench.protected()
    bench.gate(vector, b.INTERRUPT_32, present=False)
    bench.write(b.CODE - len(encoding), encoding)
    bench.deliver(vector, kind=SOFTWARE)
    assert bench.vector == 11 and bench.stack(2, 4) == [vector * 8 + 2, b.CODE - length]


@pytest.mark.parametrize("gate", [b.INTERRUPT_32, b.TASK_GATE])
def test_software_interrupts_need_the_gates_privilege(bench: Bench, gate: int) -> None:
    bench.protected(ring=3)
    bench.gate(0x30, gate, selector=b.CODE0, dpl=2)
    bench.deliver(0x30, kind=SOFTWARE)
    assert bench.vector == 13 and bench.stack(1, 4) == [IDT_ERROR]
    bench.protected(ring=3)
    bench.gate(0x30, b.INTERRUPT_32, dpl=3)
    bench.deliver(0x30, kind=SOFTWARE)
    assert bench.vector == 0x30


# --- protected mode, to an inner privilege ---


@pytest.mark.parametrize("size", [2, 4])
def test_stack_switch(bench: Bench, size: int) -> None:
    bench.protected(ring=3)
    bench.gate(0x30, b.INTERRUPT_32 if size == 4 else b.INTERRUPT_16)
    bench.deliver(0x30, kind=HARDWARE)
    mask = (1 << 8 * size) - 1
    assert bench.stack(5, size) == [b.CODE, b.CODE3, 2, b.STACK3 & mask, b.DATA3]
    assert bench.cpu.rsp == b.STACK_TSS - 5 * size
    assert bench.cpu.cpl == 0 and bench.cpu.cs.selector == b.CODE0 and bench.cpu.ss.selector == b.DATA0


def test_stack_switch_through_a_16_bit_tss(bench: Bench) -> None:
    bench.protected(ring=3)
    bench.cpu.tr.set(b.TSS_SELECTOR, b.TSS, 43, b.PRESENT | b.TSS_16 << 8)
    bench.write(b.TSS + 2, struct.pack("<HH", 0x7000, b.DATA0))
    bench.deliver(14, 4)
    assert bench.cpu.rsp == 0x7000 - 24
    assert bench.stack(6, 4) == [4, b.CODE, b.CODE3, 2 | b.RF, b.STACK3, b.DATA3]


def test_a_conforming_handler_keeps_the_privilege(bench: Bench) -> None:
    bench.protected(ring=3)
    bench.segment(b.SPARE, 0, 0xFFFFF, b.CODE_32 | b.CONFORMING)
    bench.gate(0x30, b.INTERRUPT_32, selector=b.SPARE)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.cpu.cpl == 3 and bench.cpu.cs.selector == b.SPARE | 3
    assert bench.cpu.rsp == b.STACK3 - 12


STACKS = {
    "null": (0, None, 10, 0),
    "RPL": (b.DATA0 | 3, None, 10, b.DATA0),
    "beyond the GDT": (0x100, None, 10, 0x100),
    "DPL": (b.SPARE, b.DATA_32 | b.RING3, 10, b.SPARE),
    "code": (b.SPARE, b.CODE_32, 10, b.SPARE),
    "read-only": (b.SPARE, b.DATA_32 & ~(1 << 9), 10, b.SPARE),
    "system": (b.SPARE, b.PRESENT | 9 << 8, 10, b.SPARE),
    "not present": (b.SPARE, b.DATA_32 & ~b.PRESENT, 12, b.SPARE),
    "too small": (b.SPARE, b.DATA_32 & ~(1 << 23), 12, b.SPARE),
}


@pytest.mark.parametrize("case", STACKS)
def test_a_bad_inner_stack(bench: Bench, case: str) -> None:
    selector, attributes, vector, error = STACKS[case]
    bench.protected(ring=3)
    if attributes is not None:
        bench.segment(b.SPARE, 0, 0x10, attributes)
    bench.write(b.TSS + 8, struct.pack("<I", selector))
    # the exception itself is handled on a good stack, through a conforming segment
    bench.segment(0x48, 0, 0xFFFFF, b.CODE_32 | b.CONFORMING)
    bench.gate(vector, b.INTERRUPT_32, selector=0x48)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vector == vector and bench.stack(1, 4) == [error | 1]


def test_a_tss_without_the_stack(bench: Bench) -> None:
    bench.protected(ring=3)
    bench.cpu.tr.set(b.TSS_SELECTOR, b.TSS, 8, b.PRESENT | b.TSS_32 << 8)
    bench.segment(0x48, 0, 0xFFFFF, b.CODE_32 | b.CONFORMING)
    bench.gate(10, b.INTERRUPT_32, selector=0x48)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vector == 10 and bench.stack(1, 4) == [b.TSS_SELECTOR | 1]


# --- virtual-8086 mode ---


@pytest.mark.parametrize("size", [2, 4])
def test_from_virtual_8086_mode(bench: Bench, size: int) -> None:
    bench.v86()
    bench.gate(13, b.INTERRUPT_32 if size == 4 else b.INTERRUPT_16)
    bench.deliver(13, 0)
    flags = (b.RF | b.VM | b.IF | 2) & (1 << 8 * size) - 1
    assert bench.stack(10, size) == [0, 0x10, 0x4010, flags, 0x8000, 0x4020, 0x4000, 0x4030, 0x4040, 0x4050]
    assert bench.cpu.cpl == 0 and bench.eflags == 2
    for segment in (bench.cpu.ds, bench.cpu.es, bench.cpu.fs, bench.cpu.gs):
        assert (segment.selector, segment.base, segment.limit, segment.flags) == (0, 0, 0, 0)


@pytest.mark.parametrize("attributes", [b.CODE_32 | b.CONFORMING, b.CODE_32 | b.RING3, b.CODE_32 | 1 << 13])
def test_a_virtual_8086_task_is_left_for_ring_0_only(bench: Bench, attributes: int) -> None:
    bench.v86()
    bench.segment(b.SPARE, 0, 0xFFFFF, attributes)
    bench.gate(0x30, b.INTERRUPT_32, selector=b.SPARE)
    bench.write(b.TSS + 12, struct.pack("<II", b.STACK_TSS, b.SPARE))
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vector == 13 and bench.stack(1, 4) == [b.SPARE | 1]


# --- long mode ---


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("misaligned", [0, 8, 13])
def test_long_mode_frame(bench: Bench, ring: int, misaligned: int) -> None:
    bench.long(ring)
    bench.cpu.rsp -= misaligned
    before = bench.cpu.rsp
    bench.set_eflags(ALL_FLAGS)
    bench.deliver(14, 6)
    code, data = (b.CODE3, b.DATA3) if ring else (b.CODE0, b.DATA0)
    assert bench.stack(6, 8) == [6, b.CODE, code, ALL_FLAGS | b.RF, before, data]
    assert bench.cpu.rsp == (b.STACK_TSS if ring else before & ~15) - 48
    assert bench.cpu.ss.selector == (0 if ring else b.DATA0) and bench.cpu.cpl == 0
    assert bench.eflags == ALL_FLAGS & ~(b.IF | b.TF | b.NT)


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("ist", range(1, 8))
def test_interrupt_stack_table(bench: Bench, ring: int, ist: int) -> None:
    bench.long(ring)
    bench.write(b.TSS + 36, struct.pack("<7Q", *(0x61000 + 0x1000 * i for i in range(7))))
    bench.gate64(0x30, b.TRAP_32, ist=ist)
    bench.set_eflags(b.IF | 2)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.cpu.rsp == 0x60000 + 0x1000 * ist - 40
    assert bench.stack(5, 8)[3] == (b.STACK3 if ring else b.STACK0)
    assert bench.cpu.ss.selector == (0 if ring else b.DATA0)
    assert bench.eflags & b.IF  # a trap gate


LONG_GATES = ["beyond the IDT", "16-bit gate", "task gate", "not present", "not 64-bit", "32-bit", "null",
              "offset not canonical"]  # fmt: skip


@pytest.mark.parametrize("case", LONG_GATES)
@pytest.mark.parametrize("kind", [EXCEPTION, SOFTWARE])
def test_broken_long_mode_gates(bench: Bench, case: str, kind: int) -> None:
    bench.long()
    bench.write(b.CODE - 2, b"\xcd\x30")
    vector, error = 13, IDT_ERROR
    match case:
        case "beyond the IDT":
            bench.cpu.idtr.set(0, b.IDT, 0x31 * 16 - 2, 0)
        case "16-bit gate":
            bench.gate64(0x30, b.INTERRUPT_16)
        case "task gate":
            bench.gate64(0x30, b.TASK_GATE)
        case "not present":
            bench.gate64(0x30, present=False)
            vector = 11
        case "not 64-bit":
            bench.segment(b.SPARE, 0, 0xFFFFF, b.CODE_32)
            bench.gate64(0x30, selector=b.SPARE)
            error = b.SPARE
        case "32-bit":
            bench.segment(b.SPARE, 0, 0xFFFFF, b.CODE_64 | 1 << 22)
            bench.gate64(0x30, selector=b.SPARE)
            error = b.SPARE
        case "null":
            bench.gate64(0x30, selector=0)
            error = 0
        case "offset not canonical":
            bench.gate64(0x30, offset=1 << 47)
            error = 0
    bench.deliver(0x30, kind=kind)
    assert bench.vector == vector
    assert bench.stack(2, 8) == [error | (kind != SOFTWARE), b.CODE - (2 if kind == SOFTWARE else 0)]


def test_a_stack_that_is_not_canonical(bench: Bench) -> None:
    bench.long()
    bench.write(b.TSS + 36, struct.pack("<Q", b.STACK_TSS))
    bench.gate64(12, ist=1)
    bench.cpu.rsp = 0x0000_8000_0000_0010
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vector == 12 and bench.stack(1, 8) == [1]


def test_a_64_bit_tss_without_the_stack(bench: Bench) -> None:
    bench.long(ring=3)
    bench.cpu.tr.set(b.TSS_SELECTOR, b.TSS, 10, b.PRESENT | b.TSS_32 << 8)
    bench.segment(0x48, 0, 0xFFFFF, b.CODE_64 | b.CONFORMING)
    bench.gate64(10, selector=0x48)
    bench.deliver(0x30, kind=HARDWARE)
    assert bench.vector == 10 and bench.stack(1, 8) == [b.TSS_SELECTOR | 1]
