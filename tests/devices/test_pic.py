"""The interrupt controllers: init sequences of real kernels, the data sheet's scenarios, and a readable model."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.layout import ELCR_PORT, ELCR_PORTS, PIC_MASTER_PORT, PIC_MASTER_PORTS, PIC_SLAVE_PORT, PIC_SLAVE_PORTS
from emu.devices.pic import Pic8259, PicPair
from emu.errors import BadInput

M_CMD, M_DATA, S_CMD, S_DATA = 0x20, 0x21, 0xA0, 0xA1
EOI = 0x20
READ_IRR, READ_ISR, POLL = 0x0A, 0x0B, 0x0C


class Board:
    """Both chips on a bus, with short names for what a kernel does."""

    def __init__(self) -> None:
        self.intr_log: list[bool] = []
        self.pics = PicPair(self.intr_log.append)
        self.bus = PortBus()
        self.bus.register(PIC_MASTER_PORT, PIC_MASTER_PORTS, self.pics.master)
        self.bus.register(PIC_SLAVE_PORT, PIC_SLAVE_PORTS, self.pics.slave)
        self.bus.register(ELCR_PORT, ELCR_PORTS, self.pics.elcr)

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def init(self, icw4: int = 1, master: int = 0x20, slave: int = 0x28) -> None:
        self.out((M_CMD, 0x11), (M_DATA, master), (M_DATA, 4), (M_DATA, icw4))
        self.out((S_CMD, 0x11), (S_DATA, slave), (S_DATA, 2), (S_DATA, icw4))

    def irr(self) -> int:
        self.out((M_CMD, READ_IRR), (S_CMD, READ_IRR))
        return self.inb(M_CMD) | self.inb(S_CMD) << 8

    def isr(self) -> int:
        self.out((M_CMD, READ_ISR), (S_CMD, READ_ISR))
        return self.inb(M_CMD) | self.inb(S_CMD) << 8

    def raise_(self, *irqs: int) -> None:
        for irq in irqs:
            self.pics.line(irq).set(True)

    def lower(self, *irqs: int) -> None:
        for irq in irqs:
            self.pics.line(irq).set(False)

    def pulse(self, *irqs: int) -> None:
        self.raise_(*irqs)
        self.lower(*irqs)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.init()
    return board


def test_linux_init_sequence() -> None:
    """init_8259A: mask, probe for the chip by its IMR, program both, automatic EOI off, restore the masks."""
    board = Board()
    board.out((S_DATA, 0xFF), (M_DATA, 0xFB))
    assert board.inb(M_DATA) == 0xFB
    board.out((M_DATA, 0xFF))
    board.init(icw4=1, master=0x30, slave=0x38)
    board.out((M_DATA, 0xFB), (S_DATA, 0xFF))
    assert (board.inb(M_DATA), board.inb(S_DATA)) == (0xFB, 0xFF)
    board.raise_(0, 4, 8)
    assert not board.pics.pending()
    board.out((M_DATA, 0xEA))
    assert board.pics.acknowledge() == 0x30
    # mask_and_ack_8259A: mask, then a specific EOI
    board.out((M_DATA, 0xEB), (M_CMD, 0x60))
    assert board.pics.acknowledge() == 0x34
    board.out((M_DATA, 0xFB), (M_CMD, 0x64), (S_DATA, 0xFE))
    assert board.pics.acknowledge() == 0x38
    board.out((S_DATA, 0xFF), (S_CMD, 0x60), (M_CMD, 0x62))
    assert board.isr() == 0
    assert not board.pics.pending()


def test_hobby_kernel_remap_keeps_masks() -> None:
    """The remap that most tutorials show: save the masks, ICW1 to ICW4 alternating between the chips, restore."""
    board = Board()
    board.out((M_DATA, 0xB8), (S_DATA, 0x8F))
    masks = board.inb(M_DATA), board.inb(S_DATA)
    board.out((M_CMD, 0x11), (S_CMD, 0x11), (M_DATA, 0x20), (S_DATA, 0x28))
    board.out((M_DATA, 4), (S_DATA, 2), (M_DATA, 1), (S_DATA, 1))
    assert (board.inb(M_DATA), board.inb(S_DATA)) == (0, 0)
    board.out((M_DATA, masks[0]), (S_DATA, masks[1]))
    board.raise_(1, 3, 14)
    assert board.pics.acknowledge() == 0x21
    board.out((M_CMD, EOI))
    assert board.pics.acknowledge() == 0x2E
    board.out((S_CMD, EOI), (M_CMD, EOI))
    assert not board.pics.pending()


def test_nothing_is_requested_before_or_during_the_icws() -> None:
    board = Board()
    board.raise_(0)
    assert not board.pics.pending()
    board.out((M_CMD, 0x11), (M_DATA, 0x20))
    board.pulse(1)
    board.out((M_DATA, 4))
    assert not board.pics.pending()
    board.out((M_DATA, 1))
    assert board.pics.pending()
    assert board.pics.acknowledge() == 0x21


@pytest.mark.parametrize(("icw1", "more"), [(0x13, [0x20, 1]), (0x12, [0x20]), (0x10, [0x20, 4])])
def test_icw1_tells_which_icws_follow(icw1: int, more: list[int]) -> None:
    board = Board()
    board.out((M_CMD, icw1), *((M_DATA, value) for value in more), (M_DATA, 0xA5))
    assert board.inb(M_DATA) == 0xA5


def test_icw1_forgets_masks_service_and_edges(board: Board) -> None:
    board.out((M_DATA, 0x80), (M_CMD, READ_ISR))
    board.raise_(3, 4)
    board.pics.acknowledge()
    assert board.pics.master.isr == 0x08
    board.init()
    assert (board.inb(M_CMD), board.inb(M_DATA)) == (0, 0)
    assert (board.irr(), board.isr()) == (0, 0)
    board.lower(4)
    board.raise_(4)
    assert board.pics.acknowledge() == 0x24


def test_fixed_priority_and_nesting(board: Board) -> None:
    board.raise_(5, 3)
    assert board.pics.acknowledge() == 0x23
    assert not board.pics.pending()
    board.raise_(1)
    assert board.pics.acknowledge() == 0x21
    assert board.isr() == 0x0A
    board.out((M_CMD, EOI))
    assert board.isr() == 0x08
    board.out((M_CMD, EOI))
    assert board.pics.acknowledge() == 0x25


def test_no_input_interrupts_one_above_it(board: Board) -> None:
    board.raise_(3)
    board.pics.acknowledge()
    board.raise_(4, 7)
    assert not board.pics.pending()
    board.out((M_CMD, 0xC3))
    assert board.pics.pending(), "IR3 is the lowest now, though in service"
    assert board.pics.acknowledge() == 0x24


def test_cascade(board: Board) -> None:
    board.raise_(3, 12, 9)
    assert board.pics.acknowledge() == 0x29
    assert board.isr() == 0x0204
    board.out((S_CMD, EOI), (M_CMD, EOI))
    assert board.pics.acknowledge() == 0x2C
    board.out((S_CMD, EOI), (M_CMD, EOI))
    assert board.pics.acknowledge() == 0x23
    assert board.irr() == 0


def test_the_slave_waits_for_the_master_s_priorities(board: Board) -> None:
    board.raise_(1)
    board.pics.acknowledge()
    board.raise_(14)
    assert not board.pics.pending()
    board.out((M_CMD, EOI))
    assert board.pics.acknowledge() == 0x2E
    board.raise_(8)
    assert not board.pics.pending(), "the slave asks, but IR2 is in service"
    board.out((M_CMD, EOI))
    assert board.pics.acknowledge() == 0x28


def test_a_request_masked_in_the_slave_is_taken_back_from_the_master(board: Board) -> None:
    board.raise_(14)
    assert board.irr() == 0x4004
    board.out((S_DATA, 0x40))
    assert board.irr() == 0x4000
    assert not board.pics.pending()


def test_slave_with_automatic_eoi_asks_again() -> None:
    board = Board()
    board.init(icw4=3)
    board.raise_(12, 14, 6)
    assert [board.pics.acknowledge() for _ in range(3)] == [0x2C, 0x2E, 0x26]
    assert board.isr() == 0
    assert not board.pics.pending()


def test_an_edge_is_requested_once_and_remembered(board: Board) -> None:
    board.out((M_DATA, 0x10))
    board.pulse(4)
    board.pulse(4)
    assert board.irr() == 0x10
    board.out((M_DATA, 0))
    assert board.pics.acknowledge() == 0x24
    board.out((M_CMD, EOI))
    assert not board.pics.pending()
    board.raise_(4)
    board.raise_(4)
    assert board.pics.acknowledge() == 0x24
    board.out((M_CMD, EOI))
    assert not board.pics.pending()


def test_a_level_is_requested_as_long_as_it_lasts(board: Board) -> None:
    board.out((ELCR_PORT, 0x20), (ELCR_PORT + 1, 0x08))
    board.raise_(5, 11)
    assert board.pics.acknowledge() == 0x2B
    board.out((S_CMD, EOI), (M_CMD, EOI))
    assert board.pics.acknowledge() == 0x2B
    board.lower(11)
    board.out((S_CMD, EOI), (M_CMD, EOI))
    assert board.pics.acknowledge() == 0x25
    board.lower(5)
    board.out((M_CMD, EOI))
    assert (board.irr(), board.isr(), board.pics.pending()) == (0, 0, False)


def test_elcr_reads_back_without_the_inputs_that_must_be_edge_triggered(board: Board) -> None:
    board.out((ELCR_PORT, 0xFF), (ELCR_PORT + 1, 0xFF))
    assert (board.inb(ELCR_PORT), board.inb(ELCR_PORT + 1)) == (0xF8, 0xDE)


def test_a_level_does_not_become_an_edge_by_writing_elcr(board: Board) -> None:
    board.out((ELCR_PORT, 0x20))
    board.pulse(5)
    board.raise_(5)
    board.out((ELCR_PORT, 0))
    assert not board.pics.pending()


def test_spurious_interrupts_set_no_service_bit(board: Board) -> None:
    assert board.pics.acknowledge() == 0x27
    assert board.isr() == 0
    board.raise_(4)
    board.out((M_DATA, 0x10))
    assert board.pics.acknowledge() == 0x27
    assert board.pics.slave.base + board.pics.slave.acknowledge() == 0x2F
    assert board.isr() == 0


def test_the_real_irq_7_can_be_told_from_the_spurious_one(board: Board) -> None:
    board.pulse(7)
    assert board.pics.acknowledge() == 0x27
    assert board.isr() == 0x80


def test_specific_eoi(board: Board) -> None:
    board.raise_(5)
    board.pics.acknowledge()
    board.raise_(2 + 1)
    board.pics.acknowledge()
    board.out((M_CMD, 0x65))
    assert board.isr() == 0x08


def test_automatic_eoi_with_rotation() -> None:
    """Equal devices take turns: each one served becomes the lowest."""
    board = Board()
    board.init(icw4=3)
    board.out((ELCR_PORT, 0x30), (M_CMD, 0x80))
    board.raise_(4, 5)
    assert [board.pics.acknowledge() for _ in range(4)] == [0x24, 0x25, 0x24, 0x25]
    board.out((M_CMD, 0x00))
    assert [board.pics.acknowledge() for _ in range(3)] == [0x24, 0x24, 0x24]


def test_rotate_on_eoi(board: Board) -> None:
    """The data sheet's example: IR4 is served and rotated away, then IR6 comes before IR4."""
    board.raise_(4, 6)
    assert board.pics.acknowledge() == 0x24
    board.out((M_CMD, 0xA0))
    board.lower(4)
    board.raise_(4)
    assert board.pics.acknowledge() == 0x26
    board.out((M_CMD, 0xE6))
    assert board.pics.acknowledge() == 0x24


