"""Several local APICs: what reaches which, as Linux, xv6 and the manual's tables send it."""

from __future__ import annotations

import json

import pytest

from emu.devices.apic_bus import ApicBus
from emu.devices.cpu_pins import CpuPins
from emu.devices.ioapic import IoApic
from emu.devices.lapic import LocalApic

ID, TPR, EOI, LDR, DFR, SVR = 0x20, 0x80, 0xB0, 0xD0, 0xE0, 0xF0
IRR, ESR, ICR, ICR2, TIMER, LINT0, LINT1 = 0x200, 0x280, 0x300, 0x310, 0x320, 0x350, 0x360
INITIAL, DIVIDE = 0x380, 0x3E0
BASE, X2APIC_ICR = 0x1B, 0x830
FIXED, LOWEST, SMI, NMI, INIT, SIPI, EXTINT = 0, 1, 2, 4, 5, 6, 7
LOGICAL, ASSERT, LEVEL, MASKED = 0x800, 0x4000, 0x8000, 0x10000
SELF, ALL, OTHERS = 0x40000, 0x80000, 0xC0000
VECTOR = 0x41


class Board:
    """Processors that write down what happens to them, and an I/O APIC."""

    def __init__(self, cpus: int = 4) -> None:
        self.log: list[tuple[object, ...]] = []
        self.intr = [False] * cpus
        pins = CpuPins(
            self.intr.__setitem__,
            lambda cpu: self.log.append(("nmi", cpu)),
            lambda cpu: self.log.append(("init", cpu)),
            lambda cpu, vector: self.log.append(("startup", cpu, vector)),
        )
        self.bus = ApicBus(cpus, pins, lambda: 0x20, lambda vector: self.chip.eoi(vector), lambda: 0)
        self.apics = self.bus.apics
        self.chip = IoApic(self.bus.message)
        for apic in self.apics:
            apic.write(SVR, 4, 0x1FF)

    def x2apic(self) -> Board:
        for apic in self.apics:
            assert apic.write_msr(BASE, apic.base | 0x400)
        return self

    def send(self, sender: int, destination: int, command: int) -> None:
        """Write an xAPIC's ICR."""
        self.apics[sender].write(ICR2, 4, destination << 24)
        self.apics[sender].write(ICR, 4, command)

    def taken(self) -> list[int]:
        """The processors that are asked; each takes its interrupt and ends it."""
        asked = [cpu for cpu, level in enumerate(self.intr) if level]
        for cpu in asked:
            self.apics[cpu].acknowledge()
            end(self.apics[cpu])
        return asked

    def entry(self, number: int, value: int) -> None:
        for half in (1, 0):
            self.chip.write(0, 4, 0x10 + 2 * number + half)
            self.chip.write(0x10, 4, value >> 32 * half & 0xFFFF_FFFF)

    def pulse(self, number: int) -> None:
        self.chip.set_input(number, True)
        self.chip.set_input(number, False)


def end(apic: LocalApic) -> None:
    if apic.mapped is None:
        assert apic.write_msr(0x80B, 0)
    else:
        apic.write(EOI, 4, 0)


@pytest.fixture
def board() -> Board:
    return Board()


# ---- identity


def test_the_first_processor_is_the_one_that_boots() -> None:
    pins = CpuPins(lambda cpu, level: None, lambda cpu: None, lambda cpu: None, lambda cpu, vector: None)
    apics = ApicBus(3, pins, lambda: 0, lambda vector: None, lambda: 0).apics
    assert [apic.read(ID, 4) for apic in apics] == [0, 0x0100_0000, 0x0200_0000]
    assert [apic.read_msr(BASE) for apic in apics] == [0xFEE0_0900, 0xFEE0_0800, 0xFEE0_0800]
    assert [apic.read(LINT0, 4) for apic in apics] == [0x700, MASKED, MASKED]
    assert apics[1].write_msr(BASE, 0xFEE0_0900)
    assert apics[1].read_msr(BASE) == 0xFEE0_0800, "the guest makes none the first"


def test_ids_in_x2apic_mode() -> None:
    board = Board(16).x2apic()
    assert [apic.read_msr(0x802) for apic in board.apics] == list(range(16))
    assert [apic.read_msr(0x80D) for apic in board.apics] == [1 << number for number in range(16)]


def test_an_id_that_was_changed_is_the_old_one_after_disabling(board: Board) -> None:
    apic = board.apics[2]
    apic.write(ID, 4, 0x0700_0000)
    board.send(0, 7, VECTOR)
    assert board.taken() == [2]
    assert apic.write_msr(BASE, 0xFEE0_0000)
    assert apic.write_msr(BASE, 0xFEE0_0800)
    assert (apic.read(ID, 4), apic.read(LINT0, 4)) == (0x0200_0000, MASKED)


