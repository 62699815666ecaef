"""Two 8259A interrupt controllers, wired as in a PC/AT. Source: Intel 8259A data sheet (order 231468), PIIX3 for ELCR.

Each chip has eight inputs IR0 to IR7 and one output INT. A request at an input sets its bit in the IRR. The chip raises
INT when a request is neither masked (IMR) nor of the same or lower priority than one that is being serviced (ISR). The
CPU answers INT with an acknowledge cycle (INTA): the request moves from IRR to ISR and the CPU gets its vector. The end
of the service routine clears the ISR bit with an EOI command; in automatic EOI mode INTA does not even set it.

The slave's INT is the master's IR2; the master's INT is the CPU's INTR pin. INTA for IR2 is passed on to the slave.

Ports of a chip, by offset:
    0 write  ICW1 (bit 4 set), OCW2 (bits 4, 3 clear) or OCW3 (bit 3 set)
    0 read   IRR or ISR, as OCW3 chose
    1 write  ICW2, ICW3, ICW4 after an ICW1; else OCW1, the IMR
    1 read   IMR
The first read of either port after a poll command (OCW3) is an acknowledge cycle instead: bit 7 and the level.

Two points are those of QEMU's PC and of later chip sets rather than of the data sheet: the trigger mode comes from ELCR
alone (ICW1's LTIM bit is ignored), and an edge once seen stays requested though its line drops before the INTA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device, IrqLine, State, check_fields
from emu.devices.shared import PIC, Head, record
from emu.errors import BadInput

ICW1 = 0x10  # port 0: this is an ICW1
ICW1_IC4 = 0x01  # an ICW4 will follow
ICW1_SNGL = 0x02  # single chip, no ICW3 will follow
ICW4_AEOI = 0x02  # automatic end of interrupt
ICW4_SFNM = 0x10  # special fully nested mode
OCW2_LEVEL = 0x07  # the level that a specific command means
OCW2_EOI = 0x20  # end of interrupt
OCW2_SL = 0x40  # specific: the command names its level
OCW2_R = 0x80  # rotate priorities
OCW3 = 0x08  # port 0: this is an OCW3
OCW3_RIS = 0x01  # with RR: read ISR, else IRR
OCW3_RR = 0x02  # RIS is meant
OCW3_P = 0x04  # poll
OCW3_SMM = 0x20  # with ESMM: special mask mode on, else off
OCW3_ESMM = 0x40  # SMM is meant
POLL_REQUEST = 0x80  # poll answer: there was a request

CASCADE = 2  # master input that carries the slave's INT
SPURIOUS = 7  # level that an acknowledge without a request gets
ELCR_MASTER = 0xF8  # inputs that can be level-triggered: not timer, keyboard and cascade
ELCR_SLAVE = 0xDE  # not RTC and FPU error


@record
class PicState(Head):
    """The state of a chip that the native plane uses, and in part changes (:mod:`emu.cpu.pic`)."""

    lines: int  # levels at IR0 to IR7 now
    latch: int  # edges seen and not yet acknowledged
    elcr: int  # inputs that are level-triggered
    cascade: int  # inputs that carry the INT of another chip
    imr: int
    isr: int
    lowest: int  # input of lowest priority; the next one (modulo 8) has the highest
    ready: int  # the ICW sequence was completed: requests are answered
    fully_nested: int  # special fully nested mode: the slave may interrupt its own service routine
    special_mask: int  # a masked input in service blocks nobody
    read_isr: int  # port 0 reads as ISR, not IRR
    output: int  # level of INT
    settled: int  # no ICW is awaited, and no poll: accesses mean what they usually mean


class Pic8259(Device, PicState):
    """One chip. ``on_output`` is called with the new level of INT when it changes; ``cascade`` has a bit for each input
    that carries the INT of another chip."""

    STATE: ClassVar[tuple[str, ...]] = (
        "lines", "latch", "elcr", "imr", "isr", "base", "lowest", "awaited", "ready", "auto_eoi", "rotate_on_auto_eoi",
        "fully_nested", "special_mask", "poll", "read_isr", "output",
    )  # fmt: skip

    def __init__(self, on_output: Callable[[bool], None], cascade: int = 0) -> None:
        self.kind = PIC
        self._on_output = on_output
        self.cascade = cascade
        self.base = 0  # vector of IR0
        self.lowest = 7
        self.awaited: list[int] = []  # numbers of the ICWs that port 1 will take next
        self.auto_eoi = False
        self.rotate_on_auto_eoi = False
        self.poll = False  # the next read is an acknowledge
        self.settled = True

    @property
    def irr(self) -> int:
        """Requests: the level of level-triggered inputs, the latched edges of the others.

        A slave's INT counts as a level, so that a request which the slave takes back (because it was masked there) is
        taken back here too, and one that stays after an INTA with automatic EOI asks again.
        """
        by_level = self.elcr | self.cascade
        return self.lines & by_level | self.latch & ~by_level

    def set_input(self, level_number: int, level: bool) -> None:
        """Drive the input IR of this number."""
        bit = 1 << level_number
        if level == bool(self.lines & bit):
            return
        self.lines ^= bit
        if level and not self.elcr & bit:
            self.latch |= bit
        self._update()

    def set_trigger(self, elcr: int) -> None:
        """Make the inputs with a bit in ``elcr`` level-triggered, the others edge-triggered."""
        self.elcr = elcr
        self.latch &= ~elcr
        self._update()

    def request(self) -> int | None:
        """Number of the input that INT asks to service; None when there is none."""
        if not self.ready:
            return None
        wanted = self._highest(self.irr & ~self.imr)
        if wanted is None:
            return None
        served = self._highest(self._blocking())
        if served is None or self._rank(wanted) < self._rank(served):
            return wanted
        if self.fully_nested and wanted == served and self.cascade & 1 << wanted:
            return wanted
        return None

    def acknowledge(self) -> int:
        """One INTA cycle: the number of the input now in service, or 7, with nothing in service, if all were quiet."""
        wanted = self.request()
        if wanted is None:
            return SPURIOUS
        self.latch &= ~(1 << wanted)
        if not self.auto_eoi:
            self.isr |= 1 << wanted
        elif self.rotate_on_auto_eoi:
            self.lowest = wanted
        self._update()
        return wanted

    def read(self, offset: int, size: int) -> int:
        if self.poll:
            self.poll = False
            self.settled = not self.awaited
            return POLL_REQUEST | self.acknowledge() if self.request() is not None else 0
        if offset == 1:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 1:
            if self.awaited:
                self._write_icw(self.awaited.pop(0), value)
            else:
                self.imr = value
        elif value & ICW1:
            self._write_icw1(value)
        elif value & OCW3:
            self._write_ocw3(value)
        else:
            self._write_ocw2(value)
        self._update()

    def _write_icw1(self, value: int) -> None:
        """Start over. An input that is high now must fall and rise again to request."""
        self.latch = self.imr = self.isr = 0
        self.lowest = 7
        self.ready = self.auto_eoi = self.rotate_on_auto_eoi = self.fully_nested = False
        self.special_mask = self.poll = self.read_isr = False
        self.awaited = [2] + [3] * (not value & ICW1_SNGL) + [4] * bool(value & ICW1_IC4)

    def _write_icw(self, number: int, value: int) -> None:
        """ICW2 to ICW4. What ICW3 would tell is wired in a PC: the slave is at the master's IR2."""
        if number == 2:
            self.base = value & 0xF8
        elif number == 4:
            self.auto_eoi = bool(value & ICW4_AEOI)
            self.fully_nested = bool(value & ICW4_SFNM)
        self.ready = not self.awaited

    def _write_ocw2(self, value: int) -> None:
        """EOI and priority rotation. R SL EOI: 001 EOI, 011 specific EOI, 101 and 111 the same and make that level the
        lowest, 110 make the level the lowest, 100 and 000 rotate on automatic EOI on and off, 010 nothing."""
        rotate, specific = bool(value & OCW2_R), bool(value & OCW2_SL)
        if value & OCW2_EOI:
            level = value & OCW2_LEVEL if specific else self._highest(self._blocking())
            if level is None:
                return
            self.isr &= ~(1 << level)
            if rotate:
                self.lowest = level
        elif not specific:
            self.rotate_on_auto_eoi = rotate
        elif rotate:
            self.lowest = value & OCW2_LEVEL

    def _write_ocw3(self, value: int) -> None:
        if value & OCW3_P:
            self.poll = True
        if value & OCW3_RR:
            self.read_isr = bool(value & OCW3_RIS)
        if value & OCW3_ESMM:
            self.special_mask = bool(value & OCW3_SMM)

    def _blocking(self) -> int:
        """Inputs in service that hold back those below them, and that a non-specific EOI can mean."""
        return self.isr & ~self.imr if self.special_mask else self.isr

    def _rank(self, level_number: int) -> int:
        """Priority of an input, 0 the highest."""
        return (level_number - self.lowest - 1) & 7

    def _highest(self, inputs: int) -> int | None:
        """The input of highest priority in a bit mask; None when it is empty."""
        if not inputs:
            return None
        first = (self.lowest + 1) & 7
        rotated = inputs >> first | inputs << (8 - first)
        return ((rotated & -rotated).bit_length() - 1 + first) & 7

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self.settled = not self.awaited and not self.poll

    def _update(self) -> None:
        self.settled = not self.awaited and not self.poll
        output = self.request() is not None
        if output != self.output:
            self.output = output
            self._on_output(output)


