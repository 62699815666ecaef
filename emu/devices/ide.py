"""One IDE channel: two drives on one cable. Source: T13/1410D (ATA/ATAPI-6), clauses 7 and 9; see emu.devices.taskfile.

Command block by offset: the registers of emu.devices.taskfile. Control block: read alternate status, which leaves
INTRQ as it is; write device control: HOB, SRST, nIEN.

What the host writes goes to both drives, the one that the device register selects answers and executes. Where it is
missing drive 0 answers for drive 1, with a status of 0 (clause 9.16.1). Without drive 0, or without any, everything
reads as zeros, as in QEMU: no driver waits for a BSY that never ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.ata import AtaDrive
from emu.devices.atapi import AtapiDrive
from emu.devices.device import Device, IrqLine, State, check_fields
from emu.devices.disc import Disc
from emu.devices.disk import Disk
from emu.devices.pio import CLOSED, PioBuffer
from emu.devices.taskfile import BSY, COMMAND, DATA, DEV, DEVICE, ERROR, STATUS, TaskFile

HOB = 0x80  # device control: read the previous contents of registers 1 to 5
SRST = 0x04  # software reset, as long as it is set
NIEN = 0x02  # no interrupts
EXECUTE_DIAGNOSTIC = 0x90  # the command that both drives execute


class IdeChannel(Device):
    """The command block. ``control`` is the control block.

    Args:
        line: INTRQ.
        disks: drive 0 and drive 1; None where there is none. A Disc is in a CD-ROM drive.
        serial: the serial number of drive 0; drive 1 has the next.

    Attributes:
        buffer: what the native plane needs for the data port.
        on_change: called when a drive may have begun, or stopped, to ask for DMA.
    """

    max_access: ClassVar[int] = 4

    def __init__(self, line: IrqLine, disks: tuple[Disk | None, Disk | None], serial: int = 1) -> None:
        self._line = line
        self.buffer = PioBuffer()
        self.on_change: Callable[[], None] = lambda: None
        self._drives: tuple[TaskFile | None, ...] = tuple(
            None if disk is None else _drive(disk, self.buffer, serial + number) for number, disk in enumerate(disks)
        )
        self.selected = 0  # drive that the device register selects
        self.device_control = 0
        self.control = _ControlBlock(self)

    def read(self, offset: int, size: int) -> int:
        if offset != DATA and size > 1:  # only the data register is wider than a byte
            return sum(self.read(offset + n, 1) << 8 * n for n in range(size) if offset + n <= STATUS)
        drive = self._drives[self.selected]
        if drive is None:
            stand_in = self._drives[0]
            return 0 if stand_in is None or offset in (DATA, ERROR, STATUS) else stand_in.read(offset, size)
        if offset == DATA and size == 1:
            return 0xFF
        if self.device_control & SRST:
            return BSY
        if self.device_control & HOB and ERROR <= offset < DEVICE:
            return drive.previous[offset]
        value = drive.read(offset, size)
        self._update()
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != DATA and size > 1:
            for n in range(size):
                if offset + n <= COMMAND:
                    self.write(offset + n, 1, value >> 8 * n & 0xFF)
            return
        if self.device_control & SRST:
            return
        self.device_control &= ~HOB
        if offset == DATA or (offset == COMMAND and value != EXECUTE_DIAGNOSTIC):
            drives = self._drives[self.selected : self.selected + 1]
            if offset == DATA and size == 1:
                return
        else:
            drives = self._drives
        if offset == DEVICE:
            self._select(1 if value & DEV else 0)
        if offset == COMMAND:
            self._line.set(False)  # a command takes the interrupt of the last one back: its own is an edge again
        for drive in drives:
            if drive is not None:
                drive.write(offset, size, value)
        if offset == COMMAND and value == EXECUTE_DIAGNOSTIC:
            self._reset_done()
        self._update()

    def alternate_status(self) -> int:
        """The status, without the effect of reading it."""
        drive = self._drives[self.selected]
        if drive is None:
            return 0
        return BSY if self.device_control & SRST else drive.status

    def set_control(self, value: int) -> None:
        """Write device control."""
        ended = self.device_control & SRST and not value & SRST
        self.device_control = value & (HOB | SRST | NIEN)
        if value & SRST:
            self.buffer.close()
        if ended:
            for drive in self._drives:
                if drive is not None:
                    drive.reset()
            self._reset_done()
        self._update()

    def machine_reset(self, power_up: State) -> None:
        super().machine_reset(power_up)
        self._update()

    @property
    def requesting(self) -> TaskFile | None:
        """The drive that has a block to be moved by DMA."""
        drive = self._drives[self.selected]
        return drive if drive is not None and drive.dma != CLOSED and not self.device_control & SRST else None

    def moved(self) -> None:
        """A block was moved by DMA: the drive may interrupt."""
        self._update()

    def state(self) -> State:
        return {
            "selected": self.selected,
            "device_control": self.device_control,
            "drives": [None if drive is None else drive.state() for drive in self._drives],
            "buffer": self.buffer.state(),
        }

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned for the same drives; their disks have states of their own."""
        check_fields("IdeChannel", state, ("selected", "device_control", "drives", "buffer"))
        self.selected = state["selected"]
        self.device_control = state["device_control"]
        for drive, saved in zip(self._drives, state["drives"], strict=True):
            if drive is not None:
                drive.load_state(saved)
        self.buffer.load_state(state["buffer"])

    def _select(self, number: int) -> None:
        if number != self.selected:
            left = self._drives[self.selected]
            if left is not None:
                left.deselect()
            self.selected = number

    def _reset_done(self) -> None:
        """Drive 0 is selected, and the only one that interrupts."""
        self.selected = 0
        if self._drives[1] is not None:
            self._drives[1].interrupt = False

    def _update(self) -> None:
        drive = self._drives[self.selected]
        masked = self.device_control & (NIEN | SRST)
        self._line.set(drive is not None and drive.interrupt and not masked)
        self.on_change()


class _ControlBlock(Device):
    """One port: alternate status and device control."""

    def __init__(self, channel: IdeChannel) -> None:
        self._channel = channel

    def read(self, offset: int, size: int) -> int:
        return self._channel.alternate_status()

    def write(self, offset: int, size: int, value: int) -> None:
        self._channel.set_control(value)


def _drive(disk: Disk, buffer: PioBuffer, serial: int) -> TaskFile:
    """The drive that takes such a disk."""
    return AtapiDrive(disk, buffer, serial) if isinstance(disk, Disc) else AtaDrive(disk, buffer, serial)
