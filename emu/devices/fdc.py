"""The floppy disk controller of a PC/AT. Source: Intel 82077AA data sheet (290166), in AT mode.

Registers by offset from 0x3F0:
    2  DOR: drive, 0x04 not reset, 0x08 interrupt and DMA gates, motors
    3  TDR: tape drive, two bits            5  FIFO: commands, data, results
    4  read MSR; write DSR: data rate, 0x80 reset
and at 0x3F7: read DIR: 0x80 disk changed; write CCR: data rate.
A command is written to the FIFO byte by byte; its execution phase moves data by DMA, or through the FIFO where SPECIFY
switched DMA off; then its results are read. Commands that move heads have no results: they interrupt, and SENSE
INTERRUPT STATUS tells what came of it.

A sector takes SECTOR_NS, a seek SEEK_NS; the mechanics of real drives are fifty times slower. A sector
that DMA does not take within a revolution is lost (overrun). An empty drive is like an unformatted disk, where a real
controller waits for ever for an index hole. SENSE DRIVE STATUS and commands alike take the drive's motor to be on. The
SCAN commands are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

from emu.devices.device import Clock, Device, IrqLine, State
from emu.devices.disk import SECTOR
from emu.devices.dma import FROM_MEMORY, TO_MEMORY, DmaChannel
from emu.devices.dma import VERIFY as DMA_VERIFY
from emu.devices.fdc_heads import ABNORMAL, Heads, NotThere
from emu.devices.fdc_sectors import (
    END_OF_CYLINDER,
    FORMAT,
    MFM,
    MT,
    OVERRUN,
    READ,
    READ_DELETED,
    READ_TRACK,
    READING,
    SIZE_512,
    SKIP,
    VERIFY,
    WRITE,
    WRITE_DELETED,
    Sectors,
    format_track,
)  # fmt: skip
from emu.devices.floppy import FloppyDisk

DOR, TDR, MSR, FIFO = 2, 3, 4, 5  # offsets
DSR = MSR  # the same, written

DOR_RUN, DOR_GATE = 0x04, 0x08
MSR_REQUEST, MSR_TO_HOST, MSR_NO_DMA, MSR_BUSY = 0x80, 0x40, 0x20, 0x10
DSR_RESET = 0x80
CHANGED = 0x80

INVALID = 0x80  # ST0, interrupt code
TRACK_0, DRIVE_READY = 0x10, 0x28  # ST3
VERSION = 0x90  # an enhanced controller
NO_DMA = 0x01  # SPECIFY, last byte
IMPLIED_SEEK, NO_FIFO, NO_POLLING = 0x40, 0x20, 0x10  # CONFIGURE
LOCK = 0x80
READ_ID = 0x0A
INWARD = 0x40  # RELATIVE SEEK: to higher cylinders

SECTOR_NS = 500_000
RESET_NS = 100_000  # until the drives have been polled
REVOLUTION_NS = 200_000_000


class Fdc(Device):
    """The controller with up to four drives.

    Args:
        line: INT.
        dma: DRQ and DACK.
        clock: virtual time in ns.
        disks: in each drive; None where there is no drive.

    Attributes:
        change_port: DIR and CCR, which have an address of their own.
        rate: number of the data rate.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "dor", "tape", "rate", "irq", "specified", "last", "locked", "config", "precompensation",
        "perpendicular", "received", "results", "due", "give_up", "data", "position",
    )  # fmt: skip

    def __init__(self, line: IrqLine, dma: DmaChannel, clock: Clock, disks: Sequence[FloppyDisk | None]) -> None:
        self._line = line
        self._dma = dma
        self._clock = clock
        self.heads = Heads(disks)
        self.dor = 0
        self.tape = 0
        self.rate = 2  # 250 kbit/s
        self.specified = [0, 0]
        self.last = 0  # sectors of a track, of the last command
        self.locked = 0
        self.change_port = _ChangePort(self)
        self._reset()

    def _reset(self) -> None:
        """Stop whatever goes on."""
        if not self.locked:
            self.config = NO_FIFO
            self.precompensation = 0
            self.perpendicular = 0
        self.received: list[int] = []  # bytes of a command; all of them while it is executed
        self.results: list[int] = []
        self.due = -1  # when the command, or the polling after a reset, goes on; -1: never by itself
        self.give_up = -1  # when the sector is lost
        self.data: list[int] = []  # that move through the FIFO now
        self.position = 0
        self.sectors: Sectors | None = None  # of the command that is executed
        self.heads.reset()
        self._dma.request(False)
        self._set_irq(False)

    # --- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        if offset == DOR:
            return self.dor
        if offset == TDR:
            return self.tape
        if offset == MSR:
            return self._status()
        if offset == FIFO:
            return self._read_fifo()
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == DOR:
            rises = value & ~self.dor & DOR_RUN
            self.dor = value
            if not value & DOR_RUN:
                self._reset()
            elif rises:
                self.due = self._clock() + RESET_NS
            self._set_irq(self.irq)
        elif offset == TDR:
            self.tape = value & 3
        elif offset == DSR:
            self.rate = value & 3
            if value & DSR_RESET:
                self._reset()
                self.due = self._clock() + RESET_NS
        elif offset == FIFO:
            self._write_fifo(value)

    def _status(self) -> int:
        if not self.dor & DOR_RUN:
            return 0
        if self.results:
            return MSR_REQUEST | MSR_TO_HOST | MSR_BUSY | self.heads.seeking
        if not self._executing:
            return MSR_REQUEST | (MSR_BUSY if self.received else 0) | self.heads.seeking
        status = MSR_BUSY | self.heads.seeking
        if self.specified[1] & NO_DMA:
            status |= MSR_NO_DMA
        if self.data:
            status |= MSR_REQUEST | (MSR_TO_HOST if self._to_host else 0)
        return status

    @property
    def _executing(self) -> bool:
        return bool(self.received) and len(self.received) > COMMANDS[self.received[0]].parameters

    @property
    def _to_host(self) -> bool:
        return self.received[0] & 0x1F in READING

    def _read_fifo(self) -> int:
        if self.results:
            self._set_irq(False)
            return self.results.pop(0)
        value = 0
        if self.data and self._to_host:
            value = self.data[self.position]
            self._byte_moved()
        return value

    def _write_fifo(self, value: int) -> None:
        if not self.dor & DOR_RUN or self.results:
            return
        if self._executing:
            if self.data and not self._to_host:
                self.data[self.position] = value
                self._byte_moved()
            return
        self.received.append(value)
        command = COMMANDS.get(self.received[0])
        if command is None:
            self._finish([INVALID])
        elif len(self.received) > command.parameters:
            command.perform(self, self.received)

    def _finish(self, results: list[int]) -> None:
        """The command is done."""
        self.received = []
        self.results = results
        self.data, self.sectors = [], None
        self.due = -1
        self._dma.request(False)

    def _set_irq(self, level: bool) -> None:
        self.irq = level
        self._line.set(level and bool(self.dor & DOR_GATE))

    # --- time ---------------------------------------------------------------------------------------------------------

    def deadline(self) -> int | None:
        if self.due < 0 and max(self.heads.due) < 0:
            return None
        return min(time for time in (self.due, *self.heads.due) if time >= 0)

    def tick(self, now_ns: int) -> None:
        if self.heads.arrive(now_ns):
            self._set_irq(True)
        if not 0 <= self.due <= now_ns:
            return
        self.due = -1
        if not self._executing:  # a reset is over, and the drives are polled
            if not self.config & NO_POLLING:
                self.heads.poll()
                self._set_irq(True)
            return
        try:
            self._go_on(now_ns)
        except NotThere as failure:
            self._end(failure.st1, failure.st2)

    # --- the execution phase ------------------------------------------------------------------------------------------

    def _move(self, given: list[int]) -> None:
        """A command that moves sectors begins."""
        self.sectors = Sectors(given)
        self.last = given[6]
        if self.config & IMPLIED_SEEK:
            self.heads.step_to(self.sectors.drive, given[2])
        self._wait_for_sector()

    def _wait_for_sector(self) -> None:
        self.due = self._clock() + SECTOR_NS
        self.give_up = self.due + REVOLUTION_NS

    def _go_on(self, now_ns: int) -> None:
        """The next sector has come to the head. Raises NotThere."""
        kind = self.received[0] & 0x1F
        size = self.received[3] * 4 if kind == FORMAT else SECTOR
        if kind == READ_ID:
            self._identify()
        elif kind == VERIFY:
            assert self.sectors is not None
            self.sectors.read(self.heads, self.rate)
            self._sector_moved(bytes(SECTOR), False)
        elif self.specified[1] & NO_DMA:
            self._by_fifo(size)
        else:
            self._by_dma(now_ns, size)

    def _by_fifo(self, size: int) -> None:
        """Have ``size`` bytes moved through the FIFO."""
        if self._to_host:
            assert self.sectors is not None
            self.data = list(self.sectors.read(self.heads, self.rate))
        else:
            if self.sectors is not None:
                self.sectors.find(self.heads, self.rate)
            self.data = [0] * size
        self.position = 0
        if not self.data:  # no sectors to be formatted
            self._sector_moved(b"", False)
        self._set_irq(True)

    def _byte_moved(self) -> None:
        self._set_irq(False)
        self.position += 1
        if self.position < len(self.data):
            self._set_irq(True)
            return
        data, self.data = bytes(self.data), []
        try:
            self._sector_moved(data, False)
        except NotThere as failure:
            self._end(failure.st1, failure.st2)

    def _by_dma(self, now_ns: int, size: int) -> None:
        """Have as many of ``size`` bytes moved by DMA as it counts."""
        dma = self._dma
        dma.request(True)
        wanted = TO_MEMORY if self._to_host else FROM_MEMORY
        if not self.dor & DOR_GATE or dma.direction not in (wanted, DMA_VERIFY):
            if now_ns >= self.give_up:
                raise NotThere(OVERRUN)
            self.due = now_ns + SECTOR_NS
            return
        size = min(size, dma.left)
        if self._to_host:
            assert self.sectors is not None
            data = self.sectors.read(self.heads, self.rate)[:size]
            ended = dma.put(data)
        else:
            if self.sectors is not None:
                self.sectors.find(self.heads, self.rate)
            data, ended = dma.get(size)
        dma.request(False)
        self._sector_moved(data, ended)

    def _sector_moved(self, data: bytes, ended: bool) -> None:
        """A sector's data were moved, all or as far as the terminal count (``ended``). Raises NotThere."""
        sectors = self.sectors
        if sectors is None:
            format_track(self.heads, self.rate, self.received, data)
            self._end()
            return
        if sectors.kind in (WRITE, WRITE_DELETED):
            sectors.write(self.heads, self.rate, data)
        more = sectors.advance()
        if ended or sectors.left == 0:
            self._end()
        elif more:
            self._wait_for_sector()
        else:
            self._end(0 if sectors.kind in (READ_TRACK, VERIFY) else END_OF_CYLINDER)

    def _identify(self) -> None:
        """READ ID: the first sector that comes by."""
        drive, head = self.received[1] & 3, self.received[1] >> 2 & 1
        self.heads.readable(drive, head, self.rate, bool(self.received[0] & MFM))
        self._tell([self.heads.cylinder[drive], head, 1, SIZE_512], 0, 0)

    def _end(self, st1: int = 0, st2: int = 0) -> None:
        """The execution phase is over, with these errors."""
        sectors = self.sectors
        place = [0, 0, 0, 0] if sectors is None else [*sectors.place[:3], sectors.given[5]]
        self._tell(place, st1, st2)

    def _tell(self, place: list[int], st1: int, st2: int) -> None:
        head = self.received[1] & 4 if self.sectors is None else self.sectors.place[3] << 2
        st0 = self.received[1] & 3 | head | (ABNORMAL if st1 | st2 else 0)
        self._finish([st0, st1, st2, *place])
        self._set_irq(True)

    # --- commands that move heads -------------------------------------------------------------------------------------

    def _seek_to(self, drive: int, cylinder: int) -> None:
        self.received = []
        self.heads.seek(drive, cylinder, self._clock())

    def _seek(self, given: list[int]) -> None:
        self._seek_to(given[1] & 3, given[2])

    def _recalibrate(self, given: list[int]) -> None:
        self._seek_to(given[1] & 3, 0)

    def _relative_seek(self, given: list[int]) -> None:
        drive = given[1] & 3
        at = self.heads.cylinder[drive]
        self._seek_to(drive, at + given[2] if given[0] & INWARD else at - given[2])

    def _sense_interrupt(self, given: list[int]) -> None:
        told = self.heads.sense()
        self._finish([INVALID] if told is None else told)
        if told is not None:
            self._set_irq(False)
            self._set_irq(self.heads.more_to_tell)

    # --- other commands -----------------------------------------------------------------------------------------------

    def _sense_drive(self, given: list[int]) -> None:
        drive = given[1] & 3
        track_0 = TRACK_0 if self.heads.disks[drive] is not None and not self.heads.cylinder[drive] else 0
        self._finish([given[1] & 7 | DRIVE_READY | track_0])

    def _specify(self, given: list[int]) -> None:
        self.specified = given[1:]
        self._finish([])

    def _configure(self, given: list[int]) -> None:
        self.config, self.precompensation = given[2] & 0x7F, given[3]
        self._finish([])

    def _set_perpendicular(self, given: list[int]) -> None:
        self.perpendicular = given[1] & 0x3F
        self._finish([])

    def _lock(self, given: list[int]) -> None:
        self.locked = given[0] & LOCK
        self._finish([self.locked >> 3])

    def _version(self, given: list[int]) -> None:
        self._finish([VERSION])

    def _dump_registers(self, given: list[int]) -> None:
        perpendicular = self.locked | self.perpendicular & 0x3F
        self._finish(
            [*self.heads.cylinder, *self.specified, self.last, perpendicular, self.config, self.precompensation]
        )

    def _format(self, given: list[int]) -> None:
        self.last = given[3]
        self._wait_for_sector()

    def _read_id(self, given: list[int]) -> None:
        self._wait_for_sector()

    # --- state --------------------------------------------------------------------------------------------------------

    def machine_reset(self, power_up: State) -> None:
        super().machine_reset(power_up)
        self._set_irq(False)

    def state(self) -> State:
        sectors = self.sectors
        moved = None if sectors is None else {"place": list(sectors.place), "left": sectors.left}
        return super().state() | {"heads": self.heads.state(), "sectors": moved}

    def load_state(self, state: State) -> None:
        super().load_state({name: value for name, value in state.items() if name not in ("heads", "sectors")})
        self.heads.load_state(state["heads"])
        self.sectors = None
        if state["sectors"] is not None:
            self.sectors = Sectors(self.received)
            self.sectors.place, self.sectors.left = list(state["sectors"]["place"]), state["sectors"]["left"]


