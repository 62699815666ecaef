"""The local APIC: set up as SeaBIOS and Linux do, priorities, IPIs, x2APIC, errors, and a readable model."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.apic_bus import ApicBus
from emu.devices.cpu_pins import CpuPins
from emu.devices.lapic import LocalApic
from emu.devices.pic import PicPair
from emu.errors import BadInput

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR2 = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
TIMER, THERMAL, COUNTER, LINT0, LINT1, ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
MASKED = 0x10000
BASE, DEADLINE = 0x1B, 0x6E0
FIXED, LOWEST, SMI, NMI, INIT, SIPI, EXTINT = 0, 1, 2, 4, 5, 6, 7
PIC_VECTOR = 0x23


class Board:
    """A CPU and an 8259 that holds INTR until it is acknowledged."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.intr = False
        self.intr_changes = 0
        self.nmis = 0
        self.eois: list[int] = []
        self.started: list[object] = []  # what INIT and SIPI brought
        pins = CpuPins(self.set_intr, self.nmi, self.started.append, lambda cpu, vector: self.started.append(vector))
        self.bus = ApicBus(1, pins, self.inta, self.eois.append, lambda: self.now_ns)
        (self.apic,) = self.bus.apics

    def set_intr(self, cpu: int, level: bool) -> None:
        assert level != self.intr, "told only what changes"
        self.intr = level
        self.intr_changes += 1

    def nmi(self, cpu: int) -> None:
        self.nmis += 1

    def inta(self) -> int:
        self.apic.lint0.set(False)
        return PIC_VECTOR

    def out(self, *writes: tuple[int, int]) -> None:
        for offset, value in writes:
            self.apic.write(offset, 4, value)

    def inl(self, offset: int) -> int:
        return self.apic.read(offset, 4)

    def bits(self, offset: int) -> int:
        """ISR, TMR or IRR as one number."""
        return sum(self.inl(offset + 16 * n) << 32 * n for n in range(8))

    def take(self) -> int:
        """What the CPU does when it sees its interrupt request."""
        assert self.intr
        return self.apic.acknowledge()

    def run(self, until_ns: int) -> list[int]:
        """Tick at each deadline and serve every interrupt at once; the vectors."""
        vectors = []
        while (deadline := self.apic.deadline()) is not None and deadline <= until_ns:
            self.now_ns = max(self.now_ns, deadline)
            self.apic.tick(self.now_ns)
            while self.intr:
                vectors.append(self.take())
                self.out((EOI, 0))
        self.now_ns = until_ns
        return vectors


@pytest.fixture
def board() -> Board:
    """Software-enabled with spurious vector 0xFF, all of the LVT but LINT0 masked."""
    board = Board()
    board.out((SVR, 0x1FF))
    return board


@pytest.fixture
def x2apic(board: Board) -> Board:
    assert board.apic.write_msr(BASE, 0xFEE00D00)
    return board


# --- identity and reset -----------------------------------------------------------------------------------------


def test_registers_after_reset() -> None:
    board = Board()
    assert board.inl(ID) == 0
    assert board.inl(VERSION) == 0x50014
    assert [board.inl(offset) for offset in (TPR, PPR, EOI, LDR, ESR, ICR, ICR2)] == [0] * 7
    assert (board.inl(DFR), board.inl(SVR)) == (0xFFFFFFFF, 0xFF)
    assert [board.inl(offset) for offset in (TIMER, THERMAL, COUNTER, LINT1, ERROR)] == [MASKED] * 5
    assert [board.inl(offset) for offset in (INITIAL, CURRENT, DIVIDE)] == [0] * 3
    assert board.bits(ISR) == board.bits(TMR) == board.bits(IRR) == 0
    assert board.apic.read_msr(BASE) == 0xFEE00900
    assert (board.apic.mapped, board.apic.enabled, board.apic.deadline()) == (0xFEE00000, True, None)


def test_a_kernel_that_knows_only_the_8259_gets_its_interrupts() -> None:
    board = Board()
    board.apic.lint0.set(True)
    assert board.take() == PIC_VECTOR
    assert not board.intr
    assert board.bits(ISR) == 0, "the 8259 has its own ISR"