def test_set_priority(board: Board) -> None:
    board.out((M_CMD, 0xC5))
    board.raise_(0, 5, 6, 7)
    order = []
    for _ in range(4):
        order.append(board.pics.acknowledge())
        board.out((M_CMD, EOI))
    assert order == [0x26, 0x27, 0x20, 0x25]


def test_special_mask_mode(board: Board) -> None:
    board.raise_(3)
    board.pics.acknowledge()
    board.raise_(5)
    board.out((M_DATA, 0x08))
    assert not board.pics.pending()
    board.out((M_CMD, 0x68))
    assert board.pics.acknowledge() == 0x25
    board.out((M_CMD, EOI))
    assert board.isr() == 0x08, "a non-specific EOI does not mean a masked level"
    board.out((M_CMD, EOI))
    assert board.isr() == 0x08
    board.out((M_CMD, 0x63))
    assert board.isr() == 0
    board.out((M_CMD, 0x48))
    assert not board.pics.master.special_mask


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself() -> None:
    board = Board()
    board.init(icw4=0x11)
    board.raise_(12)
    assert board.pics.acknowledge() == 0x2C
    board.raise_(3)
    assert not board.pics.pending()
    board.raise_(9)
    assert board.pics.acknowledge() == 0x29
    assert board.isr() == 0x1204


