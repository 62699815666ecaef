"""One counter of the 8254 interval timer. Source: Intel 8254 data sheet (order 231164).

It counts down from a programmable count, in one of six modes:

    mode 0  interrupt on terminal count   OUT low, high from the end of the count on; GATE low pauses
    mode 1  retriggerable one-shot        GATE's rise starts it; OUT low while it counts
    mode 2  rate generator                OUT low in the last clock of every N; GATE low pauses, its rise reloads
    mode 3  square wave                   counts by two; OUT high (N+1)/2 clocks, low N/2 clocks; GATE as in mode 2
    mode 4  software-triggered strobe     OUT low for one clock at the end of the count; GATE low pauses
    mode 5  hardware-triggered strobe     the same, started by GATE's rise

A written count waits in the count register until it is loaded into the counting element: at the next clock, in modes 1
and 5 at the clock after GATE rises, in modes 2 and 3, once they run, at the end of the period (mode 3: half period).

Nothing here counts. A counter remembers the clock at which it was loaded; its value and OUT follow from the clocks
since then. Clocks are numbered from virtual time 0: clock n comes at n / 1193182 s, rounded up to whole ns.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.shared import Maybe, Shared, record

LATCH, LOW, HIGH, LOW_HIGH = range(4)  # access field of a control word
HARDWARE_TRIGGERED = (1, 5)  # modes that GATE's rise starts and its fall does not stop
PERIODIC = (2, 3)  # modes that reload themselves
STROBE = (4, 5)  # modes with one clock of low OUT


@record
class CounterState(Shared):
    """The state of a counter that the native plane reads, and in part changes (:mod:`emu.cpu.pit`)."""

    now: int
    mode: int
    access: int
    bcd: int
    register: int  # count register, as written
    initial: int  # the count N that was loaded last, 1 to 65536
    start_clock: int  # clock of that load, moved on by pauses; NONE: not loaded since the control word
    load_clock: int  # clock of the next load, or NONE
    pause_clock: int  # clock from which GATE holds the count, or NONE
    high_next: int  # the next read is the second of two
    latched_count: int  # or NONE
    latched_status: int  # or NONE


class Counter(CounterState):
    """One counter. All of it is as of clock number ``now``; ``advance`` moves that on."""

    STATE: ClassVar[tuple[str, ...]] = (
        "now", "mode", "access", "bcd", "gate", "register", "null", "armed", "initial", "start", "load_at", "paused_at",
        "low_byte", "high_next", "latched", "status",
    )  # fmt: skip

    start, load_at, paused_at = Maybe("start_clock"), Maybe("load_clock"), Maybe("pause_clock")
    latched, status = Maybe("latched_count"), Maybe("latched_status")

    def __init__(self, gate: bool) -> None:
        self.access = LOW_HIGH
        self.gate = gate
        self.null = True  # the count register waits to be loaded
        self.armed = False  # a count was written since the control word
        self.start = self.load_at = self.paused_at = self.latched = self.status = None
        self.low_byte: int | None = None  # first byte of a two-byte count

    def advance(self, clock: int) -> bool:
        """Go on to clock number ``clock``. True when OUT rose on the way."""
        rose = False
        if self.load_at is not None and self.load_at <= clock:
            load_at = self.load_at
            rose = self._rises(self.now, load_at - 1)
            was_high = self._out(load_at - 1)
            self._load(load_at)
            rose |= self.out and not was_high
        rose |= self._rises(self.now, clock)
        self.now = max(self.now, clock)
        return rose

    def next_event(self) -> int | None:
        """Clock number after ``now`` by which the machine should look again: the next rise of OUT, or a reload that
        changes when it rises."""
        if self.load_at is not None and self.start is not None:
            rise = self._next_rise(self.start, self.initial)
            return self.load_at if rise is None else min(rise, self.load_at)
        if self.load_at is not None:
            return self._next_rise(self.load_at, self._decoded())
        return None if self.start is None else self._next_rise(self.start, self.initial)

    def next_change(self) -> int | None:
        """First clock number after ``now`` at which OUT changes or a count is loaded; None when there is none."""
        changes = [] if self.load_at is None else [self.load_at]
        if self.start is not None and self.paused_at is None:
            clocks, ends = self._clocks(self.now), [self.initial, self.initial + 1]
            if self.mode in PERIODIC:
                clocks %= self.initial
                ends[1] = self.initial - 1 if self.mode == 2 else self._high_clocks()
            changes += [self.now + end - clocks for end in ends if end > clocks]
        return min(changes, default=None)

    @property
    def out(self) -> bool:
        """Level of OUT."""
        return self._out(self.now)

    def count(self) -> int:
        """What the guest reads from the counting element: 16 bits, in BCD mode four digits."""
        if self.start is None:
            return self.register
        clocks = self._clocks(self.now)
        if self.mode == 2:
            value = self.initial - clocks % self.initial
        elif self.mode == 3:
            # Both halves of the wave count the even part of N down by two.
            phase, high = clocks % self.initial, self._high_clocks()
            value = (self.initial & ~1) - 2 * (phase - high if phase >= high else phase)
        else:
            value = self.initial - clocks
        if self.bcd:
            value %= 10000
            return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 << 12
        return value & 0xFFFF

    def control(self, value: int) -> None:
        """A control word for this counter; mode bits 110 and 111 mean 2 and 3."""
        access = value >> 4 & 3
        if access == LATCH:
            self.latch_count()
            return
        mode = value >> 1 & 7
        self.mode = mode if mode < 6 else mode - 4
        self.access = access
        self.bcd = bool(value & 1)
        self.null = True
        self.armed = self.high_next = False
        self.start = self.load_at = self.paused_at = self.low_byte = self.latched = self.status = None

    def latch_count(self) -> None:
        """Hold the count until it was read, from its low byte on; a second latch before that does nothing."""
        if self.latched is None:
            self.latched = self.count()
            self.high_next = False

    def latch_status(self) -> None:
        """Hold the status until it was read: OUT, null count, access, mode, BCD."""
        if self.status is None:
            self.status = self.out << 7 | self.null << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def read(self) -> int:
        """The next byte: a latched status first, then the latched count, then the living one."""
        if self.status is not None:
            status, self.status = self.status, None
            return status
        value = self.count() if self.latched is None else self.latched
        if self.access == LOW_HIGH:
            self.high_next = not self.high_next
            high = not self.high_next
        else:
            high = self.access == HIGH
        if not self.high_next:
            self.latched = None
        return value >> 8 if high else value & 0xFF

    def write(self, value: int) -> None:
        """The next byte of a count."""
        if self.access == LOW_HIGH and self.low_byte is None:
            self.low_byte = value
            if self.mode == 0:
                self.start = self.load_at = None
            return
        self.register = value << 8 if self.access == HIGH else value
        if self.low_byte is not None:
            self.register = value << 8 | self.low_byte
            self.low_byte = None
        self.null = self.armed = True
        if self.mode == 0:
            self.start = None
        if self.mode in PERIODIC and self.start is not None:
            if self.load_at is None and self.paused_at is None:
                self.load_at = self._period_end()
        elif self.mode not in HARDWARE_TRIGGERED:
            self.load_at = self.now + 1

    def set_gate(self, gate: bool) -> None:
        """Drive GATE."""
        if gate == self.gate:
            return
        self.gate = gate
        if self.mode in HARDWARE_TRIGGERED or self.mode in PERIODIC:
            if gate and self.armed:
                self.load_at = self.now + 1
            elif not gate and self.mode in PERIODIC and self.start is not None:
                self.load_at = None
                self.paused_at = self.now if self.paused_at is None else self.paused_at
        elif self.start is not None:
            if not gate:
                self.paused_at = self.now
            elif self.paused_at is not None:
                self.start += self.now - self.paused_at
                self.paused_at = None

    def _clocks(self, clock: int) -> int:
        """Clocks counted since the load, at clock number ``clock``."""
        assert self.start is not None
        return (clock if self.paused_at is None else self.paused_at) - self.start

    def _high_clocks(self) -> int:
        """Mode 3: how long the first half of the wave is."""
        return (self.initial + 1) // 2

    def _out(self, clock: int) -> bool:
        if self.start is None:
            return self.mode != 0
        clocks = self._clocks(clock)
        if self.mode in PERIODIC:
            if self.paused_at is not None:
                return True
            phase = clocks % self.initial
            return phase != self.initial - 1 if self.mode == 2 else phase < self._high_clocks()
        # GATE's fall in the very clock of a strobe stretches it, a freedom that no one can notice in a PC.
        return clocks != self.initial if self.mode in STROBE else clocks >= self.initial

    def _rises(self, after: int, until: int) -> bool:
        """Whether OUT rises at a clock number above ``after`` and up to ``until``, with no load between them."""
        if self.start is None or until <= after:
            return False
        rise = self._next_rise(self.start, self.initial, after)
        return rise is not None and rise <= until

    def _next_rise(self, start: int, initial: int, after: int | None = None) -> int | None:
        """First clock above ``after`` (default ``now``) where OUT rises, loaded with ``initial`` at ``start``."""
        after = self.now if after is None else after
        if not self.gate and self.mode not in HARDWARE_TRIGGERED:
            return None
        if self.mode in PERIODIC:
            return start + (max(after - start, 0) // initial + 1) * initial
        rise = start + initial + (self.mode in STROBE)
        return rise if rise > after else None

    def _period_end(self) -> int:
        """Modes 2 and 3: clock number at which the period, or half of the wave, ends that runs now."""
        phase = self._clocks(self.now) % self.initial
        if self.mode == 3 and phase < self._high_clocks():
            return self.now - phase + self._high_clocks()
        return self.now - phase + self.initial

    def _decoded(self) -> int:
        """The count that the count register means. Zero is the largest; 1 is illegal in modes 2 and 3, taken as 2."""
        value = self.register
        if self.bcd:
            value = value % 16 + (value >> 4) % 16 * 10 + (value >> 8) % 16 * 100 + (value >> 12) * 1000
        if value == 0:
            value = 10000 if self.bcd else 0x10000
        return max(value, 2) if self.mode in PERIODIC else value

    def _load(self, clock: int) -> None:
        """Load the counting element at clock number ``clock``, to which everything has been brought but ``now``."""
        second_half = self.mode == 3 and self.start is not None and not self._out(clock)
        self.initial = self._decoded()
        self.start = clock
        self.load_at = self.paused_at = None
        self.null = False
        self.now = clock
        if not self.gate and self.mode not in HARDWARE_TRIGGERED:
            self.paused_at = clock
        if second_half:
            self.start -= self._high_clocks()