def test_only_aligned_dwords_are_registers(board: Board) -> None:
    assert [board.apic.read(offset, size) for offset, size in ((VERSION, 1), (VERSION, 2), (VERSION + 4, 4))] == [0] * 3
    board.apic.write(TPR, 1, 0x50)
    board.apic.write(TPR + 4, 4, 0x50)
    assert board.inl(TPR) == 0


def test_linux_verify_local_apic(board: Board) -> None:
    """Writing the version does nothing, the ID keeps what is written to its upper byte."""
    board.out((VERSION, 0x50014 ^ 0xFF))
    assert board.inl(VERSION) == 0x50014
    board.out((ID, 0x0F00_0000))
    assert board.inl(ID) == 0x0F00_0000


# --- priorities -------------------------------------------------------------------------------------------------


def test_request_service_and_end_of_one_interrupt(board: Board) -> None:
    assert board.apic.deliver(0x41, FIXED, False)
    assert (board.bits(IRR), board.bits(ISR), board.inl(PPR)) == (1 << 0x41, 0, 0)
    assert board.take() == 0x41
    assert (board.bits(IRR), board.bits(ISR), board.inl(PPR)) == (0, 1 << 0x41, 0x40)
    assert not board.intr
    board.out((EOI, 0))
    assert (board.bits(ISR), board.inl(PPR), board.eois) == (0, 0, [])


def test_only_a_higher_class_interrupts_a_service_routine(board: Board) -> None:
    board.apic.deliver(0x41, FIXED, False)
    assert board.take() == 0x41
    board.apic.deliver(0x4F, FIXED, False)
    assert not board.intr, "same class"
    board.apic.deliver(0x50, FIXED, False)
    assert board.take() == 0x50
    board.out((EOI, 0))
    assert board.bits(ISR) == 1 << 0x41
    assert not board.intr
    board.out((EOI, 0))
    assert board.take() == 0x4F


def test_tpr_holds_back_its_class_and_below_and_cr8_is_its_class(board: Board) -> None:
    board.out((TPR, 0x4F))
    board.apic.deliver(0x4F, FIXED, False)
    assert not board.intr
    assert (board.inl(PPR), board.apic.cr8) == (0x4F, 4)
    board.apic.cr8 = 3
    assert board.inl(TPR) == 0x30
    assert board.intr
    board.apic.cr8 = 15
    assert not board.intr
    assert board.apic.acknowledge() == 0xFF, "the request went away: the spurious vector"
    assert board.bits(ISR) == 0
    board.out((TPR, 0))
    assert board.take() == 0x4F


def test_the_8259_is_let_through_whatever_the_tpr_is(board: Board) -> None:
    board.out((TPR, 0xFF))
    board.apic.lint0.set(True)
    assert board.take() == PIC_VECTOR
    board.out((LINT0, EXTINT << 8 | MASKED))
    board.apic.lint0.set(True)
    assert not board.intr
    board.out((LINT0, EXTINT << 8))
    assert board.intr, "a level, not an edge"
    board.out((TPR, 0))
    board.apic.deliver(0x31, FIXED, False)
    assert [board.take(), board.take()] == [0x31, PIC_VECTOR], "its own interrupts first"
    assert not board.intr


@pytest.mark.parametrize("base", [0xFEE00900, 0xFEE00100])
def test_wired_to_the_8259(base: int) -> None:
    """Virtual wire mode and globally disabled: the same interrupts, the same order."""
    intr: list[bool] = [False]
    pins = CpuPins(lambda cpu, level: intr.append(level), lambda cpu: None, lambda cpu: None, lambda cpu, vector: None)
    (apic,) = ApicBus(1, pins, lambda: pics.acknowledge(), lambda vector: None, lambda: 0).apics
    pics = PicPair(apic.lint0.set)
    assert apic.write_msr(0x1B, base)
    for chip, base in ((pics.master, 0x20), (pics.slave, 0x28)):
        for offset, value in ((0, 0x11), (1, base), (1, 4), (1, 1)):
            chip.write(offset, 1, value)
    for irq in (14, 4, 1):
        pics.line(irq).set(True)
    vectors = []
    while intr[-1]:
        vectors.append(apic.acknowledge())
        assert not intr[-1]
        for chip in (pics.slave, pics.master):
            chip.write(0, 1, 0x20)
    assert vectors == [0x21, 0x2E, 0x24]


def test_eoi_without_service_does_nothing(board: Board) -> None:
    board.out((EOI, 0))
    assert (board.bits(ISR), board.intr_changes) == (0, 0)