def test_poll_mode(board: Board) -> None:
    board.raise_(1, 10)
    board.out((M_CMD, POLL), (S_CMD, POLL))
    assert board.inb(M_CMD) == 0x81
    assert board.inb(S_DATA) == 0x82
    assert board.isr() == 0x0402
    assert board.inb(M_DATA) == 0
    board.out((M_CMD, POLL))
    assert board.inb(M_CMD) == 0


def test_intr_changes_are_told_once(board: Board) -> None:
    board.raise_(3, 4)
    board.pics.acknowledge()
    board.out((M_CMD, EOI))
    board.out((M_DATA, 0xFF))
    assert board.intr_log == [True, False, True, False]


@pytest.mark.parametrize("irq", [-1, 2, 16])
def test_lines_that_do_not_exist(board: Board, irq: int) -> None:
    with pytest.raises(BadInput):
        board.pics.line(irq)


def test_state_survives_json(board: Board) -> None:
    board.raise_(3, 12, 9)
    board.pics.acknowledge()
    board.out((S_CMD, EOI), (M_CMD, 0x11), (M_DATA, 0x50))
    board.pulse(6)
    other = Board()
    other.pics.load_state(json.loads(json.dumps(board.pics.state())))
    assert other.intr_log == [False]
    for each in (board, other):
        each.out((M_DATA, 4), (M_DATA, 1))
    assert other.pics.state() == board.pics.state()
    assert other.pics.acknowledge() == board.pics.acknowledge() == 0x2C


