"""The registers of a drive on an IDE channel, and how its commands begin, move data and end.

Source: T13/1410D (ATA/ATAPI-6), chapters 7 and 9.

Registers by offset from the command block:
    0  data                                   4  LBA mid, cylinder low
    1  read ERROR, write FEATURES             5  LBA high, cylinder high
    2  sector count                           6  device: LBA bit, drive, LBA bits 24-27 or head
    3  LBA low, sector number                 7  read STATUS, write COMMAND
Registers 1 to 5 are two bytes deep: a write pushes the byte before it back, where the EXT commands find the upper half
of a 48-bit address and a 16-bit count.

Commands complete at once, so BSY shows only during a software reset. What a command moves goes in blocks: through the
data register (PIO), or by DMA, for which the channel's bus master asks with ``dma_size`` and then moves the block.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Device
from emu.devices.pio import CLOSED, READING, WRITING, PioBuffer

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)  # register offsets
FEATURES, COMMAND = ERROR, STATUS  # the same, written

BSY = 0x80  # status: busy
DRDY = 0x40  # ready for commands
DSC = 0x10  # seek complete, in older standards
DRQ = 0x08  # a block waits to be moved
ERR = 0x01  # see the error register
READY = DRDY | DSC

ABRT = 0x04  # error: command not known, or not possible
DIAGNOSTIC_PASSED = 0x01  # after a reset

LBA = 0x40  # device register: LBA, not cylinder, head and sector
DEV = 0x10  # drive 1
HEAD = 0x0F  # head, or LBA bits 24 to 27
ALWAYS_SET = 0xA0  # bits that older standards define as one


def ata_string(text: str, size: int) -> bytes:
    """ASCII padded with blanks, the bytes of each word swapped."""
    data = text.ljust(size)[:size].encode("ascii")
    return bytes(data[index ^ 1] for index in range(size))


class TaskFile(Device):
    """A drive. Its data register is ``buffer``, which both drives of a channel share.

    A subclass gives ``execute``, and what becomes of the blocks that its commands move.

    Attributes:
        interrupt: it wants INTRQ asserted.
        dma: a block waits to be moved by DMA: READING (to memory), WRITING; else CLOSED.
    """

    STATE: ClassVar[tuple[str, ...]] = ("current", "previous", "error", "status", "interrupt", "opcode", "dma")
    SIGNATURE: ClassVar[tuple[int, int]] = (0, 0)  # LBA mid and high after a reset: what kind of drive it is
    IDLE: ClassVar[int] = READY  # status after a reset

    def __init__(self, buffer: PioBuffer) -> None:
        self._buffer = buffer
        self.current = [0] * 8  # registers as last written, by offset
        self.previous = [0] * 8  # what they held before that
        self.error = 0
        self.status = READY
        self.interrupt = False
        self.opcode = 0  # the command that runs or ran last
        self.dma = CLOSED

    def reset(self) -> None:
        """The end of a reset, or EXECUTE DEVICE DIAGNOSTIC: everything passed, and the drive's signature."""
        self._buffer.close()
        self.current = [0, 0, 1, 1, *self.SIGNATURE, 0, 0]
        self.previous = [0] * 8
        self.error = DIAGNOSTIC_PASSED
        self.status = self.IDLE
        self.interrupt = False
        self.dma = CLOSED

    def deselect(self) -> None:
        """The other drive is selected: a transfer that is under way ends, for the data register is the other's now."""
        if self.status & DRQ:
            self._buffer.close()
            self.status = READY
            self.dma = CLOSED

    # --- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """A register of one byte; with ``size`` 2 or 4 at DATA the next of the data."""
        if offset == DATA:
            return self._read_data(size)
        if offset == ERROR:
            return self.error
        if offset == STATUS:
            self.interrupt = False
            return self.status
        return self.current[offset] | (ALWAYS_SET if offset == DEVICE else 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == DATA:
            self._write_data(size, value)
        elif offset == COMMAND:
            self._buffer.close()  # of a command that was not waited for
            self.dma = CLOSED
            self.opcode = value
            self.interrupt = False
            self.error = 0
            self.status = READY
            self.execute(value)
        else:
            self.previous[offset] = self.current[offset]
            self.current[offset] = value

    def _read_data(self, size: int) -> int:
        buffer = self._buffer
        if not self.status & DRQ or buffer.mode != READING:
            return 0
        last = buffer.is_last(size)
        value = buffer.take(size)
        if last:
            self.block_read()
        return value

    def _write_data(self, size: int, value: int) -> None:
        buffer = self._buffer
        if not self.status & DRQ or buffer.mode != WRITING:
            return
        last = buffer.is_last(size)
        buffer.put(size, value)
        if last:
            self.block_written(buffer.contents())

    # --- what a subclass gives ----------------------------------------------------------------------------------------

    def execute(self, opcode: int) -> None:
        """Carry out a command, or begin to."""
        raise NotImplementedError

    def block_read(self) -> None:
        """The guest has read a block from the data register."""
        raise NotImplementedError

    def block_written(self, data: bytes) -> None:
        """The guest has written a block."""
        raise NotImplementedError

    @property
    def dma_size(self) -> int:
        """Bytes of the block that waits to be moved by DMA; while ``dma`` is not CLOSED."""
        raise NotImplementedError

    def dma_read(self) -> bytes:
        """The block, for memory; shorter when the drive fails. It goes on to the next one."""
        raise NotImplementedError

    def dma_write(self, data: bytes) -> None:
        """Take the block from memory, and go on to the next one."""
        raise NotImplementedError

    # --- how commands go on and end -----------------------------------------------------------------------------------

    def offer(self, data: bytes) -> None:
        """Have a block read by the guest."""
        self._buffer.open_for_reading(data)
        self.finish(DRQ)

    def ask_for(self, size: int) -> None:
        """Have a block written by the guest; without an interrupt."""
        self._buffer.open_for_writing(size)
        self.status = READY | DRQ

    def request_dma(self, direction: int) -> None:
        """Have a block moved by DMA: READING to memory, WRITING from it."""
        self.dma = direction
        self.status = READY | DRQ

    def finish(self, status: int = 0) -> None:
        """The command, or its block, is done."""
        self.status = READY | status
        self.interrupt = True

    def fail(self, error: int) -> None:
        """The command ends with bits of the error register."""
        self._buffer.close()
        self.dma = CLOSED
        self.error = error
        self.finish(ERR)