class ElcrPorts(Device):
    """The edge/level control registers: one port for each chip, a set bit means level-triggered."""

    def __init__(self, master: Pic8259, slave: Pic8259) -> None:
        self._chips = ((master, ELCR_MASTER), (slave, ELCR_SLAVE))

    def read(self, offset: int, size: int) -> int:
        return self._chips[offset][0].elcr

    def write(self, offset: int, size: int, value: int) -> None:
        chip, allowed = self._chips[offset]
        chip.set_trigger(value & allowed)


class _Input:
    """The wire to one input of one chip."""

    def __init__(self, chip: Pic8259, level_number: int) -> None:
        self._chip = chip
        self._level_number = level_number

    def set(self, level: bool) -> None:
        self._chip.set_input(self._level_number, level)


class PicPair:
    """Both controllers. Register ``master``, ``slave``, ``elcr`` on the bus; ``on_intr`` gets each level of INTR."""

    def __init__(self, on_intr: Callable[[bool], None] = lambda level: None) -> None:
        self._on_intr = on_intr
        self.master = Pic8259(on_intr, cascade=1 << CASCADE)
        self.slave = Pic8259(_Input(self.master, CASCADE).set)
        self.elcr = ElcrPorts(self.master, self.slave)

    def line(self, irq: int) -> IrqLine:
        """The wire of interrupt 0 to 15. Raises BadInput for others and for 2, which the slave is connected to."""
        if irq not in range(16) or irq == CASCADE:
            raise BadInput(f"interrupt {irq}", "not one of 0, 1, 3 to 15")
        return _Input(self.slave if irq >= 8 else self.master, irq & 7)

    def pending(self) -> bool:
        """Level of the CPU's INTR pin."""
        return bool(self.master.output)

    def acknowledge(self) -> int:
        """The CPU's INTA: the vector to deliver. Without a request it is that of IR7, the spurious interrupt."""
        level_number = self.master.acknowledge()
        if level_number == CASCADE:
            return self.slave.base + self.slave.acknowledge()
        return self.master.base + level_number

    def state(self) -> State:
        return {"master": self.master.state(), "slave": self.slave.state()}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned, and tell ``on_intr`` the level that INTR has now."""
        check_fields("PicPair", state, ("master", "slave"))
        self.master.load_state(state["master"])
        self.slave.load_state(state["slave"])
        self._on_intr(bool(self.master.output))