def test_level_triggered_eoi_goes_to_the_io_apic(board: Board) -> None:
    board.apic.deliver(0x61, FIXED, True)
    assert board.bits(TMR) == 1 << 0x61
    board.take()
    board.out((EOI, 0))
    assert board.eois == [0x61]
    board.apic.deliver(0x61, FIXED, False)
    assert board.bits(TMR) == 0
    board.take()
    board.out((EOI, 0))
    assert board.eois == [0x61]


def test_a_level_that_stays_asks_again_from_within_eoi(board: Board) -> None:
    """What an I/O APIC does whose line is still high."""

    def again(vector: int) -> None:
        assert apic.deliver(vector, FIXED, True)

    pins = CpuPins(board.set_intr, board.nmi, lambda cpu: None, lambda cpu, vector: None)
    apic = LocalApic(0, pins, lambda destination, command: None, board.inta, again, lambda: 0)
    apic.write(SVR, 4, 0x1FF)
    again(0x61)
    assert apic.acknowledge() == 0x61
    assert not board.intr
    apic.write(EOI, 4, 0)
    assert board.intr
    assert apic.acknowledge() == 0x61


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("deliver"), st.integers(16, 255)),
            st.tuples(st.just("tpr"), st.integers(0, 255)),
            st.tuples(st.sampled_from(["eoi", "take"]), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_request_is_always_what_the_manual_says(steps: list[tuple[str, int]]) -> None:
    """A model with sets: highest requested class above the class of TPR and of all in service."""
    board = Board()
    board.out((SVR, 0x1FF))
    requested: set[int] = set()
    served: set[int] = set()
    tpr = 0
    for action, value in steps:
        if action == "deliver":
            board.apic.deliver(value, FIXED, False)
            requested.add(value)
        elif action == "tpr":
            board.out((TPR, value))
            tpr = value
        elif action == "eoi":
            board.out((EOI, 0))
            served.discard(max(served, default=-1))
        elif board.intr:
            vector = board.take()
            assert vector == max(requested)
            requested.remove(vector)
            served.add(vector)
        highest = max(tpr >> 4, max(served, default=0) >> 4)
        assert board.intr == (max(requested, default=0) >> 4 > highest)
        assert board.inl(PPR) >> 4 == highest
        assert board.bits(IRR) == sum(1 << vector for vector in requested)
        assert board.bits(ISR) == sum(1 << vector for vector in served)


# --- software and global enable ---------------------------------------------------------------------------------


def test_software_disabled_it_takes_nothing_new_and_masks_the_lvt(board: Board) -> None:
    board.out((TIMER, 0x40), (LINT1, NMI << 8))
    board.apic.deliver(0x41, FIXED, False)
    board.out((SVR, 0xFF))
    assert [board.inl(offset) & MASKED for offset in (TIMER, THERMAL, COUNTER, LINT0, LINT1, ERROR)] == [MASKED] * 6
    board.out((TIMER, 0x40))
    assert board.inl(TIMER) == MASKED | 0x40
    assert not board.apic.deliver(0x42, FIXED, False)
    assert board.apic.deliver(0, NMI, False)
    assert board.nmis == 1
    assert board.take() == 0x41, "what was pending is held for the CPU"
    board.out((SVR, 0x1FF))
    assert board.inl(TIMER) & MASKED, "the guest has to open it again"


def test_globally_disabled_the_pins_go_to_the_cpu(board: Board) -> None:
    board.out((LINT0, MASKED), (TPR, 0xFF))
    board.apic.lint0.set(True)
    assert not board.intr
    assert board.apic.write_msr(BASE, 0xFEE00000)
    assert (board.apic.mapped, board.apic.enabled) == (None, False)
    assert board.take() == PIC_VECTOR
    board.apic.lint1.set(True)
    board.apic.lint1.set(True)
    assert board.nmis == 1
    assert not board.bus.message(0, False, 0x41, FIXED, False)
    assert board.apic.read_msr(BASE) == 0xFEE00100, "still the first CPU"
    assert board.apic.write_msr(BASE, 0xFEE00800)
    assert (board.inl(SVR), board.inl(TPR), board.inl(LINT0)) == (0xFF, 0, 0x700), "as after power-up"


def test_the_page_can_be_moved(board: Board) -> None:
    assert board.apic.write_msr(BASE, 0xF_0000_0900)
    assert board.apic.mapped == 0xF_0000_0000
    assert board.inl(SVR) == 0x1FF


@pytest.mark.parametrize("value", [0xFEE00901, 0xFEE00B00, 1 << 40 | 0xFEE00900, 1 << 63 | 0xFEE00900, 0xFEE00400])
def test_reserved_bits_of_the_base_are_refused(board: Board, value: int) -> None:
    assert not board.apic.write_msr(BASE, value)
    assert board.apic.read_msr(BASE) == 0xFEE00900


def test_the_ways_between_the_modes() -> None:
    """SDM figure 11-27. States: 0 disabled, 1 invalid, 2 xAPIC, 3 x2APIC."""
    allowed = {(0, 0), (0, 2), (2, 0), (2, 2), (2, 3), (3, 0), (3, 3)}
    for start, way in ((0, [0]), (2, []), (3, [3])):
        for goal in range(4):
            apic = Board().apic
            for state in way:
                assert apic.write_msr(BASE, 0xFEE00000 | state << 10)
            assert apic.write_msr(BASE, 0xFEE00000 | goal << 10) == ((start, goal) in allowed), (start, goal)


# --- local pins -------------------------------------------------------------------------------------------------


def test_lint1_is_the_nmi_pin(board: Board) -> None:
    board.apic.lint1.set(True)
    board.apic.lint1.set(False)
    assert board.nmis == 0
    board.out((LINT1, NMI << 8))
    board.apic.lint1.set(True)
    board.apic.lint1.set(True)
    assert board.nmis == 1


def test_lint0_as_a_fixed_edge(board: Board) -> None:
    """Linux, when the timer comes through no other way."""
    board.out((LINT0, 0x30))
    board.apic.lint0.set(True)
    assert board.take() == 0x30
    board.out((EOI, 0))
    assert not board.intr
    board.apic.lint0.set(False)
    board.apic.lint0.set(True)
    assert board.take() == 0x30


def test_lint0_as_a_fixed_level(board: Board) -> None:
    board.out((LINT0, 0x8030))
    board.apic.lint0.set(True)
    assert board.inl(LINT0) == 0xC030, "remote IRR"
    assert board.take() == 0x30
    board.out((EOI, 0))
    assert board.take() == 0x30, "it is still high"
    board.apic.lint0.set(False)
    board.out((EOI, 0))
    assert (board.inl(LINT0), board.intr) == (0x8030, False)


def test_lvt_entries_keep_only_the_bits_they_have(board: Board) -> None:
    everything = [(offset, 0xFFFFFFFF) for offset in (TIMER, THERMAL, COUNTER, LINT0, LINT1, ERROR)]
    board.out(*everything)
    assert [board.inl(offset) for offset, _ in everything] == [0x700FF, 0x107FF, 0x107FF, 0x1A7FF, 0x1A7FF, 0x100FF]


# --- IPIs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("icr2", "icr", "arrives"),
    [
        (0, 0x40041, True),  # to self
        (0, 0x80041, True),  # to all
        (0, 0xC0041, False),  # to all but self
        (0, 0x00041, True),  # physical 0
        (0, 0x00141, True),  # lowest priority
        (0x01000000, 0x00041, False),  # physical 1: nobody
        (0xFF000000, 0x00041, True),  # physical broadcast
        (0x02000000, 0x00841, True),  # logical, flat: LDR is 2
        (0x07000000, 0x00841, True),
        (0x05000000, 0x00841, False),
        (0, 0x0C041, True),  # level bits mean nothing
        (0, 0x00241, False),  # SMI
        (0, 0x00641, False),  # SIPI: no vector
        (0, 0x00741, False),  # ExtINT
    ],
)
def test_ipis(board: Board, icr2: int, icr: int, arrives: bool) -> None:
    board.out((LDR, 0x02000000), (ICR2, icr2), (ICR, icr))
    assert board.bits(IRR) == arrives << 0x41
    assert board.inl(ICR) == icr, "delivery status: idle"
    assert board.bits(TMR) == 0
    assert board.nmis == 0


