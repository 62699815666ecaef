"""A guest's side of virtio: memory, a driver of the MMIO transport, and queues as VIRTIO 1.1 describes them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence

from emu.devices.virtio import VirtioDevice
from emu.devices.virtio_mmio import VirtioMmio

VERSION_1, INDIRECT_DESC = 1 << 32, 1 << 28
NEXT, WRITE, INDIRECT = 1, 2, 4
RAM = 2 << 20  # bytes


class Memory:
    """Guest memory from gpa 0 on; there is nothing behind its end."""

    def __init__(self, size: int = RAM) -> None:
        self.data = bytearray(size)
        self.calls = 0

    def read(self, gpa: int, size: int) -> bytes:
        self._check(gpa, size)
        return bytes(memoryview(self.data)[gpa : gpa + size])

    def write(self, gpa: int, data: bytes) -> None:
        self._check(gpa, len(data))
        self.data[gpa : gpa + len(data)] = data

    def _check(self, gpa: int, size: int) -> None:
        self.calls += 1
        if gpa < 0 or gpa + size > len(self.data):
            raise IndexError(f"{size} bytes at {gpa:#x}")


class Holes(Memory):
    """The same, but what is not there reads as ones and swallows writes."""

    def read(self, gpa: int, size: int) -> bytes:
        if gpa + size <= len(self.data):
            return super().read(gpa, size)
        return b"\xff" * size

    def write(self, gpa: int, data: bytes) -> None:
        if gpa + len(data) <= len(self.data):
            super().write(gpa, data)


class Line:
    def __init__(self) -> None:
        self.level = False

    def set(self, level: bool) -> None:
        self.level = level


class Queue:
    """The driver's part of one queue, at `base`."""

    def __init__(self, guest: Guest, index: int, size: int, base: int) -> None:
        self.guest, self.index, self.size = guest, index, size
        self.descriptors, self.driver, self.device = base, base + 16 * size, (base + 18 * size + 4 + 3) & ~3
        self.free = 0  # descriptors are handed out round and round
        self.available = self.seen = 0

    def descriptor(self, number: int, gpa: int, length: int, flags: int, following: int = 0) -> None:
        self.guest.memory.write(self.descriptors + 16 * number, struct.pack("<QIHH", gpa, length, flags, following))

    def add(self, *pieces: tuple[int, int, int], indirect: int = 0) -> int:
        """Make a chain of (gpa, length, flags) available, with `indirect` as the gpa of its table; its head."""
        numbers = [(self.free + n) % self.size for n in range(1 if indirect else len(pieces))]
        if indirect:
            self.descriptor(numbers[0], indirect, 16 * len(pieces), INDIRECT)
            for n, (gpa, length, flags) in enumerate(pieces):
                more = NEXT if n + 1 < len(pieces) else 0
                packed = struct.pack("<QIHH", gpa, length, flags | more, n + 1 if more else 0)
                self.guest.memory.write(indirect + 16 * n, packed)
        else:
            for n, (gpa, length, flags) in zip(numbers, pieces, strict=True):
                more = NEXT if n != numbers[-1] else 0
                self.descriptor(n, gpa, length, flags | more, (n + 1) % self.size if more else 0)
        self.free = (self.free + len(numbers)) % self.size
        self.make_available(numbers[0])
        return numbers[0]

    def make_available(self, head: int) -> None:
        memory = self.guest.memory
        memory.write(self.driver + 4 + 2 * (self.available % self.size), struct.pack("<H", head))
        self.available = self.available + 1 & 0xFFFF
        memory.write(self.driver + 2, struct.pack("<H", self.available))

    def kick(self) -> None:
        self.guest.put(0x050, self.index)

    def used(self) -> list[tuple[int, int]]:
        """(head, written) of the chains that came back since the last call."""
        found = []
        (index,) = struct.unpack("<H", self.guest.memory.read(self.device + 2, 2))
        while self.seen != index:
            at = self.device + 4 + 8 * (self.seen % self.size)
            found.append(struct.unpack("<II", self.guest.memory.read(at, 8)))
            self.seen = self.seen + 1 & 0xFFFF
        return found


class Guest:
    """A machine with one device. `make` gets the memory."""

    def __init__(self, make: Callable[[Memory], VirtioDevice], memory: Memory | None = None) -> None:
        self.memory = memory or Memory()
        self.line = Line()
        self.device = make(self.memory)
        self.mmio = VirtioMmio(self.line, self.device)
        self.queues: list[Queue] = []

    def get(self, offset: int, size: int = 4) -> int:
        return self.mmio.read(offset, size)

    def put(self, offset: int, value: int, size: int = 4) -> None:
        self.mmio.write(offset, size, value)

    def offered(self) -> int:
        features = 0
        for group in (0, 1):
            self.put(0x014, group)
            features |= self.get(0x010) << 32 * group
        return features

    def accept(self, features: int) -> bool:
        """Everything up to FEATURES_OK; whether the device agrees."""
        for status in (0, 1, 3):
            self.put(0x070, status)
        for group in (0, 1):
            self.put(0x024, group)
            self.put(0x020, features >> 32 * group & 0xFFFF_FFFF)
        self.put(0x070, 11)
        return self.get(0x070) == 11

    def set_up(self, sizes: Sequence[int], features: int | None = None, base: int = 0x1000) -> list[Queue]:
        """What a driver's probe does; queues lie one behind the other from `base` on."""
        assert self.accept(self.offered() if features is None else features)
        self.queues = []
        for index, size in enumerate(sizes):
            self.put(0x030, index)
            assert self.get(0x044) == 0
            assert self.get(0x034) >= size
            queue = Queue(self, index, size, base + index * 0x4000)
            self.memory.write(queue.descriptors, bytes(0x4000))
            self.put(0x038, size)
            for offset, gpa in ((0x080, queue.descriptors), (0x090, queue.driver), (0x0A0, queue.device)):
                self.put(offset, gpa & 0xFFFF_FFFF)
                self.put(offset + 4, gpa >> 32)
            self.put(0x044, 1)
            assert self.get(0x044) == 1
            self.queues.append(queue)
        self.put(0x070, 15)
        assert self.get(0x070) == 15
        return self.queues

    def acknowledge(self) -> int:
        """The interrupt handler: the reasons."""
        reasons = self.get(0x060)
        assert self.line.level == bool(reasons)
        self.put(0x064, reasons)
        assert not self.line.level
        return reasons

    def copy_into(self, other: Guest) -> None:
        """Snapshot this machine and restore it as the other one."""
        other.memory.data[:] = self.memory.data
        other.mmio.load_state(json.loads(json.dumps(self.mmio.state())))
        for mine in self.queues:
            queue = Queue(other, mine.index, mine.size, mine.descriptors)
            queue.free, queue.available, queue.seen = mine.free, mine.available, mine.seen
            other.queues.append(queue)