def test_foreign_state_is_refused(board: Board) -> None:
    with pytest.raises(BadInput, match="slave"):
        board.pics.load_state({"master": board.pics.master.state()})
    with pytest.raises(BadInput, match=r"Pic8259.*isr"):
        board.pics.slave.load_state({"imr": 0})


class Model:
    """One initialised 8259A in words: sets of level numbers and a list in order of priority."""

    def __init__(self, auto_eoi: bool) -> None:
        self.auto_eoi = auto_eoi
        self.order = list(range(8))
        self.high: set[int] = set()
        self.edges: set[int] = set()
        self.level_triggered: set[int] = set()
        self.masked: set[int] = set()
        self.served: set[int] = set()
        self.rotating = False
        self.special = False

    def requests(self) -> set[int]:
        return (self.high & self.level_triggered) | (self.edges - self.level_triggered)

    def winner(self) -> int | None:
        for level in self.order:
            if level in self.served and not (self.special and level in self.masked):
                return None
            if level in self.requests() - self.masked:
                return level
        return None

    def line(self, level: int, high: bool) -> None:
        if high and level not in self.high and level not in self.level_triggered:
            self.edges.add(level)
        (self.high.add if high else self.high.discard)(level)

    def trigger(self, levels: set[int]) -> None:
        self.level_triggered = levels
        self.edges -= levels

    def acknowledge(self) -> int | None:
        level = self.winner()
        if level is not None:
            self.edges.discard(level)
            if not self.auto_eoi:
                self.served.add(level)
            elif self.rotating:
                self.make_lowest(level)
        return level

    def eoi(self, level: int | None, rotate: bool) -> None:
        if level is None:
            unmasked = [n for n in self.order if n in self.served and not (self.special and n in self.masked)]
            if not unmasked:
                return
            level = unmasked[0]
        self.served.discard(level)
        if rotate:
            self.make_lowest(level)

    def make_lowest(self, level: int) -> None:
        while self.order[-1] != level:
            self.order.append(self.order.pop(0))