@pytest.mark.parametrize(
    ("destination", "arrives"), [(0x21, True), (0x23, True), (0x22, False), (0x11, False), (0x2F, True), (0xFF, True)]
)
def test_cluster_model(board: Board, destination: int, arrives: bool) -> None:
    board.out((DFR, 0), (LDR, 0x21000000))
    assert board.inl(DFR) == 0x0FFFFFFF
    assert board.bus.message(destination, True, 0x41, LOWEST, False) == arrives
    board.out((ICR2, destination << 24), (ICR, 0x842))
    assert board.bits(IRR) == arrives * (1 << 0x41 | 1 << 0x42)


def test_nmi_to_self(board: Board) -> None:
    board.out((ICR2, 0), (ICR, NMI << 8 | 1 << 14))
    assert (board.nmis, board.intr) == (1, False)


def test_msi_address_and_data(board: Board) -> None:
    assert board.bus.message_write(0xFEE00000, 0x41)
    assert board.take() == 0x41
    assert not board.bus.message_write(0xFEE01000, 0x51), "APIC 1"
    board.out((LDR, 0x01000000))
    assert board.bus.message_write(0xFEE0100C, 0xC152), "logical, lowest priority, level"
    assert board.take() == 0x52
    assert board.bits(TMR) == 1 << 0x52


