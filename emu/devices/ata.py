"""A hard disk with the ATA/ATAPI-6 command set. Source: T13/1410D (ATA/ATAPI-6); registers: emu.devices.taskfile.

A PIO command moves its data in blocks, one sector or, for the MULTIPLE commands, several: the drive interrupts when it
has a block to be read, and when it has taken a block that was written; the first block to be written is asked for by
DRQ alone (clauses 9.5 and 9.6). A DMA command interrupts at its end (9.7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.ata_identity import MAX_MULTIPLE, identity
from emu.devices.disk import SECTOR, Disk, DiskFailed
from emu.devices.pio import CLOSED, READING, WRITING, PioBuffer
from emu.devices.taskfile import ABRT, COUNT, DEVICE, FEATURES, HEAD, HIGH, LBA, LOW, MID, READY, TaskFile

UNC = 0x40  # error: data cannot be read
IDNF = 0x10  # no such address
DMA_BLOCK = 32  # sectors that a DMA command moves in one go
PIO, MULTIWORD_DMA = 0x08, 0x20  # SET FEATURES, transfer mode: the number of the mode is in the lower bits
MODES = {0x00: 2, PIO: 5, MULTIWORD_DMA: 3}  # how many there are of each kind


class AtaDrive(TaskFile):
    """One drive."""

    STATE: ClassVar[tuple[str, ...]] = (
        *TaskFile.STATE, "heads", "track", "multiple", "write_cache", "mode", "lba", "remaining", "block",
    )  # fmt: skip

    def __init__(self, disk: Disk, buffer: PioBuffer, serial: int) -> None:
        super().__init__(buffer)
        self._disk = disk
        self._serial = f"EMU{serial:05}"
        self._native = disk.geometry
        self.heads = self._native.heads  # translation that INITIALIZE DEVICE PARAMETERS chose
        self.track = self._native.sectors
        self.multiple = MAX_MULTIPLE  # sectors in a block; 0: no MULTIPLE commands
        self.write_cache = True
        self.mode = MULTIWORD_DMA | 2  # how data are transferred, which changes nothing
        self.lba = 0  # first sector of the block that is moved
        self.remaining = 0  # sectors from there on to the command's end
        self.block = 0  # sectors that the command moves in one block
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.multiple = MAX_MULTIPLE

    # --- data ---------------------------------------------------------------------------------------------------------

    def _start(self, block: int, ext: bool, begin: Callable[[], None]) -> None:
        """A command that moves sectors, ``block`` of them at a time."""
        self.lba, self.remaining = self._address(ext), self._count(ext)
        self.block = block
        if not block:  # no MULTIPLE commands
            self.fail(ABRT)
        elif self._in_range():
            begin()

    def _in_range(self, sectors: int | None = None) -> bool:
        """Whether the next ``sectors`` (default: one block) exist; if not, the command fails at the first missing."""
        sectors = min(self.block, self.remaining) if sectors is None else sectors
        if 0 <= self.lba and self.lba + sectors <= self._disk.sectors:
            return True
        if self.lba >= 0:
            self._set_address(max(self.lba, self._disk.sectors))
        self.fail(IDNF)
        return False

    def _offer_block(self) -> None:
        """Have the next block read by the guest."""
        try:
            data = self._disk.read(self.lba, min(self.block, self.remaining))
        except DiskFailed:
            self._set_address(self.lba)
            self.fail(UNC)
            return
        self.offer(data)

    def _ask_for_block(self) -> None:
        """Have the next block written by the guest."""
        self.ask_for(min(self.block, self.remaining) * SECTOR)

    def block_read(self) -> None:
        self._advance()
        if not self.remaining:
            self._buffer.close()
            self.status = READY
        elif self._in_range():
            self._offer_block()

    def block_written(self, data: bytes) -> None:
        if not self._store(data):
            return
        if not self.remaining:
            self.finish()
        elif self._in_range():
            self._ask_for_block()
            self.interrupt = True

    def _store(self, data: bytes) -> bool:
        """Write a block and go on behind it; False, and the command has failed, when that cannot be done."""
        try:
            self._disk.write(self.lba, data)
        except DiskFailed:
            self._set_address(self.lba)
            self.fail(ABRT)
            return False
        self._advance()
        return True

    # --- DMA ----------------------------------------------------------------------------------------------------------

    @property
    def dma_size(self) -> int:
        return min(self.block, self.remaining) * SECTOR

    def dma_read(self) -> bytes:
        try:
            data = self._disk.read(self.lba, min(self.block, self.remaining))
        except DiskFailed:
            self._set_address(self.lba)
            self.fail(UNC)
            return b""
        self._advance()
        self._dma_moved()
        return data

    def dma_write(self, data: bytes) -> None:
        if self._store(data):
            self._dma_moved()

    def _dma_moved(self) -> None:
        """A block was moved, and the command goes on or ends."""
        if not self.remaining:
            self.dma = CLOSED
            self.finish()
        else:
            self._in_range()

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

    def execute(self, opcode: int) -> None:
        self.remaining = 0
        command, ext = COMMANDS.get(opcode, (AtaDrive._abort, False))
        command(self, ext)

    def _abort(self, ext: bool) -> None:
        self.fail(ABRT)

    def _succeed(self, ext: bool) -> None:
        """Commands that leave nothing to be done: power management, RECALIBRATE."""
        self.finish()

    def _check_power_mode(self, ext: bool) -> None:
        self.current[COUNT] = 0xFF  # active or idle
        self.finish()

    def _diagnose(self, ext: bool) -> None:
        self.reset()
        self.finish()

    def _read_sectors(self, ext: bool) -> None:
        self._start(1, ext, self._offer_block)

    def _read_multiple(self, ext: bool) -> None:
        self._start(self.multiple, ext, self._offer_block)

    def _write_sectors(self, ext: bool) -> None:
        self._start(1, ext, self._ask_for_block)

    def _write_multiple(self, ext: bool) -> None:
        self._start(self.multiple, ext, self._ask_for_block)

    def _read_dma(self, ext: bool) -> None:
        self._start(DMA_BLOCK, ext, lambda: self.request_dma(READING))

    def _write_dma(self, ext: bool) -> None:
        self._start(DMA_BLOCK, ext, lambda: self.request_dma(WRITING))

    def _verify(self, ext: bool) -> None:
        self.lba, self.remaining = self._address(ext), self._count(ext)
        self.block = self.remaining
        if self._in_range():
            self._advance()
            self.finish()

    def _seek(self, ext: bool) -> None:
        self.lba = self._address(ext)
        if self._in_range(1):
            self.finish()

    def _initialize_parameters(self, ext: bool) -> None:
        if not self.current[COUNT]:
            self.fail(ABRT)
            return
        self.heads, self.track = (self.current[DEVICE] & HEAD) + 1, self.current[COUNT]
        self.finish()

    def _set_multiple(self, ext: bool) -> None:
        sectors = self.current[COUNT]
        if sectors > MAX_MULTIPLE or sectors & (sectors - 1):
            self.fail(ABRT)
            return
        self.multiple = sectors
        self.finish()

    def _flush(self, ext: bool) -> None:
        try:
            self._disk.flush()
        except DiskFailed:
            self.fail(ABRT)
            return
        self.finish()

    def _set_features(self, ext: bool) -> None:
        """Write cache on and off, read look-ahead and defaults, which change nothing, and transfer modes."""
        feature, value = self.current[FEATURES], self.current[COUNT]
        if feature in (0x02, 0x82):
            self.write_cache = feature == 0x02
        elif feature == 0x03 and value & 7 < MODES.get(value & ~7, 0):
            self.mode = value
        elif feature not in (0x55, 0x66, 0xAA, 0xCC):
            self.fail(ABRT)
            return
        self.finish()

    def _identify(self, ext: bool) -> None:
        self.offer(self.identity())

    def identity(self) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE."""
        return identity(
            self._serial, self._native, (self.heads, self.track), self._disk.sectors, self.multiple, self.write_cache,
            self.mode & 7 if self.mode & MULTIWORD_DMA else None,
        )  # fmt: skip


