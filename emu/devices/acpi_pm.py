"""ACPI power management: events, sleep, power-off and the PM timer. Source: ACPI specification 6.5, section 4.8.

Placed as QEMU's PIIX4 has it. Registers by offset, 16 bits but for the timer; they take accesses of 1, 2 and 4 bytes.

    0  PM1_STS  what has happened; a written 1 clears
    2  PM1_EN   which of it raises the SCI
                bit 0 timer's top bit changed   5 global lock released   8 power button   9 sleep button   10 RTC alarm
                15 it has slept and was woken, in PM1_STS alone
    4  PM1_CNT  bit 0 SCI_EN, 1 BM_RLD, 10-12 SLP_TYP, 13 SLP_EN (reads 0: go to sleep now)
    8  PM_TMR   counts at 3.579545 MHz, 24 bits, read-only

The SCI is level-triggered: high while SCI_EN is set and a bit is set in both PM1_STS and PM1_EN. SLP_TYP 0 with SLP_EN
is S5, power-off, and 1 is S3: only memory and the clock keep what they have, until one of the three last events comes
that is enabled in PM1_EN.

The machine is in ACPI mode (SCI_EN set) from reset on, as tables with SMI command port 0 promise. A guest that was
written for QEMU may still use that port, ``SmiCommandPorts``, which sets and clears SCI_EN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine, State
from emu.devices.shared import PM_TIMER, Head

TIMER = 8  # offset of PM_TMR
TIMER_HZ = 3_579_545  # PM timer clocks a second
TIMER_BITS = 24
NS = 1_000_000_000  # ns a second
HALF = 1 << TIMER_BITS - 1  # clocks between two changes of the timer's top bit

TMR, GBL, POWER_BUTTON, SLEEP_BUTTON, RTC = 1 << 0, 1 << 5, 1 << 8, 1 << 9, 1 << 10  # PM1_STS, PM1_EN
WAKE_EVENTS = POWER_BUTTON | SLEEP_BUTTON | RTC
WAK_STS = 1 << 15  # PM1_STS
EVENTS = TMR | GBL | POWER_BUTTON | SLEEP_BUTTON | RTC
SCI_EN = 1 << 0  # PM1_CNT
BM_RLD = 1 << 1  # bus masters wake the CPU from C3, which is not there
SLP_TYP = 7 << 10
SLP_EN = 1 << 13
SLP_TYP_S3 = 1
SLP_TYP_S5 = 0  # as on QEMU; the DSDT's \\_S5 says so, too

ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0  # SMI commands, as on QEMU


class AcpiPm(Device, Head):
    """The block of PM1a and timer registers, 12 ports.

    ``power_off`` is called when the guest goes to S5, ``suspend`` when it goes to S3, ``wake`` when an event ends that.
    """

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = ("status", "enable", "control", "half", "asleep")

    def __init__(
        self, sci: IrqLine, power_off: Callable[[], None], clock: Clock,
        suspend: Callable[[], None], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.kind = PM_TIMER
        self._sci = sci
        self._power_off, self._suspend, self._wake = power_off, suspend, wake
        self._clock = clock
        self.status = 0  # PM1_STS but for what the timer did since it was looked at
        self.enable = 0  # PM1_EN
        self.control = SCI_EN  # PM1_CNT
        self.asleep = False  # in S3
        self.half = 0  # changes of the timer's top bit that ``status`` knows of

    def press_power_button(self) -> None:
        """Ask the guest to power off."""
        self._raise(POWER_BUTTON)

    def set(self, level: bool) -> None:
        """The real-time clock's interrupt, which can wake a sleeping machine."""
        if level:
            self._raise(RTC)

    def woken(self, status: int) -> None:
        """The machine is as after power-up again; ``status`` is what has happened before that."""
        self.status |= status | WAK_STS

    def set_acpi_mode(self, on: bool) -> None:
        """Set or clear SCI_EN."""
        self.control = self.control & ~SCI_EN | SCI_EN * on
        self._update()

    def machine_reset(self, power_up: State) -> None:
        """The timer, which nothing stops, counts on."""
        super().machine_reset(power_up | {"half": self._clock() * TIMER_HZ // (NS * HALF)})
        self._update()

    def deadline(self) -> int | None:
        if not self.enable & TMR or self.status & TMR:
            return None
        return -(-(self.half + 1) * HALF * NS // TIMER_HZ)

    def tick(self, now_ns: int) -> None:
        half = now_ns * TIMER_HZ // (NS * HALF)
        if half > self.half:
            self.half = half
            self.status |= TMR
            self._update()

    def read(self, offset: int, size: int) -> int:
        if offset >= TIMER:
            clocks = self._clock() * TIMER_HZ // NS & (1 << TIMER_BITS) - 1
            return clocks >> 8 * (offset - TIMER) & (1 << 8 * size) - 1
        self.tick(self._clock())
        registers = self.status | self.enable << 16 | self.control << 32
        return registers >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Write bytes of the four registers: what an access leaves out keeps its value."""
        self.tick(self._clock())
        touched = (1 << 8 * size) - 1 << 8 * offset
        value <<= 8 * offset
        self.status &= ~value
        self.enable = (self.enable & ~(touched >> 16) | value >> 16) & EVENTS
        control = (self.control & ~(touched >> 32) | value >> 32) & 0xFFFF
        self.control = control & (SCI_EN | BM_RLD | SLP_TYP)
        self._update()
        if control & SLP_EN and control & SLP_TYP == SLP_TYP_S5 << 10:
            self._power_off()
        elif control & SLP_EN and control & SLP_TYP == SLP_TYP_S3 << 10:
            self.asleep = True
            self._suspend()
            self._update()

    def _raise(self, event: int) -> None:
        self.status |= event
        self._update()

    def _update(self) -> None:
        self._sci.set(bool(self.control & SCI_EN and self.status & self.enable))
        if self.asleep and self.status & self.enable & WAKE_EVENTS:
            self.asleep = False
            self._wake()


class SmiCommandPorts(Device):
    """Ports 0xB2 and 0xB3 of a chip set: a command for the firmware, and a byte that it keeps for its caller."""

    STATE: ClassVar[tuple[str, ...]] = ("registers",)

    def __init__(self, pm: AcpiPm) -> None:
        self._pm = pm
        self.registers = [0, 0]

    def read(self, offset: int, size: int) -> int:
        return self.registers[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        self.registers[offset] = value
        if offset == 0 and value in (ACPI_ENABLE, ACPI_DISABLE):
            self._pm.set_acpi_mode(value == ACPI_ENABLE)
