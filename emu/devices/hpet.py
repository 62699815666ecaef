"""The high precision event timers. Source: Intel, IA-PC HPET Specification 1.0a; the numbers are those of QEMU's PC.

A 64-bit main counter counts at 100 MHz, and three timers compare it with their comparators.

    0x000  general capabilities: period in fs, vendor, legacy route, 64 bits, number of timers, revision
    0x010  general configuration: bit 0 the counter runs and interrupts are on, bit 1 legacy replacement
    0x020  interrupt status: a bit for each level-triggered timer, cleared by writing 1
    0x0F0  main counter, written while it stands
    0x100 + 0x20 * n  configuration and capabilities of timer n
    0x108 + 0x20 * n  comparator
    0x110 + 0x20 * n  message route: no timer has one here

Registers are 8 bytes wide and take aligned accesses of 4 or 8 bytes; narrower writes are lost.

A timer matches when the counter reaches its comparator: in 32-bit mode when the lower halves are equal, so that it
matches again each time they come round. A periodic timer then adds its period to the comparator. In periodic mode a
write to the comparator sets the period and, after a configuration with SETVAL, the comparator too. Each write uses up a
SETVAL, as in QEMU; the specification's own sequence for two 32-bit writes sets it again before the second.

A comparator that is written behind the counter would match in 5800 years. As in QEMU its timer matches soon instead,
but 1 us later, not at once: a guest may be about to write the other half.

With legacy replacement, timer 0 drives IRQ 0 and timer 1 IRQ 8 in place of PIT and RTC. Edge-triggered timers pulse
their line; level-triggered ones hold it while their status bit is set.

Nothing here counts. The counter is virtual time plus an offset, and a timer knows the tick of virtual time at which it
matches next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine, State, check_fields
from emu.devices.shared import HPET, Head, record
from emu.units import NEVER

TICK_NS = 10  # period of the counter
FS_PER_NS = 1_000_000
TIMERS = 3
VENDOR = 0x8086
REVISION = 1
LEGACY_CAPABLE = 1 << 15
COUNTER_64_BIT = 1 << 13
CAPABILITIES = TICK_NS * FS_PER_NS << 32 | VENDOR << 16 | LEGACY_CAPABLE | COUNTER_64_BIT | TIMERS - 1 << 8 | REVISION
ROUTES = 0x00FF0104  # interrupts that timers can drive: 2, 8, 16 to 23

CAPABILITY, CONFIGURATION, STATUS, COUNTER = 0x000, 0x010, 0x020, 0x0F0  # offsets
FIRST_TIMER, TIMER_SPAN = 0x100, 0x20  # offset of timer 0, bytes to the next
TIMER_CONFIGURATION, TIMER_COMPARATOR = 0x00, 0x08  # offsets in a timer

ENABLE = 0x1  # general configuration
LEGACY = 0x2
LEGACY_IRQ = (0, 8)  # of timers 0 and 1

LEVEL = 0x0002  # timer configuration: level-triggered, else edge
INTERRUPT = 0x0004  # interrupts enabled
PERIODIC = 0x0008
PERIODIC_CAPABLE = 0x0010
SIZE_64_CAPABLE = 0x0020
SETVAL = 0x0040  # the next write to the comparator sets it in periodic mode too
MODE_32_BIT = 0x0100
ROUTE_SHIFT = 9
ROUTE = 0x1F << ROUTE_SHIFT
WRITABLE = LEVEL | INTERRUPT | PERIODIC | SETVAL | MODE_32_BIT | ROUTE

ALL_64 = (1 << 64) - 1
ALL_32 = (1 << 32) - 1
FOREVER = (1 << 62) // TICK_NS  # ticks; a comparator that is left at all ones is for nobody
SOON = 100  # ticks until a comparator behind the counter matches, and the shortest time between periodic interrupts


class Timer:
    """One comparator. Times are ticks of virtual time, counter values are modulo 2**64."""

    STATE: ClassVar[tuple[str, ...]] = ("configuration", "comparator", "period", "due")

    def __init__(self) -> None:
        self.configuration = PERIODIC_CAPABLE | SIZE_64_CAPABLE
        self.comparator = ALL_64
        self.period = 0
        self.due: int | None = None  # tick of the next match; None while the counter stands, or when there is none

    @property
    def mask(self) -> int:
        """The bits of comparator and period that count."""
        return ALL_32 if self.configuration & MODE_32_BIT else ALL_64

    def arm(self, now: int, counter: int, forgive: bool) -> None:
        """Find the next match, at tick ``now`` with the counter at ``counter``. ``forgive`` lets a comparator that the
        counter has just reached match at once, and a 64-bit one that is behind it soon."""
        if self.mask == ALL_32:
            distance = (self.comparator - counter) & ALL_32
            self.due = now + (distance if distance or forgive else 1 << 32)
        elif self.comparator >= counter:
            self.due = now + self.comparator - counter
        else:
            self.due = now + SOON if forgive else None

    def match(self, now: int, counter: int) -> bool:
        """Go on to tick ``now``, with the counter at ``counter``. True when there was a match on the way, or several.

        A periodic comparator moves on by as many periods as bring it ahead of the counter.
        """
        if self.due is None or self.due > now:
            return False
        if self.configuration & PERIODIC:
            if not self.period:
                self.due = None
                return True
            step = -(-SOON // self.period) * self.period
            behind = now - self.due if self.mask == ALL_32 else max(counter - self.comparator, 0)
            advance = (behind // step + 1) * step
            self.due = now + advance - behind
            self.comparator = (self.comparator + advance) & self.mask
        elif self.mask == ALL_32:
            self.due += ((now - self.due) // (1 << 32) + 1) << 32
        else:
            self.due = None
        return True

    def write_comparator(self, value: int, written: int) -> None:
        """Write those bits of ``value`` that are set in ``written``."""
        periodic = self.configuration & PERIODIC
        if not periodic or self.configuration & SETVAL:
            self.comparator = (self.comparator & ~written | value & written) & self.mask
        if periodic:
            self.period = (self.period & ~written | value & written) & self.mask
        self.configuration &= ~SETVAL


@record
class HpetState(Head):
    """What the native plane needs for the main counter (:mod:`emu.cpu.registers`)."""

    configuration: int
    counter: int  # value at tick ``started``, or as long as the counter stands; 64 bits without sign
    started: int
    quiet: int  # before this tick, time does nothing but count


class Hpet(Device, HpetState):
    """The block of timers.

    Args:
        line: the wire of an interrupt, 0 to 23: the number of an I/O APIC input, except that 0 is the PIT's interrupt.
        clock: virtual time in ns.
        on_legacy: is called with True when the timers take IRQ 0 and 8 over from PIT and RTC, with False when they give
            them back.
        routes: bit mask of the interrupts that timers can drive without legacy replacement.
    """

    max_access: ClassVar[int] = 8
    STATE: ClassVar[tuple[str, ...]] = ("configuration", "status", "counter", "started", "driven")

    def __init__(
        self,
        line: Callable[[int], IrqLine],
        clock: Clock,
        on_legacy: Callable[[bool], None] = lambda legacy: None,
        routes: int = ROUTES,
    ) -> None:
        irqs = [irq for irq in range(32) if irq in LEGACY_IRQ or routes >> irq & 1]
        self._lines = {irq: line(irq) for irq in irqs}
        self._clock = clock
        self._on_legacy = on_legacy
        self._routes = routes
        self.quiet = NEVER
        self.timers = tuple(Timer() for _ in range(TIMERS))
        self.kind = HPET
        self.status = 0
        self.driven: list[int] = []  # interrupts whose line is held high

    @property
    def legacy(self) -> bool:
        """Whether the timers have IRQ 0 and 8."""
        return bool(self.configuration & LEGACY)

    def read(self, offset: int, size: int) -> int:
        self.tick(self._clock())
        return self._register(offset & ~7) >> 8 * (offset & 7) & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        if size < 4 or offset % size:
            return
        self.tick(self._clock())
        register, shift = offset & ~7, 8 * (offset & 7)
        written = ((1 << 8 * size) - 1) << shift
        value = self._register(register) & ~written | value << shift
        if register == CONFIGURATION:
            self._configure(value & (ENABLE | LEGACY))
        elif register == STATUS:
            self.status &= ~(value & written)
        elif register == COUNTER:
            if not self.configuration & ENABLE:
                self.counter = value
        elif register >= FIRST_TIMER and (register - FIRST_TIMER) // TIMER_SPAN < TIMERS:
            timer = self.timers[(register - FIRST_TIMER) // TIMER_SPAN]
            part = register % TIMER_SPAN
            if part == TIMER_CONFIGURATION:
                self._configure_timer(timer, value)
            elif part == TIMER_COMPARATOR and (not shift or timer.mask == ALL_64):
                timer.write_comparator(value, written)
                self._arm(timer, forgive=True)
        self._update_lines()

    def deadline(self) -> int | None:
        """Only timers that interrupt are worth waiting for, and no level-triggered one that does so already."""
        if not self.configuration & ENABLE:
            return None
        earliest = None
        for number, timer in enumerate(self.timers):
            if timer.due is None or not timer.configuration & INTERRUPT or self._irq(number) not in self._lines:
                continue
            if timer.configuration & LEVEL and self.status >> number & 1:
                continue
            earliest = timer.due if earliest is None else min(earliest, timer.due)
        return None if earliest is None or earliest >= FOREVER else earliest * TICK_NS

    def tick(self, now_ns: int) -> None:
        now = now_ns // TICK_NS
        counter = self._counter_at(now)
        for number, timer in enumerate(self.timers):
            if not timer.match(now, counter):
                continue
            if timer.configuration & LEVEL:
                self.status |= 1 << number
            elif timer.configuration & INTERRUPT and (wire := self._lines.get(self._irq(number))) is not None:
                wire.set(True)
                wire.set(self._irq(number) in self.driven)
        self._update_lines()

    def machine_reset(self, power_up: State) -> None:
        super().machine_reset(power_up)
        self._on_legacy(False)
        self._update_lines()

    def state(self) -> State:
        timers = [{name: getattr(timer, name) for name in Timer.STATE} for timer in self.timers]
        return super().state() | {"timers": timers}

    def load_state(self, state: State) -> None:
        check_fields("Hpet", state, (*self.STATE, "timers"))
        super().load_state({name: state[name] for name in self.STATE})
        for timer, values in zip(self.timers, state["timers"], strict=True):
            check_fields("Hpet timer", values, Timer.STATE)
            for name, value in values.items():
                setattr(timer, name, value)
        self._publish()

    def _now(self) -> int:
        return self._clock() // TICK_NS

    def _counter_at(self, now: int) -> int:
        if not self.configuration & ENABLE:
            return self.counter & ALL_64
        return (self.counter + now - self.started) & ALL_64

    def _arm(self, timer: Timer, forgive: bool) -> None:
        if self.configuration & ENABLE:
            timer.arm(self._now(), self._counter_at(self._now()), forgive)
        else:
            timer.due = None

    def _register(self, offset: int) -> int:
        """Value of the 8-byte register at ``offset``; where there is none it is 0."""
        if offset >= FIRST_TIMER:
            number, part = divmod(offset - FIRST_TIMER, TIMER_SPAN)
            if number >= TIMERS:
                return 0
            timer = self.timers[number]
            if part == TIMER_CONFIGURATION:
                return timer.configuration | self._routes << 32
            return timer.comparator if part == TIMER_COMPARATOR else 0
        if offset == COUNTER:
            return self._counter_at(self._now())
        return {CAPABILITY: CAPABILITIES, CONFIGURATION: self.configuration, STATUS: self.status}.get(offset, 0)

    def _configure(self, value: int) -> None:
        changed = self.configuration ^ value
        if changed & ENABLE and not value & ENABLE:
            self.counter = self._counter_at(self._now())
        self.configuration = value
        if changed & ENABLE:
            self.started = self._now()
            for timer in self.timers:
                self._arm(timer, forgive=True)
        if changed & LEGACY:
            self._update_lines()
            self._on_legacy(bool(value & LEGACY))

    def _configure_timer(self, timer: Timer, value: int) -> None:
        wanted = (value & ROUTE) >> ROUTE_SHIFT
        if not self._routes >> wanted & 1:  # what cannot be had does not read back
            value = value & ~ROUTE | timer.configuration & ROUTE
        changed = timer.configuration ^ value
        timer.configuration = timer.configuration & ~WRITABLE | value & WRITABLE
        timer.comparator &= timer.mask
        timer.period &= timer.mask
        if changed & LEVEL:
            self.status &= ~(1 << self.timers.index(timer))
        if changed & MODE_32_BIT:
            self._arm(timer, forgive=False)

    def _irq(self, number: int) -> int:
        """The interrupt that timer ``number`` drives now; it may be none of ``_lines``."""
        if self.configuration & LEGACY and number < len(LEGACY_IRQ):
            return LEGACY_IRQ[number]
        route = (self.timers[number].configuration & ROUTE) >> ROUTE_SHIFT
        return route if self._routes >> route & 1 else -1

    def _update_lines(self) -> None:
        """Hold the lines of level-triggered timers whose status is set, and let go of the others."""
        wanted = set()
        for number, timer in enumerate(self.timers):
            active = self.status >> number & 1 and timer.configuration & INTERRUPT and self.configuration & ENABLE
            if active and self._irq(number) in self._lines:
                wanted.add(self._irq(number))
        for irq in self.driven:
            if irq not in wanted:
                self._lines[irq].set(False)
        self.driven = sorted(wanted)
        for irq in self.driven:
            self._lines[irq].set(True)
        self._publish()

    def _publish(self) -> None:
        """Tell the native plane until when nothing happens; a line that is held is driven again at each access."""
        due = (timer.due for timer in self.timers if timer.due is not None)
        self.quiet = 0 if self.driven else min((*due, NEVER))
