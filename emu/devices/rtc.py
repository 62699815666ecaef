"""The MC146818 real-time clock and its CMOS memory. Source: Motorola MC146818A data sheet; PC cells as in QEMU.

    0x70 write  bits 0 to 6 the cell that 0x71 accesses, bit 7 masks NMI; reads as 0xFF
    0x71        the cell

    cell 0, 2, 4     seconds, minutes, hours          cell 6       day of week, Sunday is 1
    cell 1, 3, 5     the same of the alarm; 11xxxxxx  cell 7, 8, 9 day of month, month, year
                     matches everything               cell 0x32    century
    cell A  UIP DV2 DV1 DV0 RS3 RS2 RS1 RS0           cell C  IRQF PF AF UF 0 0 0 0, cleared by reading it
    cell B  SET PIE AIE UIE SQWE DM 24/12 DSE         cell D  VRT 0 0 0 0 0 0 0
    the rest is memory

The oscillator (32768 Hz) runs a chain of dividers, whose taps give the periodic interrupt, and whose end starts an
update once a second: the time is counted on, compared with the alarm, and UF is set. UIP is set from 244 us before
an update, which takes 1984 us, to its end; until then the old time can be read. DV 11x holds the dividers, and half a
second after they are let go comes an update. SET stops the updates alone.

Nothing here counts. The time is virtual time plus an offset; flags are found from the time that has passed since they
were looked for last. While the clock stands, the cells are what was written. The day of the week follows from the date,
as in QEMU, and daylight saving (DSE) is not known to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar

from emu.devices.device import Clock, Device, IrqLine, State
from emu.errors import BadInput

INDEX, DATA = range(2)  # port offsets
INDEX_NMI = 0x80  # index port: NMI masked
CELLS = 128

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR, A, B, C, D = range(14)
CENTURY = 0x32
PS2_CENTURY = 0x37  # where PS/2 machines have it; the same cell, as in QEMU
TIME_CELLS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

A_UIP = 0x80  # update in progress or near, read only
A_DV = 0x70  # divider control; up to 010 the oscillator's frequency, more holds the chain
A_RS = 0x0F  # rate of the periodic interrupt
A_32768_HZ = 0x20
B_SET = 0x80  # no updates
B_PIE, B_AIE, B_UIE = 0x40, 0x20, 0x10  # enables of the flags in C, at the same bits
B_SQWE = 0x08  # square wave output
B_BINARY = 0x04  # DM: binary, else BCD
B_24H = 0x02  # else 12 hours, with bit 7 of the hours for p.m.
C_IRQF = 0x80  # a flag is set and enabled: the level of the interrupt line
C_PF, C_AF, C_UF = 0x40, 0x20, 0x10  # periodic, alarm, update ended
D_VRT = 0x80  # the battery is good
PM = 0x80  # hours in 12-hour mode
ANY = 0xC0  # alarm: both bits set, every value matches

SHUTDOWN = 0x0F  # why the processor is reset
S3_RESUME = 0xFE  # the same, for a BIOS: the machine has been asleep
RESUME_CODES = (0x05, 0x09, 0x0A)  # go on at 40:67, after an EOI; behind a move of a block of memory; at 40:67
FLOPPY_TYPES = 0x10  # high half drive A, low half drive B; 4 is 1.44 MB
DISK_TYPES = 0x12  # high half first disk, low half second; 0xF: see 0x19 and 0x1A
EQUIPMENT = 0x14  # bit 0 floppy drives, 7:6 their number - 1; bit 1 FPU, bit 2 pointing device, 5:4 0 for VGA
BASE_MEMORY = 0x15  # KiB below 640 KiB, 2 cells, as all of these the low byte first
EXTENDED_MEMORY = (0x17, 0x30)  # KiB above 1 MiB, 2 cells, saturated
MEMORY_ABOVE_16M = 0x34  # units of 64 KiB from 16 MiB to 4 GiB, 2 cells
MEMORY_ABOVE_4G = 0x5B  # units of 64 KiB, 3 cells
DISK_TYPE = 0x19  # one cell a disk; 47: its geometry is given
DISK_GEOMETRY = 0x1B  # nine cells a disk
BOOT_ORDER_3 = 0x38  # high half: third boot device; bit 0: do not look for the signature of a floppy disk
BOOT_ORDER = 0x3D  # low half first, high half second boot device
DISK_TRANSLATION = 0x39  # two bits a disk
CPUS_BUT_ONE = 0x5F  # processors - 1, as QEMU
BOOT_DEVICES = {"a": 1, "c": 2, "d": 3, "n": 4}  # floppy, hard disk, CD-ROM, network

NS = 1_000_000_000  # ns a second
OSCILLATOR_HZ = 32768
UIP_NS = 244_141 + 1_984_000  # ns before the end of an update at which UIP is set
FIRST_UPDATE_NS = NS // 2  # from the release of the dividers to the update
DAY_S = 86400
YEARS = 10000  # two cells of two digits
DAYS_400_YEARS = 146097
RESET_DATE = datetime(2000, 1, 1)


def seconds_of(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int:
    """Seconds from 1 March of year 0 to a time in the Gregorian calendar. Every field may be out of its range, as a
    guest may write it: February 30 is March 1 or 2, month 0 is December of the year before."""
    year, month = year + (month - 3) // 12, (month - 3) % 12  # years that begin in March end with their leap day
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day - 1
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def date_of(days: int) -> tuple[int, int, int]:
    """Year, month and day: what ``seconds_of`` turned into ``days`` days."""
    era, rest = divmod(days, DAYS_400_YEARS)
    # The day before the end of a 400-, 4- or 1-year cycle would count as a year too many without the leap days.
    year = (rest - rest // 1460 + rest // 36524 - rest // 146096) // 365
    rest -= 365 * year + year // 4 - year // 100
    month = (5 * rest + 2) // 153
    day = rest - (153 * month + 2) // 5 + 1
    year += 400 * era
    return (year, month + 3, day) if month < 10 else (year + 1, month - 9, day)


class Rtc(Device):
    """The chip. It shows ``start`` at virtual time 0; ``line`` is the level of IRQF.

    Attributes:
        nmi_masked: bit 7 of the index port.
    """

    STATE: ClassVar[tuple[str, ...]] = ("cells", "index", "nmi_masked", "offset_ns", "looked_ns")

    def __init__(self, line: IrqLine, clock: Clock, start: datetime = RESET_DATE) -> None:
        self._line = line
        self._clock = clock
        self.index = 0
        self.nmi_masked = False
        self.cells = [0] * CELLS
        self.cells[A], self.cells[B], self.cells[D] = A_32768_HZ | 6, B_24H, D_VRT
        since = seconds_of(start.year, start.month, start.day, start.hour, start.minute, start.second)
        self.offset_ns = since * NS + start.microsecond * 1000  # time of the chip minus virtual time
        self.looked_ns = 0  # virtual time up to which the flags are known
        self._store_time()

    # ---- what a platform fills in, as QEMU's PC does ----

    def set_cell(self, index: int, value: int, size: int = 1) -> None:
        """Store ``value`` in ``size`` cells from ``index`` on, low byte first; BadInput unless they are memory."""
        if index <= D or index + size > CELLS:
            raise BadInput(f"CMOS cell {index:#x}", f"{size} cells from it are not within 0xe to {CELLS - 1:#x}")
        self.cells[index : index + size] = value.to_bytes(size, "little")

    def set_memory(self, below_4g: int, above_4g: int = 0) -> None:
        """Tell how much memory there is, in bytes: from 0 to the hole below 4 GiB, and from 4 GiB on."""
        self.set_cell(BASE_MEMORY, min(below_4g >> 10, 640), 2)
        for index in EXTENDED_MEMORY:
            self.set_cell(index, min(max((below_4g >> 10) - 1024, 0), 0xFFFF), 2)
        self.set_cell(MEMORY_ABOVE_16M, min(max((below_4g >> 16) - 256, 0), 0xFFFF), 2)
        self.set_cell(MEMORY_ABOVE_4G, min(above_4g >> 16, 0xFFFFFF), 3)

    def set_boot_order(self, devices: str, check_floppy: bool = True) -> None:
        """Tell what to boot from: up to three letters, a floppy, c hard disk, d CD-ROM, n network.

        Raises BadInput for others.
        """
        if len(devices) > 3 or not set(devices) <= set(BOOT_DEVICES):
            raise BadInput(f"boot order {devices!r}", f"not up to three of {', '.join(BOOT_DEVICES)}")
        first, second, third = ([BOOT_DEVICES[letter] for letter in devices] + [0] * 3)[:3]
        self.set_cell(BOOT_ORDER, second << 4 | first)
        self.set_cell(BOOT_ORDER_3, third << 4 | (not check_floppy))

    def set_floppies(self, drives: Sequence[int]) -> None:
        """Tell the types of floppy drives A and B, 0 for none."""
        first, second, *_ = (*drives, 0, 0)
        self.set_cell(FLOPPY_TYPES, first << 4 | second)

    def set_disk(self, number: int, cylinders: int, heads: int, sectors: int, translation: int = 0) -> None:
        """Describe hard disk 0 or 1 by its own geometry. ``translation`` is what the BIOS does with it: 0 nothing, 1
        LBA, 2 LARGE, 3 revised ECHS. Raises BadInput for another disk."""
        if number not in (0, 1):
            raise BadInput(f"disk {number}", "the CMOS describes disks 0 and 1")
        self.set_cell(DISK_TYPES, self.cells[DISK_TYPES] | 0xF0 >> 4 * number)
        self.set_cell(DISK_TYPE + number, 47)
        size = min(cylinders, 0xFFFF).to_bytes(2, "little")
        geometry = size + bytes((heads & 0xFF, 0xFF, 0xFF, 0xC0 | (heads > 8) << 3)) + size + bytes((sectors & 0xFF,))
        self.set_cell(DISK_GEOMETRY + 9 * number, int.from_bytes(geometry, "little"), 9)
        others = self.cells[DISK_TRANSLATION] & ~(3 << 2 * number)
        self.set_cell(DISK_TRANSLATION, others | (translation & 3) << 2 * number)

    # ---- what the guest and the machine see ----

    @property
    def resumes(self) -> bool:
        """Whether a program is to go on behind a reset of the processor: what cell 0x0F says to a BIOS."""
        return self.cells[SHUTDOWN] in RESUME_CODES

    def read(self, offset: int, size: int) -> int:
        if offset == INDEX:
            return 0xFF
        self._look()
        index = CENTURY if self.index == PS2_CENTURY else self.index
        if index == A:
            return self.cells[A] | A_UIP * self._update_in_progress()
        if index == C:
            flags, self.cells[C] = self.cells[C], 0
            self._line.set(False)
            return flags
        if index in TIME_CELLS:
            self._store_time()
        return self.cells[index]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == INDEX:
            self.index = value & ~INDEX_NMI
            self.nmi_masked = bool(value & INDEX_NMI)
            return
        self._look()
        index = CENTURY if self.index == PS2_CENTURY else self.index
        if index == A:
            self._write_control(value & ~A_UIP, self.cells[B])
        elif index == B:
            self._write_control(self.cells[A], value & ~B_UIE if value & B_SET else value)
        elif index in TIME_CELLS:
            self._store_time()
            self.cells[index] = value
            if self._running():
                self._take_time(self._phase_ns())
        elif index not in (C, D):
            self.cells[index] = value
        self._update_line()

    def tell_of_sleep(self) -> None:
        """Tell a BIOS that the machine has been asleep, as QEMU does."""
        self.set_cell(SHUTDOWN, S3_RESUME)

    def machine_reset(self, power_up: State) -> None:
        """The battery keeps time and memory; a reset switches the interrupts off, and the square wave."""
        self._look()
        self.index, self.nmi_masked = 0, False
        self.cells[B] &= ~(B_PIE | B_AIE | B_UIE | B_SQWE)
        self.cells[C] = 0
        self._update_line()

    def deadline(self) -> int | None:
        """Only an interrupt that is enabled and not yet requested is worth waiting for."""
        enabled = self.cells[B] & (B_PIE | B_UIE | B_AIE)
        if not enabled or self.cells[C] & C_IRQF:
            return None
        now = self.looked_ns + self.offset_ns
        times = []
        if enabled & B_PIE and (cycles := self._period_cycles()):
            next_cycle = (now * OSCILLATOR_HZ // NS // cycles + 1) * cycles
            times.append(-(-next_cycle * NS // OSCILLATOR_HZ))
        if self._running():
            second = now // NS + 1
            if enabled & B_UIE:
                times.append(second * NS)
            if enabled & B_AIE and (alarm := self._next_alarm(second)) is not None:
                times.append(alarm * NS)
        return min(times) - self.offset_ns if times else None

    def tick(self, now_ns: int) -> None:
        self._look(now_ns)

    # ---- time ----

    def _held(self) -> bool:
        """The dividers do not run."""
        return self.cells[A] & A_DV > A_32768_HZ

    def _running(self) -> bool:
        """The time is counted."""
        return not self.cells[B] & B_SET and not self._held()

    def _phase_ns(self) -> int:
        """Time since the last update, as of the last look."""
        return (self.looked_ns + self.offset_ns) % NS

    def _update_in_progress(self) -> bool:
        return self._running() and self._phase_ns() >= NS - UIP_NS

    def _write_control(self, a: int, b: int) -> None:
        """Write A and B. A clock that stops shows the time from then on; one that starts goes on from what it shows."""
        self._store_time()
        was_held, was_running = self._held(), self._running()
        self.cells[A], self.cells[B] = a, b
        if self._held():
            return
        if was_held:
            self._take_time(NS - FIRST_UPDATE_NS)
        elif self._running() and not was_running:
            self._take_time(self._phase_ns())

    def _store_time(self) -> None:
        """Put the time as of the last look into its cells."""
        if not self._running():
            return
        days, second = divmod((self.looked_ns + self.offset_ns) // NS, DAY_S)
        year, month, day = date_of(days)
        hour = second // 3600
        if not self.cells[B] & B_24H:
            pm, hour = hour >= 12, (hour + 11) % 12 + 1
            self.cells[HOURS] = self._encode(hour) | PM * pm
        else:
            self.cells[HOURS] = self._encode(hour)
        self.cells[MINUTES] = self._encode(second // 60 % 60)
        self.cells[SECONDS] = self._encode(second % 60)
        self.cells[WEEKDAY] = self._encode((days + 3) % 7 + 1)  # 1 March of year 0 was a Wednesday
        self.cells[DAY], self.cells[MONTH] = self._encode(day), self._encode(month)
        self.cells[YEAR], self.cells[CENTURY] = self._encode(year % 100), self._encode(year % YEARS // 100)

    def _take_time(self, phase_ns: int) -> None:
        """Count on from the time in the cells, ``phase_ns`` after its update."""
        year = self._decode(self.cells[CENTURY]) * 100 + self._decode(self.cells[YEAR])
        month, day = self._decode(self.cells[MONTH]), self._decode(self.cells[DAY])
        hour, minute = self._decode_hour(self.cells[HOURS]), self._decode(self.cells[MINUTES])
        since = seconds_of(year, month, day, hour, minute, self._decode(self.cells[SECONDS]))
        self.offset_ns = since * NS + phase_ns - self.looked_ns

    def _encode(self, value: int) -> int:
        return value if self.cells[B] & B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, cell: int) -> int:
        return cell if self.cells[B] & B_BINARY else (cell >> 4) * 10 + (cell & 0x0F)

    def _decode_hour(self, cell: int) -> int:
        if self.cells[B] & B_24H:
            return self._decode(cell)
        return self._decode(cell & ~PM) % 12 + 12 * bool(cell & PM)

    # ---- interrupts ----

    def _period_cycles(self) -> int:
        """Oscillator cycles between two periodic interrupts; 0 when there are none. Rates 1 and 2 are those of 8, 9."""
        rate = self.cells[A] & A_RS
        if rate == 0 or self._held():
            return 0
        return 1 << (rate + 6 if rate <= 2 else rate - 1)

    def _next_alarm(self, second: int) -> int | None:
        """First time at or after ``second`` that the alarm matches; None when it never does."""
        hour_cell, minute_cell, second_cell = (self.cells[n] for n in (HOURS_ALARM, MINUTES_ALARM, SECONDS_ALARM))
        at_hour = None if hour_cell & ANY == ANY else self._decode_hour(hour_cell)
        at_minute, at_second = (None if n & ANY == ANY else self._decode(n) for n in (minute_cell, second_cell))
        if (at_hour or 0) > 23 or (at_minute or 0) > 59 or (at_second or 0) > 59:
            return None
        if at_second is not None:
            second += (at_second - second) % 60
        if at_minute is not None and second // 60 % 60 != at_minute:
            minute = second // 60 + (at_minute - second // 60) % 60
            second = minute * 60 + (at_second or 0)
        if at_hour is not None and second // 3600 % 24 != at_hour:
            hour = second // 3600 + (at_hour - second // 3600) % 24
            second = hour * 3600 + (at_minute or 0) * 60 + (at_second or 0)
        return second

    def _look(self, now_ns: int | None = None) -> None:
        """Find the flags that were set since the last look."""
        before = self.looked_ns + self.offset_ns
        self.looked_ns = max(self.looked_ns, self._clock() if now_ns is None else now_ns)
        now = self.looked_ns + self.offset_ns
        cycles = self._period_cycles()
        if cycles and before * OSCILLATOR_HZ // NS // cycles != now * OSCILLATOR_HZ // NS // cycles:
            self.cells[C] |= C_PF
        if self._running() and before // NS != now // NS:
            self.cells[C] |= C_UF
            alarm = self._next_alarm(before // NS + 1)
            if alarm is not None and alarm <= now // NS:
                self.cells[C] |= C_AF
        self._update_line()

    def _update_line(self) -> None:
        flags = self.cells[C] & ~C_IRQF
        requested = bool(flags & self.cells[B])
        self.cells[C] = flags | C_IRQF * requested
        self._line.set(requested)
