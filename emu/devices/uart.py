"""The 16550A serial port. Source: National Semiconductor PC16550D data sheet.

Registers by offset (DLAB is bit 7 of LCR):
    0  read RBR, write THR   DLAB: DLL, divisor low     4  MCR  modem control
    1  IER  enables          DLAB: DLM, divisor high    5  LSR  line status
    2  read IIR, write FCR   interrupt cause, FIFOs     6  MSR  modem status
    3  LCR  line control                                7  SCR  scratch

What is sent leaves at once, so the transmitter is empty whenever the guest looks, and the transmit FIFO never holds
anything. What is received comes in at the programmed speed, one character time after the other, and waits outside while
the receiver is full, as if the other end obeyed RTS: typed-ahead input never overruns a guest. Input from a file
(``offer``) has no speed: there is a next character whenever the guest looks for one, so a guest that polls need not
poll for long, and one that clears its FIFO first loses nothing.

The other end is always there: CTS, DSR and DCD are set. The interrupt output does not depend on OUT2, which gates it on
real boards but not in QEMU's PC, and kernels written there leave OUT2 alone.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine, Sink, State
from emu.devices.output import ConsoleOutput
from emu.devices.shared import ASK, UART, Plain, record

RBR_THR, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)  # register offsets

IER_RDA = 0x01  # received data, and character timeout
IER_THRE = 0x02  # transmitter holding register empty
IER_RLS = 0x04  # receiver line status
IER_MS = 0x08  # modem status
IER_ALL = 0x0F
IIR_MS = 0x00  # modem status: cleared by reading MSR
IIR_NONE = 0x01  # no interrupt
IIR_THRE = 0x02  # THR empty: cleared by reading this IIR or writing THR
IIR_RDA = 0x04  # trigger level reached: cleared by reading RBR below it
IIR_RLS = 0x06  # line status: cleared by reading LSR
IIR_TIMEOUT = 0x0C  # characters wait below the trigger level: cleared by reading RBR
IIR_FIFO = 0xC0  # FIFOs are on
FCR_ENABLE = 0x01  # FIFOs on; without it the other FCR bits mean nothing
FCR_CLEAR_RX = 0x02
FCR_TRIGGER = (1, 4, 8, 14)  # characters, by FCR bits 7 and 6
LCR_WORD = 0x03  # data bits minus five
LCR_STB = 0x04  # two stop bits
LCR_PEN = 0x08  # parity bit
LCR_DLAB = 0x80
MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10  # transmitter drives receiver, modem outputs drive modem inputs
MCR_ALL = 0x1F
LSR_DR = 0x01  # data ready
LSR_OE = 0x02  # overrun: a character was lost, without FIFO the old one, with it the new one
LSR_THRE = 0x20  # THR empty
LSR_TEMT = 0x40  # transmitter empty
MSR_TERI = 0x04  # ring indicator fell
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
LOOPED = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))  # loopback wiring

FIFO_SIZE = 16  # characters
TIMEOUT_CHARACTERS = 4  # character times without traffic until IIR_TIMEOUT
MAX_HZ = 115200  # bits a second with divisor 1
RESET_DIVISOR = 12  # 9600 bits a second
NS = 1_000_000_000  # ns a second


@record
class UartRecord(Plain):
    """What the native plane needs, and in part changes (:mod:`emu.cpu.registers`)."""

    output_at: int  # host address of a ConsoleOutput's record; 0 when the sink is something else
    transmits: int  # a character written to THR goes out and does nothing more
    thre_event: int  # THR became empty, IIR not yet read


class Uart16550(Device, UartRecord):
    """One port. Sent bytes go to ``sink``; ``receive`` takes bytes for the guest."""

    STATE: ClassVar[tuple[str, ...]] = (
        "divisor", "ier", "fifo_on", "trigger", "lcr", "mcr", "scr", "overrun", "modem", "modem_delta", "thre_event",
        "received", "incoming", "offered", "next_arrival", "timeout_at", "timed_out",
    )  # fmt: skip

    def __init__(self, line: IrqLine, sink: Sink, clock: Clock) -> None:
        super().__init__(8)
        self.kind = UART
        self.output_at = sink.shared_at if isinstance(sink, ConsoleOutput) else 0
        self._line = line
        self._sink = sink
        self._clock = clock
        self.divisor = RESET_DIVISOR
        self.ier = 0
        self.fifo_on = False
        self.trigger = 1  # characters that make IIR_RDA
        self.lcr = 0
        self.mcr = 0
        self.scr = 0
        self.overrun = False
        self.modem = MSR_CTS | MSR_DSR | MSR_DCD  # upper half of MSR
        self.modem_delta = 0  # lower half: what changed since MSR was read
        self.received: list[int] = []  # receive FIFO, or RBR
        self.incoming: list[int] = []  # on the way, not here yet
        self.offered: list[int] = []  # here as soon as the guest looks
        self.next_arrival: int | None = None  # virtual ns; None while nothing comes or there is no room
        self.timeout_at: int | None = None  # virtual ns at which waiting characters time out
        self.timed_out = False
        self._publish()

    def receive(self, data: bytes) -> None:
        """Send ``data`` to the guest; it arrives from one character time after now, or after what is on the way."""
        self.incoming += data
        self._expect()

    def offer(self, data: bytes) -> None:
        """Have ``data`` ready for the guest: it arrives without delay, but not before the guest looks for input."""
        self.offered += data
        self._update()
        self._publish()

    def machine_reset(self, power_up: State) -> None:
        """What is on the way, or waits outside, still comes."""
        incoming, offered = self.incoming, self.offered
        super().machine_reset(power_up)
        self.incoming, self.offered = incoming, offered
        self._expect()
        self._update()
        self._publish()

    def deadline(self) -> int | None:
        arrival, timeout = self.next_arrival, self.timeout_at
        if arrival is None or timeout is None:
            return timeout if arrival is None else arrival
        return min(arrival, timeout)

    def tick(self, now_ns: int) -> None:
        while self.next_arrival is not None and self.next_arrival <= now_ns:
            arrival, self.next_arrival = self.next_arrival, None
            self._arrive(self.incoming.pop(0), arrival)
            self._expect(arrival)
        if self.timeout_at is not None and self.timeout_at <= now_ns:
            self.timeout_at = None
            self.timed_out = True
        self._update()
        self._publish()

    def read(self, offset: int, size: int) -> int:
        if self.lcr & LCR_DLAB and offset <= 1:
            return self.divisor >> 8 * offset & 0xFF
        value = self._read(offset)
        self._update()
        self._publish()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if self.lcr & LCR_DLAB and offset <= 1:
            shift = 8 * offset
            self.divisor = self.divisor & ~(0xFF << shift) | value << shift
        elif offset == RBR_THR:
            self._transmit(value)
        elif offset == IER:
            # Enabling the interrupt while THR is empty, as it always is, counts as its becoming empty.
            if (value ^ self.ier) & IER_THRE:
                self.thre_event = bool(value & IER_THRE)
            self.ier = value & IER_ALL
        elif offset == IIR_FCR:
            self._write_fcr(value)
        elif offset == LCR:
            self.lcr = value
        elif offset == MCR:
            self._write_mcr(value & MCR_ALL)
        elif offset == SCR:
            self.scr = value
        self._update()
        self._publish()

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self._publish()

    def _read(self, offset: int) -> int:
        """A register other than the divisor, with what reading it does."""
        if offset in (RBR_THR, LSR):
            self._take_offered()
        if offset == RBR_THR:
            return self._read_rbr()
        if offset == IER:
            return self.ier
        if offset == IIR_FCR:
            cause = self._cause()
            if cause == IIR_THRE:
                self.thre_event = False
            return cause | (IIR_FIFO if self.fifo_on else 0)
        if offset == LCR:
            return self.lcr
        if offset == MCR:
            return self.mcr
        if offset == LSR:
            overrun, self.overrun = self.overrun, False
            return LSR_TEMT | LSR_THRE | LSR_OE * overrun | LSR_DR * bool(self.received)
        if offset == MSR:
            delta, self.modem_delta = self.modem_delta, 0
            return self.modem | delta
        return self.scr

    def _read_rbr(self) -> int:
        """The oldest character; an empty receiver reads 0."""
        if not self.received:
            return 0
        value = self.received.pop(0)
        self.timed_out = False
        self._restart_timeout(self._clock())
        self._expect()
        return value

    def _write_fcr(self, value: int) -> None:
        enable = bool(value & FCR_ENABLE)
        if enable != self.fifo_on or value & FCR_CLEAR_RX:
            self.received.clear()
            self.timed_out = False
            self.timeout_at = None
        self.fifo_on = enable
        self.trigger = FCR_TRIGGER[value >> 6] if enable else 1
        self._expect()

    def _write_mcr(self, value: int) -> None:
        """Loopback cuts the receiver off from the world: what was on the way starts again when it ends."""
        self.mcr = value
        self._update_modem()
        if value & MCR_LOOP:
            self.next_arrival = None
        else:
            self._expect()

    def _transmit(self, value: int) -> None:
        """Send one character. THR is full for no time at all, but the interrupt output drops and rises for it."""
        self.thre_event = False
        self._update()
        if not self.mcr & MCR_LOOP:
            self._sink(bytes((value,)))
        elif len(self.received) < self._room():
            self._arrive(value, self._clock())
        else:
            self.overrun = True
            if not self.fifo_on:
                self.received = [value]
        self.thre_event = True

    def _arrive(self, value: int, now_ns: int) -> None:
        self.received.append(value)
        self._restart_timeout(now_ns)

    def _restart_timeout(self, now_ns: int) -> None:
        waiting = self.fifo_on and self.received
        self.timeout_at = now_ns + TIMEOUT_CHARACTERS * self._character_ns() if waiting else None

    def _expect(self, now_ns: int | None = None) -> None:
        """Let the next incoming character be on its way from ``now_ns`` (default: now) on, if there is room for it."""
        if self.next_arrival is None and self.incoming and self._has_room():
            self.next_arrival = (self._clock() if now_ns is None else now_ns) + self._character_ns()

    def _take_offered(self) -> None:
        while self.offered and self._has_room():
            self._arrive(self.offered.pop(0), self._clock())

    def _room(self) -> int:
        return FIFO_SIZE if self.fifo_on else 1

    def _character_ns(self) -> int:
        """Duration of one character: start bit, data, parity, stop bits. Divisor 0 stops a real chip; here it is 1."""
        bits = 1 + 5 + (self.lcr & LCR_WORD) + bool(self.lcr & LCR_PEN) + (2 if self.lcr & LCR_STB else 1)
        return bits * max(self.divisor, 1) * NS // MAX_HZ

    def _update_modem(self) -> None:
        """Recompute the modem inputs and note in ``modem_delta`` which of them changed."""
        modem = MSR_CTS | MSR_DSR | MSR_DCD
        if self.mcr & MCR_LOOP:
            modem = sum(bit for control, bit in LOOPED if self.mcr & control)
        fell, changed = self.modem & ~modem, self.modem ^ modem
        self.modem_delta |= (changed & ~MSR_RI) >> 4 | (MSR_TERI if fell & MSR_RI else 0)
        self.modem = modem

    def _cause(self) -> int:
        """The IIR code of the interrupt of highest priority among those that are enabled and due."""
        if self.ier & IER_RLS and self.overrun:
            return IIR_RLS
        if self.ier & IER_RDA and len(self.received) >= self.trigger:
            return IIR_RDA
        if self.ier & IER_RDA and self.timed_out:
            return IIR_TIMEOUT
        if self.ier & IER_THRE and self.thre_event:
            return IIR_THRE
        if self.ier & IER_MS and self.modem_delta:
            return IIR_MS
        return IIR_NONE

    def _publish(self) -> None:
        """Tell the native plane what the registers read as."""
        waiting = bool(self.offered) and self._has_room()
        cause = self._cause()
        fifo = IIR_FIFO if self.fifo_on else 0
        rbr, ier = ASK if self.received or waiting else 0, self.ier
        if self.lcr & LCR_DLAB:
            rbr, ier = self.divisor & 0xFF, self.divisor >> 8
        iir = ASK if cause == IIR_THRE else cause | fifo
        lsr = ASK if self.overrun or waiting else LSR_TEMT | LSR_THRE | LSR_DR * bool(self.received)
        msr = ASK if self.modem_delta else self.modem
        self.transmits = not (self.lcr & LCR_DLAB or self.mcr & MCR_LOOP or self.ier & IER_THRE)
        self.reads[:] = [rbr, ier, iir, self.lcr, self.mcr, lsr, msr, self.scr]

    def _has_room(self) -> bool:
        """Whether the receiver takes another character from the world."""
        return not self.mcr & MCR_LOOP and len(self.received) < self._room()

    def _update(self) -> None:
        self._line.set(self._cause() != IIR_NONE)
        if self.ier & IER_RDA and self.offered:  # waiting for the interrupt is looking, too
            self._take_offered()
            self._line.set(self._cause() != IIR_NONE)  # low in between, for a controller that wants an edge