# --- errors -----------------------------------------------------------------------------------------------------


def test_error_register_shows_what_happened_until_it_was_written(board: Board) -> None:
    board.out((ERROR, 0xFE), (ICR, 0x4000F))
    assert board.inl(ESR) == 0
    assert board.take() == 0xFE
    board.out((EOI, 0), (ESR, 0))
    assert board.inl(ESR) == 0x20, "send illegal vector"
    board.apic.deliver(0x0F, FIXED, False)
    board.inl(0x3F0)
    board.out((0x40, 1), (ESR, 0))
    assert board.inl(ESR) == 0xC0, "receive illegal vector, illegal register"
    board.out((ESR, 0))
    assert board.inl(ESR) == 0


def test_an_illegal_vector_for_errors_is_an_error_and_no_more(board: Board) -> None:
    board.out((ERROR, 3), (ICR, 0x40001), (ESR, 0))
    assert (board.inl(ESR), board.intr) == (0x60, False)


# --- timer ------------------------------------------------------------------------------------------------------


def test_linux_calibrates_and_runs_the_timer(board: Board) -> None:
    """Divide by 16, count from the top; then periodic HZ ticks."""
    board.out((TIMER, 0x200EC | MASKED), (DIVIDE, 0x3), (INITIAL, 0xFFFFFFFF))
    board.now_ns = 100_000_000
    assert 0xFFFFFFFF - board.inl(CURRENT) == 100_000_000 // 16
    board.out((TIMER, 0x200EC), (INITIAL, 4_000_000 // 16))
    assert board.run(100_000_000 + 10 * 4_000_000) == [0xEC] * 10


def test_one_shot(board: Board) -> None:
    board.out((DIVIDE, 0xB), (TIMER, 0x40), (INITIAL, 1000))
    assert board.apic.deadline() == 1000
    board.now_ns = 400
    assert board.inl(CURRENT) == 600
    assert board.run(10_000) == [0x40]
    assert (board.inl(CURRENT), board.inl(INITIAL), board.apic.deadline()) == (0, 1000, None)
    board.out((INITIAL, 1000))
    board.out((INITIAL, 0))
    assert board.run(20_000) == []


@pytest.mark.parametrize("shift", range(1, 9))
def test_divisors(board: Board, shift: int) -> None:
    code = shift - 1
    board.out((DIVIDE, code & 3 | (code & 4) << 1), (INITIAL, 1000))
    board.now_ns = 1280
    assert board.inl(CURRENT) == (1000 - (1280 >> shift) if shift < 8 else 0)
    board.now_ns += 1
    assert board.inl(CURRENT) == (1000 - (1281 >> shift) if shift < 8 else 0)


def test_changing_the_divisor_keeps_the_count(board: Board) -> None:
    board.out((DIVIDE, 0xB), (TIMER, 0x40), (INITIAL, 1000))
    board.now_ns = 500
    board.out((DIVIDE, 0x0))
    assert (board.inl(CURRENT), board.apic.deadline()) == (500, 1500)


def test_changing_the_mode_keeps_the_count(board: Board) -> None:
    """kvm-unit-tests, apic_change_mode."""
    board.out((DIVIDE, 0xB), (TIMER, 0x40 | MASKED), (INITIAL, 1000))
    board.now_ns = 600
    board.out((TIMER, 0x20040 | MASKED))
    assert board.inl(CURRENT) == 400
    board.now_ns = 1100
    assert board.inl(CURRENT) == 900, "wrapped around"
    board.out((TIMER, 0x40 | MASKED))
    assert board.inl(CURRENT) == 900
    board.now_ns = 5000
    assert board.inl(CURRENT) == 0
    board.out((TIMER, 0x20040 | MASKED))
    assert board.inl(CURRENT) == 0, "at 0 it stays there"
    assert not board.intr


def test_a_masked_timer_counts_but_wants_no_tick_and_loses_its_interrupt(board: Board) -> None:
    board.out((DIVIDE, 0xB), (TIMER, 0x20040 | MASKED), (INITIAL, 1000))
    assert board.apic.deadline() is None
    board.now_ns = 3500
    board.out((TIMER, 0x20040))
    assert not board.intr
    assert (board.inl(CURRENT), board.apic.deadline()) == (500, 4000)


def test_a_late_tick_makes_one_interrupt_and_keeps_the_phase(board: Board) -> None:
    board.out((DIVIDE, 0xB), (TIMER, 0x20040), (INITIAL, 1000))
    board.apic.tick(2300)
    board.apic.tick(2300)
    assert board.take() == 0x40
    assert (board.intr, board.apic.deadline()) == (False, 3000)


def test_tsc_deadline(board: Board) -> None:
    apic = board.apic
    assert apic.write_msr(DEADLINE, 5000)
    assert apic.read_msr(DEADLINE) == 0, "not in TSC-deadline mode"
    board.out((TIMER, 0x40040), (INITIAL, 77))
    assert (board.inl(INITIAL), board.inl(CURRENT)) == (0, 0)
    apic.write_msr(DEADLINE, 5000)
    assert (apic.read_msr(DEADLINE), apic.deadline(), board.inl(CURRENT)) == (5000, 5000, 0)
    assert board.run(4999) == []
    assert board.run(6000) == [0x40]
    assert apic.read_msr(DEADLINE) == 0
    apic.write_msr(DEADLINE, 5500)
    assert board.take() == 0x40, "past: at once"
    board.out((EOI, 0))
    apic.write_msr(DEADLINE, 7000)
    apic.write_msr(DEADLINE, 0)
    assert board.run(8000) == []
    apic.write_msr(DEADLINE, (1 << 64) - 1)
    assert apic.read_msr(DEADLINE) == (1 << 64) - 1
    board.out((TIMER, 0x00040))
    assert (apic.deadline(), apic.read_msr(DEADLINE)) == (None, 0), "leaving the mode disarms it"


def test_a_masked_tsc_deadline_ends_without_interrupt(board: Board) -> None:
    board.out((TIMER, 0x40040 | MASKED))
    board.apic.write_msr(DEADLINE, 100)
    board.now_ns = 100
    assert board.apic.read_msr(DEADLINE) == 0
    assert not board.intr


def test_an_end_that_was_not_ticked_yet_is_not_lost_when_the_timer_starts_again(board: Board) -> None:
    board.out((DIVIDE, 0xB), (TIMER, 0x40), (INITIAL, 1000))
    board.now_ns = 1000
    board.out((INITIAL, 1000))
    assert board.take() == 0x40
    assert board.apic.deadline() == 2000


# --- x2APIC -----------------------------------------------------------------------------------------------------


def test_x2apic_registers(x2apic: Board) -> None:
    apic = x2apic.apic
    assert apic.mapped is None
    assert apic.read_msr(0x802) == 0
    assert apic.read_msr(0x803) == 0x50014
    assert apic.read_msr(0x80D) == 1
    assert apic.read_msr(0x80F) == 0x1FF, "what was set in xAPIC mode stays"
    readable = {n for n in range(0x100) if apic.read_msr(0x800 + n) is not None}
    assert readable == {0x02, 0x03, 0x08, 0x0A, 0x0D, 0x0F, *range(0x10, 0x29), 0x30, *range(0x32, 0x3A), 0x3E}
    writable = {n for n in range(0x100) if apic.write_msr(0x800 + n, 0)}
    assert writable == {0x08, 0x0B, 0x0F, 0x28, 0x30, *range(0x32, 0x39), 0x3E, 0x3F}


@pytest.mark.parametrize(
    ("index", "value"),
    [(0x808, 0x100), (0x80B, 1), (0x80F, 0x200), (0x828, 1), (0x830, 1 << 20), (0x830, 1 << 13), (0x832, 1 << 13),
     (0x838, 1 << 32), (0x83E, 4), (0x83F, 0x100), (0x837, 0x700)],
)  # fmt: skip
def test_x2apic_reserved_bits(x2apic: Board, index: int, value: int) -> None:
    assert not x2apic.apic.write_msr(index, value)


def test_x2apic_msrs_are_not_there_in_xapic_mode(board: Board) -> None:
    assert board.apic.read_msr(0x802) is None
    assert not board.apic.write_msr(0x80B, 0)
    assert board.apic.read_msr(0x10) is None
    assert not board.apic.write_msr(0x10, 0)


@pytest.mark.parametrize(
    ("icr", "arrives"),
    [
        (0x41, True),
        (0xFF << 32 | 0x41, False),  # not a broadcast here
        (0xFFFFFFFF << 32 | 0x41, True),
        (1 << 32 | 0x841, True),  # logical: cluster 0, member 0
        (2 << 32 | 0x841, False),
        (0x10001 << 32 | 0x841, False),
        (0xFFFFFFFF << 32 | 0x841, True),
    ],
)
def test_x2apic_ipis(x2apic: Board, icr: int, arrives: bool) -> None:
    assert x2apic.apic.write_msr(0x830, icr)
    assert x2apic.apic.read_msr(0x830) == icr
    assert x2apic.intr == arrives


def test_x2apic_self_ipi_and_eoi(x2apic: Board) -> None:
    assert x2apic.apic.write_msr(0x83F, 0x41)
    assert x2apic.take() == 0x41
    assert x2apic.apic.read_msr(0x812) == 2
    assert x2apic.apic.write_msr(0x80B, 0)
    assert x2apic.apic.read_msr(0x812) == 0
    assert x2apic.bus.message(0, False, 0x42, FIXED, False)
    assert x2apic.bus.message(0xFF, False, 0x43, FIXED, False)
    assert x2apic.bus.message(1, True, 0x44, FIXED, False)


def test_x2apic_timer(x2apic: Board) -> None:
    for index, value in ((0x83E, 0xB), (0x832, 0x40), (0x838, 500)):
        assert x2apic.apic.write_msr(index, value)
    x2apic.now_ns = 100
    assert x2apic.apic.read_msr(0x839) == 400
    assert x2apic.apic.deadline() == 500


# --- snapshots --------------------------------------------------------------------------------------------------


def test_state_survives_json_in_the_middle_of_everything(board: Board) -> None:
    board.out((DIVIDE, 0x0), (TIMER, 0x20040), (INITIAL, 1000), (TPR, 0x20))
    for vector in (0x31, 0x51, 0x61):
        board.apic.deliver(vector, FIXED, vector == 0x51)
        board.take()
    board.apic.deliver(0x55, FIXED, False)
    board.inl(0x3F0)
    board.apic.lint1.set(True)
    other = Board()
    other.now_ns = board.now_ns = 300
    other.intr = True  # what it was told before means nothing
    other.apic.load_state(json.loads(json.dumps(board.apic.state())))
    assert other.apic.state() == board.apic.state()
    assert not other.intr
    for each in (board, other):
        each.out((EOI, 0))
        assert not each.intr
        each.out((EOI, 0), (ESR, 0))
        assert each.eois == [0x51]
        assert each.take() == 0x55
        assert each.run(9000) == [], "0x40 is below what is in service"
        each.out((EOI, 0), (EOI, 0))
        assert each.take() == 0x40
    assert other.apic.state() == board.apic.state()
    with pytest.raises(BadInput):
        board.apic.load_state({})


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 0xFFF), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 32) - 1)), max_size=40)
)
def test_no_access_raises(accesses: list[tuple[int, int, int]]) -> None:
    board = Board()
    board.out((SVR, 0x1FF))
    for offset, size, value in accesses:
        offset = offset & ~0xF if value & 1 else offset
        board.apic.write(offset, size, value & (1 << 8 * size) - 1)
        board.now_ns += 1000
        board.apic.tick(board.now_ns)
        assert 0 <= board.apic.read(offset, size) < 1 << 32
        assert board.intr == board.apic.output
    json.dumps(board.apic.state())
