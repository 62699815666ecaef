"""The serial port: what the Linux driver and teaching kernels try out on it, priorities, and speed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.layout import COM1_PORT, COM_PORTS
from emu.devices.uart import Uart16550
from emu.errors import BadInput

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = (COM1_PORT + n for n in (0, 1, 2, 2, 3, 4, 5, 6, 7))
CHARACTER_NS = 10 * 1_000_000_000 // 115200  # 8N1 at the highest speed


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


class Board:
    def __init__(self) -> None:
        self.now_ns = 0
        self.line = Line()
        self.sent = bytearray()
        self.uart = Uart16550(self.line, self.sent.extend, lambda: self.now_ns)
        self.bus = PortBus()
        self.bus.register(COM1_PORT, COM_PORTS, self.uart)

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def fast(self) -> None:
        """115200 8N1, no FIFO, no interrupts."""
        self.out((LCR, 0x80), (DATA, 1), (IER, 0), (LCR, 0x03))

    def run(self, until_ns: int) -> None:
        """Do what a machine does: tick at each deadline."""
        while (deadline := self.uart.deadline()) is not None and deadline <= until_ns:
            self.now_ns = max(self.now_ns, deadline)
            self.uart.tick(self.now_ns)
        self.now_ns = until_ns

    def read_all(self) -> bytes:
        data = bytearray()
        while self.inb(LSR) & 1:
            data.append(self.inb(DATA))
        return bytes(data)


@pytest.fixture
def board() -> Board:
    board = Board()
    board.fast()
    return board


def test_registers_after_reset() -> None:
    board = Board()
    assert [board.inb(port) for port in (IER, IIR, LCR, MCR, LSR, MSR, SCR)] == [0, 1, 0, 0, 0x60, 0xB0, 0]
    assert board.uart.deadline() is None


def test_linux_driver_finds_a_16550a() -> None:
    """The steps of autoconfig() in 8250_port.c, in its order."""
    board = Board()
    board.out((IER, 0))
    assert board.inb(IER) & 0x0F == 0
    board.out((IER, 0x0F))
    assert board.inb(IER) & 0x0F == 0x0F
    board.out((IER, 0), (MCR, 0x10 | 0x0A))
    assert board.inb(MSR) & 0xF0 == 0x90, "loopback drives CTS and DCD"
    board.out((MCR, 0), (LCR, 0xBF), (FCR, 0), (LCR, 0), (FCR, 0x01))
    assert board.inb(IIR) >> 6 == 3, "a working FIFO"
    board.out((FCR, 0x01), (LCR, 0x80))
    assert board.inb(FCR) & 0x3F == 0x01, "no EFR: not a 16650"
    board.out((LCR, 0xBF))
    assert board.inb(FCR) != 0, "no EFR: not a 16650V2"
    board.out((LCR, 0), (FCR, 0x01 | 0x20))
    assert board.inb(IIR) >> 5 == 6, "no 64-byte FIFO: not a 16750"
    board.out((IER, 0x40))
    assert board.inb(IER) & 0x40 == 0, "not an XScale"
    board.out((IER, 0))


def test_linux_driver_startup_finds_no_thre_bug(board: Board) -> None:
    """serial8250_THRE_test and the TXEN test: enabling IER_THRE must raise the interrupt, each time."""
    for _ in range(2):
        board.out((IER, 0x02))
        assert board.line.level
        assert board.inb(IIR) == 0x02
        assert board.inb(IIR) == 0x01
        board.out((IER, 0))
    assert board.inb(LSR) & 0x60 == 0x60


def test_linux_driver_measures_a_fifo_of_16(board: Board) -> None:
    """size_fifo: send 256 bytes to itself and count what arrives."""
    board.out((FCR, 0x07), (MCR, 0x10))
    board.uart.receive(b"typed ahead")
    for value in range(256):
        board.out((DATA, value))
    assert board.inb(LSR) & 0x03 == 0x03, "data ready, and an overrun"
    assert board.read_all() == bytes(range(16))
    assert board.sent == b""
    board.out((MCR, 0x0B))
    board.run(board.now_ns + 20 * CHARACTER_NS)
    assert board.read_all() == b"typed ahead"


def test_overrun_without_fifo_loses_the_older_character(board: Board) -> None:
    board.out((MCR, 0x10), (DATA, 0x41), (DATA, 0x42))
    assert board.inb(LSR) == 0x63
    assert (board.inb(DATA), board.inb(LSR)) == (0x42, 0x60)


def test_polled_output_never_waits(board: Board) -> None:
    for value in b"Linux version 6.1\r\n":
        assert board.inb(LSR) & 0x60 == 0x60
        board.out((DATA, value))
    assert board.sent == b"Linux version 6.1\r\n"
    assert board.uart.deadline() is None


def test_interrupt_driven_output_of_a_fifo_at_a_time(board: Board) -> None:
    """serial8250_tx_chars: fill the FIFO at each THRE interrupt, switch the interrupt off when nothing is left."""
    board.out((FCR, 0x81), (MCR, 0x0B), (IER, 0x07))
    text, interrupts = bytes(range(100)), 0
    while board.line.level:
        interrupts += 1
        assert board.inb(IIR) == 0xC2
        chunk, text = text[:16], text[16:]
        board.out(*((DATA, value) for value in chunk))
        if not text:
            board.out((IER, 0x05))
    assert (bytes(board.sent), interrupts) == (bytes(range(100)), 7)


def test_each_sent_character_is_an_edge_for_the_controller(board: Board) -> None:
    board.out((IER, 0x02))
    rises = board.line.rises
    board.out((DATA, 0x41), (DATA, 0x42))
    assert board.line.rises == rises + 2


def test_teaching_kernel_without_fifo_and_without_out2() -> None:
    """xv6's uartinit: no FIFO, 9600 8N1, MCR 0, receive interrupts; it expects them on QEMU."""
    board = Board()
    board.out((FCR, 0), (LCR, 0x80), (DATA, 12), (IER, 0), (LCR, 0x03), (MCR, 0), (IER, 0x01))
    assert board.inb(LSR) != 0xFF
    board.inb(IIR)
    board.inb(DATA)
    board.uart.receive(b"ls\n")
    typed = bytearray()
    while (deadline := board.uart.deadline()) is not None:
        board.run(deadline)
        assert board.line.level
        assert board.inb(IIR) == 0x04
        typed += board.read_all()
        assert not board.line.level
    assert typed == b"ls\n"
    assert board.line.rises == 3
    assert board.now_ns == 3 * (10 * 12 * 1_000_000_000 // 115200)


def test_input_comes_at_line_speed_and_is_never_overrun(board: Board) -> None:
    board.uart.receive(b"abc")
    board.run(CHARACTER_NS - 1)
    assert not board.inb(LSR) & 1
    board.run(CHARACTER_NS)
    assert board.inb(LSR) == 0x61
    board.run(100 * CHARACTER_NS)
    assert board.uart.deadline() is None, "the receiver is full"
    assert (board.inb(DATA), board.inb(LSR)) == (ord("a"), 0x60)
    assert board.uart.deadline() == 101 * CHARACTER_NS
    board.run(200 * CHARACTER_NS)
    assert board.inb(DATA) == ord("b")


def test_character_time_follows_divisor_and_format() -> None:
    board = Board()
    board.out((LCR, 0x80), (DATA, 0x80), (IER, 0x01), (LCR, 0x1F))
    board.uart.receive(b"x")
    assert board.uart.deadline() == (1 + 8 + 1 + 2) * 0x180 * 1_000_000_000 // 115200
    board.out((LCR, 0x80))
    assert (board.inb(DATA), board.inb(IER)) == (0x80, 0x01)


@pytest.mark.parametrize(("code", "trigger"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_trigger_levels(board: Board, code: int, trigger: int) -> None:
    board.out((FCR, 0x07 | code), (IER, 0x01))
    board.uart.receive(bytes(range(trigger)))
    board.run((trigger - 1) * CHARACTER_NS)
    assert not board.line.level
    board.run(trigger * CHARACTER_NS)
    assert board.line.level
    assert board.inb(IIR) == 0xC4
    board.inb(DATA)
    assert not board.line.level


def test_character_timeout(board: Board) -> None:
    board.out((FCR, 0x87), (IER, 0x01))
    board.uart.receive(b"hi")
    board.run(6 * CHARACTER_NS - 1)
    assert not board.line.level
    board.run(6 * CHARACTER_NS)
    assert board.inb(IIR) == 0xCC
    assert board.inb(DATA) == ord("h")
    assert board.inb(IIR) == 0xC1
    board.run(10 * CHARACTER_NS)
    assert board.inb(IIR) == 0xCC
    assert board.inb(DATA) == ord("i")
    assert board.uart.deadline() is None


def test_clearing_the_fifo_loses_what_arrived_but_not_what_is_on_the_way(board: Board) -> None:
    board.out((FCR, 0x07))
    board.uart.receive(bytes(range(20)))
    board.run(100 * CHARACTER_NS)
    board.out((FCR, 0x03))
    assert not board.inb(LSR) & 1
    board.run(200 * CHARACTER_NS)
    assert board.read_all() == bytes(range(16, 20))


def test_interrupt_priorities_and_what_clears_each(board: Board) -> None:
    board.out((FCR, 0x07), (MCR, 0x10))
    board.out(*((DATA, 0x55) for _ in range(17)))
    board.out((MCR, 0x1F), (IER, 0x0F))
    assert board.inb(IIR) == 0xC6, "overrun"
    assert board.inb(LSR) == 0x63
    assert board.inb(IIR) == 0xC4, "received data"
    board.read_all()
    assert board.inb(IIR) == 0xC2, "THR empty, cleared by this read"
    assert board.inb(IIR) == 0xC0, "modem status"
    assert board.inb(MSR) & 0xF0 == 0xF0
    assert board.inb(IIR) == 0xC1
    assert not board.line.level


def test_reading_iir_for_another_cause_keeps_thre(board: Board) -> None:
    board.uart.receive(b"x")
    board.run(CHARACTER_NS)
    board.out((IER, 0x03))
    assert [board.inb(IIR), board.inb(IIR)] == [0x04, 0x04]
    board.inb(DATA)
    assert [board.inb(IIR), board.inb(IIR)] == [0x02, 0x01]


@pytest.mark.parametrize(("mcr", "msr"), [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0F, 0xF0)])
def test_loopback_of_modem_lines(board: Board, mcr: int, msr: int) -> None:
    board.out((MCR, 0x10 | mcr))
    assert board.inb(MSR) & 0xF0 == msr
    assert board.inb(MSR) & 0x0F == 0
    board.out((MCR, 0x10))
    ring_fell = 0x04 if mcr & 0x04 else 0
    assert board.inb(MSR) == (msr & ~0x40) >> 4 | ring_fell
    board.out((MCR, 0))
    assert board.inb(MSR) == 0xBB
    board.out((MCR, 0x10 | mcr))
    assert board.inb(MSR) & 0x04 == 0, "the ring indicator did not fall"


def test_scratch_and_line_control_keep_their_values(board: Board) -> None:
    board.out((SCR, 0xA5), (LCR, 0x1B))
    assert (board.inb(SCR), board.inb(LCR)) == (0xA5, 0x1B)


def test_unprogrammed_fcr_bits_without_enable(board: Board) -> None:
    board.out((FCR, 0xC0))
    assert board.inb(IIR) == 0x01
    assert board.uart.trigger == 1


def test_divisor_zero_does_not_stop_time(board: Board) -> None:
    board.out((LCR, 0x80), (DATA, 0), (LCR, 0x03))
    board.uart.receive(b"x")
    assert board.uart.deadline() == CHARACTER_NS


def test_state_survives_json(board: Board) -> None:
    board.out((FCR, 0x47), (IER, 0x0F), (MCR, 0x0B), (SCR, 9))
    board.uart.receive(b"0123456789")
    board.run(5 * CHARACTER_NS)
    other = Board()
    other.now_ns = board.now_ns
    other.uart.load_state(json.loads(json.dumps(board.uart.state())))
    board.uart.receive(b"x")
    assert len(other.uart.incoming) == 5
    other.uart.receive(b"x")
    for each in (board, other):
        each.run(50 * CHARACTER_NS)
    assert other.uart.state() == board.uart.state()
    assert other.read_all() == board.read_all() == b"0123456789x"
    with pytest.raises(BadInput):
        board.uart.load_state({})


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=80),
    st.sampled_from([0x00, 0x01, 0x41, 0x81, 0xC1]),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=12),
)
def test_every_byte_arrives_once_in_order_and_none_is_left_without_an_interrupt(
    data: bytes, fcr: int, reads: list[tuple[int, int]]
) -> None:
    """However slowly and unevenly a guest reads, and with whatever FIFO."""
    board = Board()
    board.fast()
    board.out((FCR, fcr), (IER, 0x01))
    board.uart.receive(data[: len(data) // 2])
    board.uart.receive(data[len(data) // 2 :])
    got = bytearray()
    for characters, limit in reads:
        board.run(board.now_ns + characters * CHARACTER_NS)
        for _ in range(limit):
            if board.inb(LSR) & 1:
                got.append(board.inb(DATA))
    for _ in range(len(data) + 1):
        while not board.line.level and (deadline := board.uart.deadline()) is not None:
            board.run(deadline)
        if board.line.level:
            assert board.inb(IIR) & 0x0F in (0x04, 0x0C)
            got += board.read_all()
    assert bytes(got) == data


# --- offered input ----------------------------------------------------------------------------------------------


def test_offered_input_is_there_whenever_a_polling_guest_looks() -> None:
    board = Board()
    board.uart.offer(b"no speed at all, and more than a FIFO holds")
    board.out((FCR, 0xC7))  # clears the FIFO, which loses nothing
    assert board.read_all() == b"no speed at all, and more than a FIFO holds"
    assert board.now_ns == 0


def test_offered_input_interrupts_a_guest_that_waits_for_it() -> None:
    board = Board()
    board.uart.offer(b"x" * 20)
    assert not board.line.level
    board.out((FCR, 0x01), (IER, 0x01))
    assert board.line.level and board.inb(IIR) & 0x0F == 0x04
    assert board.read_all() == b"x" * 20
    assert not board.line.level


def test_offered_input_waits_for_the_end_of_loopback() -> None:
    board = Board()
    board.uart.offer(b"x")
    board.out((MCR, 0x10))
    assert not board.inb(LSR) & 1
    board.out((MCR, 0))
    assert board.read_all() == b"x"
