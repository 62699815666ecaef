"""The 8254 interval timer and the part of port 0x61 that belongs to it. Source: Intel 8254 data sheet (order 231164).

Three counters count down from a programmable count at 1193182 Hz. Counter 0's OUT is IRQ 0, counter 1 once timed memory
refresh, counter 2 makes sound and has its GATE at port 0x61; the other gates are always high.

Ports by offset: 0 to 2 the counters, 3 write the control word (read 0).
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine, State, check_fields
from emu.devices.pit_counter import Counter
from emu.devices.shared import PIT, SYSTEM_CONTROL, Head, record
from emu.units import NEVER

HZ = 1_193_182  # clocks a second
NS = 1_000_000_000  # ns a second
CONTROL = 3  # offset of the control word
READ_BACK = 3  # "counter" of a control word that is a read-back command
STATUS_NOT_WANTED = 0x10  # read-back: do not latch the status
COUNT_NOT_WANTED = 0x20  # read-back: do not latch the count

GATE_2 = 0x01  # port 0x61: counter 2's GATE
WRITABLE = 0x0F  # port 0x61: GATE 2, speaker on, and two switches for error checks that nothing here can fail
REFRESH = 0x10  # port 0x61: toggles with each memory refresh
OUT_2 = 0x20  # port 0x61: counter 2's OUT
REFRESH_CLOCKS = 18  # what a BIOS programs counter 1 to: 15 us


def clocks_at(now_ns: int) -> int:
    """How many clocks have come by ``now_ns``."""
    return now_ns * HZ // NS


def time_of(clock: int) -> int:
    """Virtual time in ns at which clock number ``clock`` has come."""
    return -(-clock * NS // HZ)


@record
class PitState(Head):
    """What the native plane needs (:mod:`emu.cpu.pit`)."""

    counter_0_at: int  # host addresses of the counters' records
    counter_1_at: int
    counter_2_at: int
    quiet: int  # clock number before which counter 0's OUT does not change


class Pit(Device, PitState):
    """The chip. ``line`` follows counter 0's OUT; a rise that came and went between two looks is an edge on it, too."""

    def __init__(self, line: IrqLine, clock: Clock) -> None:
        self.kind = PIT
        self._line = line
        self._clock = clock
        self.counters = (Counter(gate=True), Counter(gate=True), Counter(gate=False))
        self.counter_0_at, self.counter_1_at, self.counter_2_at = (counter.shared_at for counter in self.counters)
        self._publish()

    def read(self, offset: int, size: int) -> int:
        if offset == CONTROL:
            return 0
        self.tick(self._clock())
        return self._counter_now(offset).read()

    def write(self, offset: int, size: int, value: int) -> None:
        self.tick(self._clock())
        if offset != CONTROL:
            self._counter_now(offset).write(value)
        elif value >> 6 != READ_BACK:
            self._counter_now(value >> 6).control(value)
        else:
            for number in range(3):
                if value & 2 << number:
                    self._read_back(self._counter_now(number), value)
        self._line.set(self.counters[0].out)
        self._publish()

    def deadline(self) -> int | None:
        return self._next_event

    def tick(self, now_ns: int) -> None:
        if self.counters[0].advance(clocks_at(now_ns)):
            self._line.set(False)
            self._line.set(True)
        self._line.set(self.counters[0].out)
        self._publish()

    def set_gate_2(self, gate: bool) -> None:
        """Drive counter 2's GATE."""
        self._counter_now(2).set_gate(gate)

    def out_2(self) -> bool:
        """Level of counter 2's OUT."""
        return self._counter_now(2).out

    def state(self) -> State:
        return {"counters": [{name: getattr(counter, name) for name in Counter.STATE} for counter in self.counters]}

    def load_state(self, state: State) -> None:
        check_fields("Pit", state, ("counters",))
        for counter, values in zip(self.counters, state["counters"], strict=True):
            check_fields("Pit counter", values, Counter.STATE)
            for name, value in values.items():
                setattr(counter, name, value)
        self._publish()

    def _publish(self) -> None:
        """Note when counter 0 does something next, for the native plane and for ``deadline``."""
        change, event = self.counters[0].next_change(), self.counters[0].next_event()
        self.quiet = NEVER if change is None else change
        self._next_event = None if event is None else time_of(event)

    def _counter_now(self, number: int) -> Counter:
        counter = self.counters[number]
        counter.advance(clocks_at(self._clock()))
        return counter

    @staticmethod
    def _read_back(counter: Counter, value: int) -> None:
        if not value & COUNT_NOT_WANTED:
            counter.latch_count()
        if not value & STATUS_NOT_WANTED:
            counter.latch_status()


@record
class SystemControlState(Head):
    """What the native plane needs (:mod:`emu.cpu.pit`)."""

    written: int
    counter_2_at: int  # host address of the record of the PIT's counter 2


class SystemControlPort(Device, SystemControlState):
    """Port 0x61: GATE and OUT of the PIT's counter 2, and the refresh toggle that old delay loops wait for."""

    STATE: ClassVar[tuple[str, ...]] = ("written",)

    def __init__(self, pit: Pit, clock: Clock) -> None:
        self._pit = pit
        self._clock = clock
        self.kind = SYSTEM_CONTROL
        self.counter_2_at = pit.counter_2_at

    def read(self, offset: int, size: int) -> int:
        refreshes = clocks_at(self._clock()) // REFRESH_CLOCKS
        return self.written | REFRESH * (refreshes & 1) | OUT_2 * self._pit.out_2()

    def write(self, offset: int, size: int, value: int) -> None:
        self.written = value & WRITABLE
        self._pit.set_gate_2(bool(value & GATE_2))