# ---- IPIs


@pytest.mark.parametrize(
    ("destination", "command", "taken"),
    [
        (0, 0, [0]),
        (2, 0, [2]),
        (9, 0, []),
        (0xFF, 0, [0, 1, 2, 3]),
        (0x0A, LOGICAL, [1, 3]),
        (0x10, LOGICAL, []),
        (0xFF, LOGICAL, [0, 1, 2, 3]),
        (3, SELF, [1]),
        (3, ALL, [0, 1, 2, 3]),
        (3, OTHERS, [0, 2, 3]),
        (2, LEVEL | ASSERT, [2]),  # level and trigger mode mean nothing
        (2, LEVEL, [2]),
    ],
)
def test_fixed(board: Board, destination: int, command: int, taken: list[int]) -> None:
    for cpu, apic in enumerate(board.apics):
        apic.write(LDR, 4, 1 << 24 + cpu)
    board.send(1, destination, command | VECTOR)
    assert board.apics[1].read(ICR, 4) == command | VECTOR, "delivery status: idle"
    assert board.taken() == taken
    assert board.log == []


def test_xapic_clusters() -> None:
    board = Board(8)
    for cpu, apic in enumerate(board.apics):
        apic.write(DFR, 4, 0)
        apic.write(LDR, 4, (cpu >> 2 << 4 | 1 << (cpu & 3)) << 24)
    everybody = list(range(8))
    for destination, taken in ((0x03, [0, 1]), (0x1A, [5, 7]), (0x2F, []), (0x0F, [0, 1, 2, 3]), (0xFF, everybody)):
        board.send(0, destination, LOGICAL | VECTOR)
        assert board.taken() == taken, hex(destination)


@pytest.mark.parametrize(
    ("destination", "command", "taken"),
    [
        (5, 0, [5]),
        (0xFF, 0, []),
        (0xFFFF_FFFF, 0, list(range(16))),
        (0x8005, LOGICAL, [0, 2, 15]),
        (0x1_0001, LOGICAL, []),
        (0xFFFF_FFFF, LOGICAL, list(range(16))),
        (0, OTHERS, [0, 1, 2, *range(4, 16)]),
        (0, SELF, [3]),
        (0xFFFF, LOGICAL | LOWEST << 8, [0]),
    ],
)
def test_x2apic(destination: int, command: int, taken: list[int]) -> None:
    board = Board(16).x2apic()
    assert board.apics[3].write_msr(X2APIC_ICR, destination << 32 | command | VECTOR)
    assert board.taken() == taken


def test_both_modes_at_once() -> None:
    """While Linux switches its processors over, one after the other."""
    board = Board(3)
    assert board.apics[1].write_msr(BASE, 0xFEE0_0C00)
    board.send(0, 1, VECTOR)
    assert board.taken() == [1]
    board.send(0, 0xFF, VECTOR)
    assert board.taken() == [0, 1, 2]
    assert board.apics[1].write_msr(X2APIC_ICR, 2 << 32 | VECTOR)
    assert board.taken() == [2]
    assert board.apics[1].write_msr(X2APIC_ICR, 0xFFFF_FFFF << 32 | VECTOR)
    assert board.taken() == [0, 1, 2]


def test_nmi_reaches_software_disabled_apics_and_globally_disabled_ones_hear_nothing(board: Board) -> None:
    board.apics[1].write(SVR, 4, 0xFF)
    assert board.apics[2].write_msr(BASE, 0xFEE0_0000)
    board.send(0, 0, OTHERS | NMI << 8)
    assert board.log == [("nmi", 1), ("nmi", 3)]
    board.send(0, 0, OTHERS | VECTOR)
    assert board.taken() == [3]
    board.log.clear()
    board.send(0, 1, INIT << 8 | ASSERT)
    board.send(0, 1, SIPI << 8 | 0x9A)
    board.send(0, 2, INIT << 8 | ASSERT)
    assert board.log == [("init", 1), ("startup", 1, 0x9A)]


@pytest.mark.parametrize("mode", [SMI, 3, EXTINT])
def test_modes_that_do_nothing(board: Board, mode: int) -> None:
    board.send(0, 0, ALL | mode << 8 | VECTOR)
    assert (board.taken(), board.log) == ([], [])


