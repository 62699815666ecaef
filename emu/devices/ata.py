"""A hard disk with the ATA/ATAPI-6 command set, as far as it goes without DMA. Source: T13/1410D (ATA/ATAPI-6).

Registers by offset from the command block:
    0  data                                   4  LBA mid, cylinder low
    1  read ERROR, write FEATURES             5  LBA high, cylinder high
    2  sector count                           6  device: LBA bit, drive, LBA bits 24-27 or head
    3  LBA low, sector number                 7  read STATUS, write COMMAND
Registers 1 to 5 are two bytes deep: a write pushes the byte before it back, where the EXT commands find the upper half
of a 48-bit address and a 16-bit count.

Commands complete at once, so BSY shows only during a software reset. A PIO command moves its data in blocks, one sector
or, for the MULTIPLE commands, several: the drive interrupts when it has a block to be read, and when it has taken a
block that was written; the first block to be written is asked for by DRQ alone (clauses 9.5 and 9.6).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device
from emu.devices.disk import MAX_CYLINDERS, SECTOR, Disk, DiskFailed
from emu.devices.pio import READING, WRITING, PioBuffer

DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(8)  # register offsets
FEATURES, COMMAND = ERROR, STATUS  # the same, written

BSY = 0x80  # status: busy
DRDY = 0x40  # ready for commands
DSC = 0x10  # seek complete, in older standards
DRQ = 0x08  # a block waits to be moved
ERR = 0x01  # see the error register
READY = DRDY | DSC

UNC = 0x40  # error: data cannot be read
IDNF = 0x10  # no such address
ABRT = 0x04  # command not known, or not possible
DIAGNOSTIC_PASSED = 0x01  # after a reset

LBA = 0x40  # device register: LBA, not cylinder, head and sector
DEV = 0x10  # drive 1
HEAD = 0x0F  # head, or LBA bits 24 to 27
ALWAYS_SET = 0xA0  # bits that older standards define as one

MAX_MULTIPLE = 16  # sectors in a block of the MULTIPLE commands
MAX_LBA28 = 0x0FFF_FFFF  # sectors that 28-bit commands can express

FIRMWARE = "1.0"
MODEL = "EMU HARDDISK"


def ata_string(text: str, size: int) -> bytes:
    """ASCII padded with blanks, the bytes of each word swapped."""
    data = text.ljust(size)[:size].encode("ascii")
    return bytes(data[index ^ 1] for index in range(size))


class AtaDrive(Device):
    """One drive. Its data register is ``buffer``, which both drives of a channel share.

    Attributes:
        interrupt: it wants INTRQ asserted.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "current", "previous", "error", "status", "interrupt", "heads", "track", "multiple", "write_cache",
        "lba", "remaining", "block", "opcode",
    )  # fmt: skip

    def __init__(self, disk: Disk, buffer: PioBuffer, serial: int) -> None:
        self._disk = disk
        self._buffer = buffer
        self._serial = f"EMU{serial:05}"
        self._native = disk.geometry
        self.current = [0] * 8  # registers as last written, by offset
        self.previous = [0] * 8  # what they held before that
        self.error = 0
        self.status = READY
        self.interrupt = False
        self.heads = self._native.heads  # translation that INITIALIZE DEVICE PARAMETERS chose
        self.track = self._native.sectors
        self.multiple = MAX_MULTIPLE  # sectors in a block; 0: no MULTIPLE commands
        self.write_cache = True
        self.lba = 0  # first sector of the block that is moved
        self.remaining = 0  # sectors from there on to the command's end
        self.block = 0  # sectors that the command moves in one block
        self.opcode = 0  # the command that runs or ran last
        self.reset()

    def reset(self) -> None:
        """The end of a reset, or EXECUTE DEVICE DIAGNOSTIC: everything passed, and the signature of a disk."""
        self._buffer.close()
        self.current = [0, 0, 1, 1, 0, 0, 0, 0]
        self.previous = [0] * 8
        self.error = DIAGNOSTIC_PASSED
        self.status = READY
        self.interrupt = False
        self.multiple = MAX_MULTIPLE

    def deselect(self) -> None:
        """The other drive is selected: a transfer that is under way ends, for the data register is the other's now."""
        if self.status & DRQ:
            self._buffer.close()
            self.status = READY

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
            self._execute(value)
        else:
            self.previous[offset] = self.current[offset]
            self.current[offset] = value

    # --- data ---------------------------------------------------------------------------------------------------------

    def _read_data(self, size: int) -> int:
        buffer = self._buffer
        if not self.status & DRQ or buffer.mode != READING:
            return 0
        last = buffer.is_last(size)
        value = buffer.take(size)
        if last:
            self._block_read()
        return value

    def _write_data(self, size: int, value: int) -> None:
        buffer = self._buffer
        if not self.status & DRQ or buffer.mode != WRITING:
            return
        last = buffer.is_last(size)
        buffer.put(size, value)
        if last:
            self._block_written()

    def _start(self, block: int, ext: bool, begin: Callable[[], None]) -> None:
        """A command that moves sectors, ``block`` of them at a time."""
        self.lba, self.remaining = self._address(ext), self._count(ext)
        self.block = block
        if not block:  # no MULTIPLE commands
            self._fail(ABRT)
        elif self._in_range():
            begin()

    def _in_range(self, sectors: int | None = None) -> bool:
        """Whether the next ``sectors`` (default: one block) exist; if not, the command fails at the first missing."""
        sectors = min(self.block, self.remaining) if sectors is None else sectors
        if 0 <= self.lba and self.lba + sectors <= self._disk.sectors:
            return True
        if self.lba >= 0:
            self._set_address(max(self.lba, self._disk.sectors))
        self._fail(IDNF)
        return False

    def _offer_block(self) -> None:
        """Have the next block read by the guest."""
        try:
            data = self._disk.read(self.lba, min(self.block, self.remaining))
        except DiskFailed:
            self._set_address(self.lba)
            self._fail(UNC)
            return
        self._buffer.open_for_reading(data)
        self._finish(DRQ)

    def _ask_for_block(self) -> None:
        """Have the next block written by the guest."""
        self._buffer.open_for_writing(min(self.block, self.remaining) * SECTOR)
        self.status = READY | DRQ

    def _block_read(self) -> None:
        self._advance()
        if not self.remaining:
            self._buffer.close()
            self.status = READY
        elif self._in_range():
            self._offer_block()

    def _block_written(self) -> None:
        try:
            self._disk.write(self.lba, self._buffer.contents())
        except DiskFailed:
            self._set_address(self.lba)
            self._fail(ABRT)
            return
        self._advance()
        if not self.remaining:
            self._finish()
        elif self._in_range():
            self._ask_for_block()
            self.interrupt = True

    def _advance(self) -> None:
        """One block is done; the registers tell its last sector and how many are left."""
        done = min(self.block, self.remaining)
        if done:  # IDENTIFY DEVICE has none
            self._set_address(self.lba + done - 1)
            self.lba += done
            self.remaining -= done
            self.current[COUNT] = self.remaining & 0xFF
            self.previous[COUNT] = self.remaining >> 8 & 0xFF

    # --- addresses ----------------------------------------------------------------------------------------------------

    def _count(self, ext: bool) -> int:
        """The sector count; 0 is the highest."""
        if ext:
            return self.previous[COUNT] << 8 | self.current[COUNT] or 0x10000
        return self.current[COUNT] or 0x100

    def _address(self, ext: bool) -> int:
        """The first sector; -1 when it cannot be one."""
        now, before = self.current, self.previous
        if not now[DEVICE] & LBA:
            cylinder, head, sector = now[HIGH] << 8 | now[MID], now[DEVICE] & HEAD, now[LOW]
            if head >= self.heads or not 1 <= sector <= self.track:
                return -1
            return (cylinder * self.heads + head) * self.track + sector - 1
        low = now[HIGH] << 16 | now[MID] << 8 | now[LOW]
        if ext:
            return before[HIGH] << 40 | before[MID] << 32 | before[LOW] << 24 | low
        return (now[DEVICE] & HEAD) << 24 | low

    def _set_address(self, lba: int) -> None:
        """Tell a sector in the form that the command used."""
        now, before = self.current, self.previous
        if not now[DEVICE] & LBA:
            track, sector = divmod(lba, self.track)
            cylinder, head = divmod(track, self.heads)
            now[LOW], now[MID], now[HIGH] = sector + 1 & 0xFF, cylinder & 0xFF, cylinder >> 8 & 0xFF
            now[DEVICE] = now[DEVICE] & ~HEAD | head
            return
        now[LOW], now[MID], now[HIGH] = lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF
        if COMMANDS[self.opcode][1]:
            before[LOW], before[MID], before[HIGH] = lba >> 24 & 0xFF, lba >> 32 & 0xFF, lba >> 40 & 0xFF
        else:
            now[DEVICE] = now[DEVICE] & ~HEAD | lba >> 24 & HEAD

    # --- commands -----------------------------------------------------------------------------------------------------

    def _execute(self, opcode: int) -> None:
        self._buffer.close()  # of a command that was not waited for
        self.opcode = opcode
        self.interrupt = False
        self.error = 0
        self.status = READY
        self.remaining = 0
        command, ext = COMMANDS.get(opcode, (AtaDrive._abort, False))
        command(self, ext)

    def _finish(self, status: int = 0) -> None:
        """The command, or its block, is done."""
        self.status = READY | status
        self.interrupt = True

    def _fail(self, error: int) -> None:
        self._buffer.close()
        self.error = error
        self._finish(ERR)

    def _abort(self, ext: bool) -> None:
        self._fail(ABRT)

    def _succeed(self, ext: bool) -> None:
        """Commands that leave nothing to be done: power management, RECALIBRATE."""
        self._finish()

    def _check_power_mode(self, ext: bool) -> None:
        self.current[COUNT] = 0xFF  # active or idle
        self._finish()

    def _diagnose(self, ext: bool) -> None:
        self.reset()
        self._finish()

    def _read_sectors(self, ext: bool) -> None:
        self._start(1, ext, self._offer_block)

    def _read_multiple(self, ext: bool) -> None:
        self._start(self.multiple, ext, self._offer_block)

    def _write_sectors(self, ext: bool) -> None:
        self._start(1, ext, self._ask_for_block)

    def _write_multiple(self, ext: bool) -> None:
        self._start(self.multiple, ext, self._ask_for_block)

    def _verify(self, ext: bool) -> None:
        self.lba, self.remaining = self._address(ext), self._count(ext)
        self.block = self.remaining
        if self._in_range():
            self._advance()
            self._finish()

    def _seek(self, ext: bool) -> None:
        self.lba = self._address(ext)
        if self._in_range(1):
            self._finish()

    def _initialize_parameters(self, ext: bool) -> None:
        if not self.current[COUNT]:
            self._fail(ABRT)
            return
        self.heads, self.track = (self.current[DEVICE] & HEAD) + 1, self.current[COUNT]
        self._finish()

    def _set_multiple(self, ext: bool) -> None:
        sectors = self.current[COUNT]
        if sectors > MAX_MULTIPLE or sectors & (sectors - 1):
            self._fail(ABRT)
            return
        self.multiple = sectors
        self._finish()

    def _flush(self, ext: bool) -> None:
        try:
            self._disk.flush()
        except DiskFailed:
            self._fail(ABRT)
            return
        self._finish()

    def _set_features(self, ext: bool) -> None:
        """Write cache on and off, read look-ahead and defaults, which change nothing, and PIO transfer modes."""
        feature = self.current[FEATURES]
        if feature in (0x02, 0x82):
            self.write_cache = feature == 0x02
        elif feature not in (0x55, 0x66, 0xAA, 0xCC) and (feature != 0x03 or self.current[COUNT] >> 3 > 1):
            self._fail(ABRT)
            return
        self._finish()

    def _identify(self, ext: bool) -> None:
        self._buffer.open_for_reading(self.identity())
        self._finish(DRQ)

    def identity(self) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE (clause 8.15)."""
        cylinders, heads, track = self._native
        cylinders_now = min(self._disk.sectors // (self.heads * self.track), MAX_CYLINDERS)
        chs_sectors = cylinders_now * self.heads * self.track
        lba28, lba48 = min(self._disk.sectors, MAX_LBA28), self._disk.sectors
        cache = 0x20 if self.write_cache else 0
        words = {
            0: 0x0040, 1: cylinders, 3: heads, 6: track,  # a fixed drive and its own geometry
            20: 3, 21: 512, 22: 4,  # a cache of 256 KiB, in older standards
            47: 0x8000 | MAX_MULTIPLE,
            48: 1,  # 32-bit data port, in older standards
            49: 0x0A00, 50: 0x4000,  # LBA, IORDY, no DMA
            51: 0x0200,  # PIO timing 2, in older standards
            53: 0x0003, 54: cylinders_now, 55: self.heads, 56: self.track,  # translation now
            57: chs_sectors & 0xFFFF, 58: chs_sectors >> 16 & 0xFFFF,
            59: 0x0100 | self.multiple if self.multiple else 0,
            60: lba28 & 0xFFFF, 61: lba28 >> 16,
            64: 0x0003, 67: 120, 68: 120,  # PIO modes 3 and 4, ns a cycle
            80: 0x0070,  # ATA/ATAPI-4 to -6
            82: 0x4028, 83: 0x7400, 84: 0x4000,  # NOP, write cache, power management, FLUSH CACHE (EXT), 48 bits
            85: 0x4008 | cache, 86: 0x3400, 87: 0x4000,  # the same, as it is switched now
            93: 0x6001,  # passed the reset, by the CSEL jumper
            100: lba48 & 0xFFFF, 101: lba48 >> 16 & 0xFFFF, 102: lba48 >> 32 & 0xFFFF, 103: lba48 >> 48,
        }  # fmt: skip
        data = bytearray(struct.pack("<256H", *(words.get(number, 0) for number in range(256))))
        data[20:40] = ata_string(self._serial, 20)
        data[46:54] = ata_string(FIRMWARE, 8)
        data[54:94] = ata_string(MODEL, 40)
        data[510] = 0xA5  # word 255: the checksum that follows is valid
        data[511] = -sum(data) & 0xFF
        return bytes(data)


_SUCCEED = (AtaDrive._succeed, False)

COMMANDS: dict[int, tuple[Callable[[AtaDrive, bool], None], bool]] = {
    **{opcode: _SUCCEED for opcode in range(0x10, 0x20)},  # RECALIBRATE
    **{opcode: (AtaDrive._seek, False) for opcode in range(0x70, 0x80)},
    **{opcode: _SUCCEED for opcode in (0x94, 0x95, 0x96, 0x97, 0x99)},  # power management, the old numbers
    **{opcode: _SUCCEED for opcode in (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)},  # STANDBY, IDLE, SLEEP
    0x20: (AtaDrive._read_sectors, False),
    0x21: (AtaDrive._read_sectors, False),  # once: without retries
    0x24: (AtaDrive._read_sectors, True),
    0x29: (AtaDrive._read_multiple, True),
    0x30: (AtaDrive._write_sectors, False),
    0x31: (AtaDrive._write_sectors, False),
    0x34: (AtaDrive._write_sectors, True),
    0x39: (AtaDrive._write_multiple, True),
    0x3C: (AtaDrive._write_sectors, False),  # once: and verify
    0x40: (AtaDrive._verify, False),
    0x41: (AtaDrive._verify, False),
    0x42: (AtaDrive._verify, True),
    0x90: (AtaDrive._diagnose, False),
    0x91: (AtaDrive._initialize_parameters, False),
    0x98: (AtaDrive._check_power_mode, False),
    0xC4: (AtaDrive._read_multiple, False),
    0xC5: (AtaDrive._write_multiple, False),
    0xC6: (AtaDrive._set_multiple, False),
    0xE5: (AtaDrive._check_power_mode, False),
    0xE7: (AtaDrive._flush, False),
    0xEA: (AtaDrive._flush, False),  # EXT; its addresses tell failures that cannot be told apart here
    0xEC: (AtaDrive._identify, False),
    0xEF: (AtaDrive._set_features, False),
}
"""What each command does, and whether it is a 48-bit one. All others, NOP, IDENTIFY PACKET DEVICE, DEVICE RESET and
the DMA commands among them, end as aborted (clauses 8.1 to 8.57)."""