_SUCCEED = (AtaDrive._succeed, False)

COMMANDS: dict[int, tuple[Callable[[AtaDrive, bool], None], bool]] = {
    **{opcode: _SUCCEED for opcode in range(0x10, 0x20)},  # RECALIBRATE
    **{opcode: (AtaDrive._seek, False) for opcode in range(0x70, 0x80)},
    **{opcode: _SUCCEED for opcode in (0x94, 0x95, 0x96, 0x97, 0x99)},  # power management, the old numbers
    **{opcode: _SUCCEED for opcode in (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)},  # STANDBY, IDLE, SLEEP
    0x20: (AtaDrive._read_sectors, False),
    0x21: (AtaDrive._read_sectors, False),  # once: without retries
    0x24: (AtaDrive._read_sectors, True),
    0x25: (AtaDrive._read_dma, True),
    0x29: (AtaDrive._read_multiple, True),
    0x30: (AtaDrive._write_sectors, False),
    0x31: (AtaDrive._write_sectors, False),
    0x34: (AtaDrive._write_sectors, True),
    0x35: (AtaDrive._write_dma, True),
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
    0xC8: (AtaDrive._read_dma, False),
    0xC9: (AtaDrive._read_dma, False),  # once: without retries
    0xCA: (AtaDrive._write_dma, False),
    0xCB: (AtaDrive._write_dma, False),
    0xE5: (AtaDrive._check_power_mode, False),
    0xE7: (AtaDrive._flush, False),
    0xEA: (AtaDrive._flush, False),  # EXT; its addresses tell failures that cannot be told apart here
    0xEC: (AtaDrive._identify, False),
    0xEF: (AtaDrive._set_features, False),
}
"""What each command does, and whether it is a 48-bit one. All others, NOP, IDENTIFY PACKET DEVICE and DEVICE RESET
among them, end as aborted (clauses 8.1 to 8.57)."""