def test_illegal_vectors_are_not_sent(board: Board) -> None:
    for mode in (FIXED, LOWEST):
        board.send(0, 0, OTHERS | mode << 8 | 0x0F)
    for apic, error in zip(board.apics, (0x20, 0, 0, 0), strict=True):
        apic.write(ESR, 4, 0)
        assert apic.read(ESR, 4) == error
    board.entry(4, 0xFF << 56 | 0x0F)
    board.pulse(4)
    for apic in board.apics:
        apic.write(ESR, 4, 0)
        assert apic.read(ESR, 4) == 0x40, "received"


# ---- starting processors


def test_linux_and_xv6_start_a_processor(board: Board) -> None:
    """INIT asserted, INIT de-asserted, and two start-up messages."""
    board.send(0, 1, INIT << 8 | LEVEL | ASSERT)
    board.send(0, 1, INIT << 8 | LEVEL)
    board.send(0, 1, SIPI << 8 | 7)
    board.send(0, 1, SIPI << 8 | 7)
    assert board.log == [("init", 1), ("startup", 1, 7), ("startup", 1, 7)]


def test_kvm_unit_tests_start_all_others(board: Board) -> None:
    """Edge-triggered INIT."""
    board.send(0, 0, OTHERS | INIT << 8 | ASSERT)
    board.send(0, 0, OTHERS | SIPI << 8)
    assert board.log == [("init", 1), ("init", 2), ("init", 3), *(("startup", cpu, 0) for cpu in (1, 2, 3))]


def test_linux_starts_a_processor_in_x2apic_mode() -> None:
    board = Board(2).x2apic()
    for command in (INIT << 8 | LEVEL | ASSERT, INIT << 8 | LEVEL, SIPI << 8 | 0x99):
        assert board.apics[0].write_msr(X2APIC_ICR, 1 << 32 | command)
    assert board.log == [("init", 1), ("startup", 1, 0x99)]


@pytest.mark.parametrize("cpu", [0, 2])
def test_init_resets_all_but_id_and_base(board: Board, cpu: int) -> None:
    apic = board.apics[cpu]
    assert apic.write_msr(BASE, 0xD000_0800)
    for register, value in ((ID, 0x0900_0000), (LDR, 0x0400_0000), (DFR, 0), (TPR, 0x20), (LINT0, 0x30), (LINT1, 0x400),
                            (TIMER, 0x40), (DIVIDE, 0xB), (INITIAL, 100)):  # fmt: skip
        apic.write(register, 4, value)
    apic.deliver(VECTOR, FIXED, False)
    assert board.intr[cpu]
    board.send(1, 9, INIT << 8)
    assert board.log == [("init", cpu)]
    assert not board.intr[cpu]
    found = [apic.read(register, 4) for register in (ID, LDR, DFR, TPR, SVR, IRR + 0x20, TIMER, LINT0, LINT1)]
    assert found == [0x0900_0000, 0, 0xFFFF_FFFF, 0, 0xFF, 0, MASKED, MASKED, MASKED]
    assert apic.deadline() is None
    assert apic.read_msr(BASE) == (0xD000_0900 if cpu == 0 else 0xD000_0800)


def test_init_in_x2apic_mode_keeps_the_logical_id() -> None:
    board = Board(16).x2apic()
    assert board.apics[0].write_msr(X2APIC_ICR, 9 << 32 | INIT << 8)
    assert [board.apics[9].read_msr(index) for index in (0x802, 0x80D, 0x80F)] == [9, 1 << 9, 0xFF]


def test_init_to_itself(board: Board) -> None:
    board.send(2, 2, INIT << 8 | ASSERT)
    assert board.log == [("init", 2)]


# ---- lowest priority


def test_the_lowest_priority_gets_it_and_of_equals_the_lowest_id(board: Board) -> None:
    for tprs, taken in (
        ((0, 0, 0, 0), 0), ((0x20, 0x10, 0x10, 0x30), 1), ((0x20, 0x20, 0x20, 0x10), 3), ((0x11, 0x10, 0x11, 0x12), 1),
    ):  # fmt: skip
        for apic, tpr in zip(board.apics, tprs, strict=True):
            apic.write(TPR, 4, tpr)
        board.send(3, 0xFF, LOWEST << 8 | VECTOR)
        assert board.taken() == [taken]


def test_what_is_in_service_counts_as_priority(board: Board) -> None:
    board.send(0, 0, 0x51)
    assert board.apics[0].acknowledge() == 0x51
    board.send(0, 0xFF, LOWEST << 8 | VECTOR)
    assert board.intr == [False, True, False, False]