class _ChangePort(Device):
    """DIR and CCR."""

    def __init__(self, fdc: Fdc) -> None:
        self._fdc = fdc

    def read(self, offset: int, size: int) -> int:
        drive = self._fdc.dor & 3
        return CHANGED if self._fdc.heads.changed[drive] and self._fdc.dor >> 4 + drive & 1 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._fdc.rate = value & 3


class Command(NamedTuple):
    """Its parameters in bytes, and what it does with itself and them."""

    parameters: int
    perform: Callable[[Fdc, list[int]], None]


def _all_commands() -> dict[int, Command]:
    """By the first byte; others are invalid."""
    move = Command(8, Fdc._move)
    table = {
        READ: (MT | MFM | SKIP, move), READ_DELETED: (MT | MFM | SKIP, move), READ_TRACK: (MFM | SKIP, move),
        WRITE: (MT | MFM, move), WRITE_DELETED: (MT | MFM, move), VERIFY: (MT | MFM | SKIP, move),
        FORMAT: (MFM, Command(5, Fdc._format)), READ_ID: (MFM, Command(1, Fdc._read_id)),
        0x03: (0, Command(2, Fdc._specify)), 0x04: (0, Command(1, Fdc._sense_drive)),
        0x07: (0, Command(1, Fdc._recalibrate)), 0x08: (0, Command(0, Fdc._sense_interrupt)),
        0x0E: (0, Command(0, Fdc._dump_registers)), 0x0F: (0, Command(2, Fdc._seek)),
        0x10: (0, Command(0, Fdc._version)), 0x12: (0, Command(1, Fdc._set_perpendicular)),
        0x13: (0, Command(3, Fdc._configure)), 0x14: (LOCK, Command(0, Fdc._lock)),
        0x8F: (INWARD, Command(2, Fdc._relative_seek)),
    }  # fmt: skip
    return {code: what for base, (flags, what) in table.items() for code in range(256) if code & ~flags == base}


COMMANDS = _all_commands()