LEVELS = st.integers(0, 7)
FEW_BITS = st.builds(lambda a, b: 1 << a | 1 << b, LEVELS, LEVELS)
LINE = st.tuples(st.just("line"), LEVELS, st.booleans())
ACKNOWLEDGE = st.tuples(st.just("ack"))
OPERATIONS = st.one_of(
    LINE,
    LINE,
    ACKNOWLEDGE,
    ACKNOWLEDGE,
    st.tuples(st.just("mask"), FEW_BITS | st.just(0)),
    st.tuples(st.just("trigger"), FEW_BITS),
    st.tuples(st.just("poll"), st.integers(0, 1)),
    st.tuples(st.just("eoi"), st.none() | LEVELS, st.booleans()),
    st.tuples(st.just("lowest"), LEVELS),
    st.tuples(st.just("rotate"), st.booleans()),
    st.tuples(st.just("special"), st.booleans()),
)


def bits(levels: set[int]) -> int:
    return sum(1 << level for level in levels)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([False, False, True]), st.lists(OPERATIONS, min_size=25, max_size=60))
def test_one_chip_behaves_as_the_model(auto_eoi: bool, operations: list[tuple[object, ...]]) -> None:
    outputs: list[bool] = [False]
    chip, model = Pic8259(outputs.append), Model(auto_eoi)
    for offset, value in ((0, 0x13), (1, 0x40), (1, 3 if auto_eoi else 1)):
        chip.write(offset, 1, value)
    for operation in operations:
        match operation:
            case ("line", int(level), bool(high)):
                chip.set_input(level, high)
                model.line(level, high)
            case ("mask", int(value)):
                chip.write(1, 1, value)
                model.masked = {n for n in range(8) if value & 1 << n}
            case ("trigger", int(value)):
                chip.set_trigger(value)
                model.trigger({n for n in range(8) if value & 1 << n})
            case ("ack",):
                level_or_none = model.acknowledge()
                assert chip.acknowledge() == (7 if level_or_none is None else level_or_none)
            case ("poll", int(offset)):
                chip.write(0, 1, POLL)
                level_or_none = model.acknowledge()
                assert chip.read(offset, 1) == (0 if level_or_none is None else 0x80 | level_or_none)
            case ("eoi", None, bool(rotate)):
                chip.write(0, 1, 0xA0 if rotate else 0x20)
                model.eoi(None, rotate)
            case ("eoi", int(level), bool(rotate)):
                chip.write(0, 1, (0xE0 if rotate else 0x60) | level)
                model.eoi(level, rotate)
            case ("lowest", int(level)):
                chip.write(0, 1, 0xC0 | level)
                model.make_lowest(level)
            case ("rotate", bool(on)):
                chip.write(0, 1, 0x80 if on else 0x00)
                model.rotating = on
            case ("special", bool(on)):
                chip.write(0, 1, 0x68 if on else 0x48)
                model.special = on
        chip.write(0, 1, READ_IRR)
        assert chip.read(0, 1) == bits(model.requests())
        chip.write(0, 1, READ_ISR)
        assert chip.read(0, 1) == bits(model.served)
        assert chip.read(1, 1) == bits(model.masked)
        assert chip.output == (model.winner() is not None) == outputs[-1]
    assert all(a != b for a, b in itertools.pairwise(outputs)), "INT is told only when it changes"