def test_only_apics_that_take_vectors_compete(board: Board) -> None:
    board.apics[0].write(SVR, 4, 0xFF)
    assert board.apics[1].write_msr(BASE, 0xFEE0_0000)
    assert board.bus.message(0xFF, False, VECTOR, LOWEST, False)
    assert board.taken() == [2]
    for apic in board.apics[2:]:
        apic.write(SVR, 4, 0xFF)
    assert not board.bus.message(0xFF, False, VECTOR, LOWEST, False)


def test_lowest_priority_with_shorthands(board: Board) -> None:
    board.send(0, 0, OTHERS | LOWEST << 8 | VECTOR)
    assert board.taken() == [1]
    board.send(2, 0, SELF | LOWEST << 8 | VECTOR)
    assert board.taken() == [2]


# ---- devices


@pytest.mark.parametrize(
    ("entry", "taken"),
    [
        (0, [0]),
        (3 << 56, [3]),
        (4 << 56, []),
        (0xFF << 56, [0, 1, 2, 3]),
        (0x06 << 56 | LOGICAL, [1, 2]),
        (0x0C << 56 | LOGICAL | LOWEST << 8, [2]),
        (0xFF << 56 | LOWEST << 8, [0]),
    ],
)
def test_destinations_of_the_io_apic(board: Board, entry: int, taken: list[int]) -> None:
    for cpu, apic in enumerate(board.apics):
        apic.write(LDR, 4, 1 << 24 + cpu)
    board.entry(4, entry | VECTOR)
    board.pulse(4)
    assert board.taken() == taken


def test_a_level_ends_with_the_eoi_of_the_processor_that_has_it(board: Board) -> None:
    board.entry(9, 2 << 56 | LEVEL | VECTOR)
    board.chip.set_input(9, True)
    assert board.taken() == [2]
    assert board.intr == [False, False, True, False], "still high: again"
    board.chip.set_input(9, False)
    assert board.taken() == [2]
    assert board.intr == [False] * 4


def test_a_level_moves_to_another_processor(board: Board) -> None:
    """Linux changes the destination while the entry is masked."""
    board.entry(9, 1 << 56 | LEVEL | VECTOR)
    board.chip.set_input(9, True)
    assert board.apics[1].acknowledge() == VECTOR
    board.entry(9, 3 << 56 | LEVEL | MASKED | VECTOR)
    end(board.apics[1])
    assert board.intr == [False] * 4
    board.entry(9, 3 << 56 | LEVEL | VECTOR)
    assert board.taken() == [3]


def test_nmi_and_init_from_a_device_but_no_startup(board: Board) -> None:
    for number, mode in enumerate((NMI, INIT, SIPI, SMI, EXTINT)):
        board.entry(number, 1 << 56 | mode << 8)
        board.pulse(number)
    assert board.log == [("nmi", 1), ("init", 1)]


def test_msi(board: Board) -> None:
    for cpu, apic in enumerate(board.apics):
        apic.write(LDR, 4, 1 << 24 + cpu)
    for gpa, data, taken in (
        (0xFEE0_2000, VECTOR, [2]),
        (0xFEEF_F000, VECTOR, [0, 1, 2, 3]),
        (0xFEE0_6004, VECTOR, [1, 2]),
        (0xFEE0_600C, VECTOR, [1]),  # one of them is enough
        (0xFEE0_C004, VECTOR | LOWEST << 8, [2]),
        (0xFEE0_9000, VECTOR, []),
    ):
        assert board.bus.message_write(gpa, data) == bool(taken)
        assert board.taken() == taken, hex(gpa)


# ---- snapshots


def test_state_of_all_survives_json() -> None:
    board, other = Board().x2apic(), Board()
    for cpu, apic in enumerate(board.apics):
        assert apic.write_msr(0x808, 0x10 * cpu)
    assert board.apics[0].write_msr(X2APIC_ICR, 0xFFFF_FFFF << 32 | 0x25)
    assert board.apics[3].write_msr(X2APIC_ICR, 1 << 32 | VECTOR)
    for apic, copy in zip(board.apics, other.apics, strict=True):
        copy.load_state(json.loads(json.dumps(apic.state())))
    assert [apic.state() for apic in other.apics] == [apic.state() for apic in board.apics]
    assert other.intr == board.intr == [True, True, False, False]
    for each in (board, other):
        assert each.apics[1].acknowledge() == VECTOR
        end(each.apics[1])
        assert each.taken() == [0, 1]
        assert each.apics[2].write_msr(X2APIC_ICR, 0xF << 32 | LOGICAL | LOWEST << 8 | 0x81)
        assert each.taken() == [0]
