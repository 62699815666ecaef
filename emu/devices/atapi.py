"""A CD-ROM drive on an IDE channel. Source: T13/1410D (ATA/ATAPI-6), clauses 8.16, 8.23 and 9.8 to 9.11.

Registers as emu.devices.taskfile has them, but the sector count tells why the drive interrupts: 0x01 a packet is
wanted, or the command is over; 0x02 data go to the host, or the command is over. LBA mid and high are a number of
bytes: what the host takes at most in one block, and then how many the block has.

PACKET asks for twelve bytes, without an interrupt; the drive then interrupts for each block of its answer and for the
end. With DMA (FEATURES bit 0) it interrupts at the end alone.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from emu.devices.device import State, check_fields
from emu.devices.disc import Disc
from emu.devices.disk import DiskFailed
from emu.devices.mmc import MEDIUM_ERROR, READ_ERROR, Answer, Blocks, CdRom, Refused
from emu.devices.pio import CLOSED, READING, PioBuffer
from emu.devices.taskfile import ABRT, COUNT, FEATURES, HIGH, MID, READY, TaskFile, ata_string

PACKET_SIZE = 12  # bytes
IS_COMMAND, TO_HOST = 0x01, 0x02  # sector count: interrupt reason
DMA = 0x01  # features of PACKET
MAX_BYTES = 0xFFFE  # of a block; even
DMA_BLOCK = 16 << 10  # bytes moved by DMA in one go
MULTIWORD_DMA = 0x20  # SET FEATURES, transfer mode

DEVICE_RESET, DIAGNOSE, PACKET, IDENTIFY_PACKET, IDENTIFY, SET_FEATURES = 0x08, 0x90, 0xA0, 0xA1, 0xEC, 0xEF
POWER = (0xE0, 0xE1, 0xE2, 0xE3, 0xE6)  # STANDBY, IDLE, SLEEP
CHECK_POWER = 0xE5


class AtapiDrive(TaskFile):
    """The drive with ``disc`` in it."""

    STATE: ClassVar[tuple[str, ...]] = (*TaskFile.STATE, "waits_for_packet", "limit", "done", "mode")
    SIGNATURE: ClassVar[tuple[int, int]] = (0x14, 0xEB)
    IDLE: ClassVar[int] = 0  # not ready for commands but PACKET and a few others

    def __init__(self, disc: Disc, buffer: PioBuffer, serial: int) -> None:
        super().__init__(buffer)
        self._serial = f"EMU{serial:05}"
        self.cd = CdRom(disc)
        self.answer: Answer = b""  # of the command that runs
        self.done = 0  # bytes of it that were moved, or are being moved
        self.limit = 0  # bytes of a block at most
        self.waits_for_packet = False
        self.mode = MULTIWORD_DMA | 2  # how data are transferred, which changes nothing
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.waits_for_packet = False
        self.answer, self.done = b"", 0

    # --- commands of the channel --------------------------------------------------------------------------------------

    def execute(self, opcode: int) -> None:
        self.waits_for_packet = False
        if opcode == PACKET:
            self.limit = (self.current[HIGH] << 8 | self.current[MID]) & MAX_BYTES or MAX_BYTES
            self.current[COUNT] = IS_COMMAND
            self.waits_for_packet = True
            self.ask_for(PACKET_SIZE)
        elif opcode == IDENTIFY_PACKET:
            self.answer = b""
            self.offer(self.identity())
        elif opcode in (DEVICE_RESET, DIAGNOSE):
            self.reset()
            self.interrupt = opcode == DIAGNOSE
        elif opcode in POWER:
            self.finish()
        elif opcode == CHECK_POWER:
            self.current[COUNT] = 0xFF  # active or idle
            self.finish()
        elif opcode == SET_FEATURES and self._set_features():
            self.finish()
        else:
            if opcode == IDENTIFY:  # the signature tells who is here
                self.current[COUNT], self.current[COUNT + 1] = 1, 1
                self.current[MID], self.current[HIGH] = self.SIGNATURE
            self.fail(ABRT)

    def _set_features(self) -> bool:
        """Transfer modes, and what changes nothing."""
        feature, value = self.current[FEATURES], self.current[COUNT]
        if feature != 0x03:
            return feature in (0x66, 0xCC)
        known = value & 7 < {0x00: 2, 0x08: 5, MULTIWORD_DMA: 3}.get(value & ~7, 0)
        if known:
            self.mode = value
        return known

    def identity(self) -> bytes:
        """The 512 bytes of IDENTIFY PACKET DEVICE (8.16)."""
        chosen = 0x0100 << (self.mode & 7) if self.mode & MULTIWORD_DMA else 0
        words = {
            0: 0x85C0,  # a CD-ROM drive, removable, packets of 12 bytes within 50 us
            49: 0x0B00, 53: 0x0002, 63: 0x0007 | chosen,  # LBA, IORDY, DMA; multiword DMA modes 0 to 2
            64: 0x0003, 65: 120, 66: 120, 67: 120, 68: 120,  # PIO modes 3 and 4, ns a cycle of DMA and PIO
            71: 30, 72: 30, 80: 0x0070,  # us to a packet and behind SERVICE; ATA/ATAPI-4 to -6
            82: 0x4218, 83: 0x4000, 84: 0x4000, 85: 0x4218, 87: 0x4000,  # NOP, DEVICE RESET, PACKET, power management
            93: 0x6001,
        }  # fmt: skip
        data = bytearray(struct.pack("<256H", *(words.get(number, 0) for number in range(256))))
        data[20:40] = ata_string(self._serial, 20)
        data[46:54] = ata_string("1.0", 8)
        data[54:94] = ata_string("EMU CD-ROM", 40)
        return bytes(data)

    # --- packets ------------------------------------------------------------------------------------------------------

    def block_written(self, data: bytes) -> None:
        """The packet has come: no other command takes data."""
        self.waits_for_packet = False
        self.done = 0
        try:
            self.answer = self.cd.perform(data)
        except Refused as refusal:
            self._refuse(refusal.key)
            return
        if not self._size:
            self._end()
        elif self.current[FEATURES] & DMA:
            self.current[COUNT] = TO_HOST
            self.request_dma(READING)
        else:
            self._offer_block()

    @property
    def _size(self) -> int:
        """Bytes of the answer."""
        return self.answer.size if isinstance(self.answer, Blocks) else len(self.answer)

    def _take(self, size: int) -> bytes:
        """The next ``size`` bytes of the answer; none when they cannot be read, and the command has failed."""
        answer, begin = self.answer, self.done
        try:
            if isinstance(answer, Blocks):
                data = self.cd.disc.bytes_at(answer.begin + begin, size)
            else:
                data = answer[begin : begin + size]
        except DiskFailed:
            self.cd.sense = (MEDIUM_ERROR, READ_ERROR)
            self._refuse(MEDIUM_ERROR)
            return b""
        self.done += size
        return data

    def _offer_block(self) -> None:
        data = self._take(min(self._size - self.done, self.limit))
        if data:
            self.current[COUNT] = TO_HOST
            self.current[MID], self.current[HIGH] = len(data) & 0xFF, len(data) >> 8
            self.offer(data)

    def block_read(self) -> None:
        if self.opcode == IDENTIFY_PACKET:
            self._buffer.close()
            self.status = READY
        elif self.done < self._size:
            self._offer_block()
        else:
            self._end()

    @property
    def dma_size(self) -> int:
        return min(self._size - self.done, DMA_BLOCK)

    def dma_read(self) -> bytes:
        data = self._take(self.dma_size)
        if data and self.done == self._size:
            self._end()
        return data

    def dma_write(self, data: bytes) -> None:
        """No command takes data by DMA."""

    def _end(self) -> None:
        self._buffer.close()
        self.dma = CLOSED
        self.current[COUNT] = IS_COMMAND | TO_HOST
        self.finish()

    def _refuse(self, key: int) -> None:
        self.current[COUNT] = IS_COMMAND | TO_HOST
        self.fail(key << 4 | ABRT)

    # --- state --------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        answer, cd = self.answer, self.cd
        return super().state() | {
            "answer": [answer.begin, answer.size] if isinstance(answer, Blocks) else answer.hex(),
            "cd": [list(cd.sense), cd.is_open, cd.is_locked, cd.is_new],
        }

    def load_state(self, state: State) -> None:
        check_fields("AtapiDrive", state, (*self.STATE, "answer", "cd"))
        super().load_state({name: state[name] for name in self.STATE})
        answer = state["answer"]
        self.answer = bytes.fromhex(answer) if isinstance(answer, str) else Blocks(*answer)
        sense, self.cd.is_open, self.cd.is_locked, self.cd.is_new = state["cd"]
        self.cd.sense = (sense[0], sense[1])
