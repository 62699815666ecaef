"""Virtio devices and their queues. Source: Virtual I/O Device (VIRTIO) Version 1.1, OASIS; split virtqueues, 2.6.

A queue of size N lies in guest memory in three parts, little-endian:
    descriptors  N times  u64 gpa, u32 length, u16 flags, u16 next
    driver area  u16 flags, u16 index, N times u16 head: chains that the driver made available
    device area  u16 flags, u16 index, N times (u32 head, u32 written): chains that the device has used
Indices count up and wrap at 65536; entry n is at n modulo N. A chain is first what the device reads, then what it
writes; how the driver cut it into pieces means nothing (2.6.4).

What a device moves is limited (:mod:`emu.devices.bandwidth`): a long request is carried out in parts.

A driver that breaks these rules gets no guess: the device stops and asks to be reset (2.1.1). Out-of-range addresses
count as that if the guest memory raises IndexError for them; memory that has holes is as good.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, NamedTuple

from emu.devices.bandwidth import Bandwidth
from emu.devices.device import Device, GuestMemory, State, check_fields

Piece = tuple[int, int]  # gpa and bytes

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 0x40, 0x80  # device status
F_INDIRECT = 1 << 28  # a descriptor may stand for a table of them
F_VERSION_1 = 1 << 32  # not a legacy device
COMMON_FEATURES = F_INDIRECT | F_VERSION_1

QUEUE_INTERRUPT, CONFIG_INTERRUPT = 1, 2  # what a device signals

NEXT, WRITE, INDIRECT = 1, 2, 4  # descriptor flags
NO_INTERRUPT = 1  # driver area flag
MAX_CHAIN = 1 << 27  # bytes in one chain: Linux reports 32 free blocks of 4 MiB in one, no driver makes larger ones
INDEX_MASK = 0xFFFF
CHAIN_COST = 4096  # bytes that looking at a chain counts as

DESCRIPTOR = struct.Struct("<QIHH")
USED = struct.Struct("<II")
U16 = struct.Struct("<H")


class DriverError(Exception):
    """The driver broke the rules of virtio; the device must be reset."""


class Chain(NamedTuple):
    """One request: what the device reads, what it writes, and the number it goes by."""

    head: int
    readable: list[Piece]
    writable: list[Piece]


class Part(NamedTuple):
    """What has been done of a request in one go."""

    moved: int  # in the unit in which the device counts
    cost: int  # bytes that it counts as
    written: int | None  # the request is done, and so many bytes of its writable part were set; None: it is not


def total(pieces: Iterable[Piece]) -> int:
    """Bytes in ``pieces``."""
    return sum(size for _, size in pieces)


def split(pieces: Iterable[Piece], at: int) -> tuple[list[Piece], list[Piece]]:
    """The first ``at`` bytes, or fewer if there are no more, and the rest."""
    head: list[Piece] = []
    tail: list[Piece] = []
    for gpa, size in pieces:
        first = min(size, at)
        at -= first
        if first:
            head.append((gpa, first))
        if size > first:
            tail.append((gpa + first, size - first))
    return head, tail


def section(pieces: Iterable[Piece], begin: int, size: int) -> list[Piece]:
    """``size`` bytes from the one with number ``begin`` on, or fewer if there are no more."""
    return split(split(pieces, begin)[1], size)[0]


class Dma:
    """Guest memory, as a device reaches it. Raises DriverError where there is none."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def load(self, gpa: int, size: int) -> bytes:
        """``size`` bytes."""
        try:
            return self._memory.read(gpa, size)
        except IndexError as error:
            raise DriverError(str(error)) from None

    def store(self, gpa: int, data: bytes) -> None:
        """Write ``data``."""
        try:
            self._memory.write(gpa, data)
        except IndexError as error:
            raise DriverError(str(error)) from None

    def gather(self, pieces: list[Piece]) -> bytes:
        """The contents of ``pieces``."""
        if len(pieces) == 1:
            return self.load(*pieces[0])
        return b"".join(self.load(gpa, size) for gpa, size in pieces)

    def scatter(self, pieces: Iterable[Piece], data: bytes) -> int:
        """Write as much of ``data`` as fits into ``pieces``; how much that was."""
        done = 0
        for gpa, size in pieces:
            if done >= len(data):
                break
            piece = data if not done and size >= len(data) else data[done : done + size]
            self.store(gpa, piece)
            done += len(piece)
        return done


class Virtqueue(Device):
    """One split virtqueue of at most ``maximum`` entries. Not ready until the driver says so.

    Attributes:
        open: the chain that is being carried out; None when there is none.
        moved: how far.
        waits: there is more to do than could be done.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "size", "ready", "descriptors", "driver_area", "device_area", "next_available", "next_used", "moved", "waits",
    )  # fmt: skip

    def __init__(self, memory: Dma, maximum: int) -> None:
        self._memory = memory
        self.maximum = maximum
        self.reset()

    def reset(self) -> None:
        """As before the driver touched it."""
        self.size = self.maximum
        self.ready = False
        self.descriptors = self.driver_area = self.device_area = 0  # gpas
        self.next_available = 0  # index of the next chain to take
        self.next_used = 0  # index of the next chain to give back
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.open: Chain | None = None
        self.moved = 0
        self.waits = False

    def state(self) -> State:
        chain = None if self.open is None else [self.open.head, list(map(list, self.open.readable)),
                                                list(map(list, self.open.writable))]  # fmt: skip
        return super().state() | {"open": chain}

    def load_state(self, state: State) -> None:
        check_fields("Virtqueue", state, (*self.STATE, "open"))
        super().load_state({name: state[name] for name in self.STATE})
        self.open = None
        if state["open"] is not None:
            head, *pieces = state["open"]
            self.open = Chain(head, *([(gpa, size) for gpa, size in part] for part in pieces))

    def set_ready(self, ready: bool) -> None:
        """Take it into use, from its first entry on. Refused, so that it stays not ready, when what the driver
        programmed makes no queue."""
        self.next_available = self.next_used = 0
        self._begin_anew()
        size_is_good = 0 < self.size <= self.maximum and not self.size & (self.size - 1)
        aligned = not (self.descriptors & 15 or self.driver_area & 1 or self.device_area & 3)
        self.ready = ready and size_is_good and aligned

    def pop(self) -> Chain | None:
        """The next available chain; None when there is none. Raises DriverError when it makes no sense."""
        ring = self._memory.load(self.driver_area, 4 + 2 * self.size)
        waiting = U16.unpack_from(ring, 2)[0] - self.next_available & INDEX_MASK
        if not waiting:
            return None
        if waiting > self.size:
            raise DriverError(f"{waiting} chains in a queue of {self.size}")
        head: int = U16.unpack_from(ring, 4 + 2 * (self.next_available % self.size))[0]
        self.next_available = self.next_available + 1 & INDEX_MASK
        return self._chain(head)

    def push(self, head: int, written: int) -> None:
        """Give a chain back, the first ``written`` bytes of whose writable part the device has set."""
        entry = self.device_area + 4 + USED.size * (self.next_used % self.size)
        self._memory.store(entry, USED.pack(head, written))
        self.next_used = self.next_used + 1 & INDEX_MASK
        self._memory.store(self.device_area + 2, U16.pack(self.next_used))

    def wants_interrupt(self) -> bool:
        """Whether the driver waits to be told of used chains."""
        return not U16.unpack(self._memory.load(self.driver_area, 2))[0] & NO_INTERRUPT

    def _chain(self, head: int) -> Chain:
        table = self._memory.load(self.descriptors, DESCRIPTOR.size * self.size)
        number, limit, indirect = head, self.size, False
        readable: list[Piece] = []
        writable: list[Piece] = []
        end, size = -1, 0
        for _ in range(2 * self.size):  # the indirect table has its own numbers; a loop is longer than this
            if number >= limit:
                raise DriverError(f"descriptor {number} of {limit}")
            gpa, length, flags, following = DESCRIPTOR.unpack_from(table, DESCRIPTOR.size * number)
            if flags & INDIRECT:
                limit, odd = divmod(length, DESCRIPTOR.size)
                if indirect or odd or flags & NEXT or not 0 < limit <= self.size:
                    raise DriverError("a bad indirect table")
                table, number, indirect = self._memory.load(gpa, length), 0, True
                continue
            size += length
            if size > MAX_CHAIN:
                raise DriverError("a chain of more than 128 MiB")
            pieces = writable if flags & WRITE else readable
            if pieces is readable and writable:
                raise DriverError("a readable piece behind a writable one")
            if gpa == end and pieces:  # what lies together is moved together
                pieces[-1] = (pieces[-1][0], pieces[-1][1] + length)
            elif length:
                pieces.append((gpa, length))
            end = gpa + length
            if not flags & NEXT:
                return Chain(head, readable, writable)
            number = following
        raise DriverError("a chain that does not end")


class VirtioDevice:
    """Base of all virtio devices: status, features, queues. A transport gives it registers.

    A subclass sets DEVICE_ID, FEATURES (beyond COMMON_FEATURES), QUEUES (their maximum sizes) and STATE, and gives
    ``handle``; ``part`` where a request can be long; ``process`` where chains are not used as they come.

    Attributes:
        on_signal: set by the transport; gets QUEUE_INTERRUPT or CONFIG_INTERRUPT.
        bandwidth: set by the machine; by default nothing is limited.
    """

    DEVICE_ID: ClassVar[int]
    FEATURES: ClassVar[int] = 0
    QUEUES: ClassVar[tuple[int, ...]]
    STATE: ClassVar[tuple[str, ...]] = ()

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = Dma(memory)
        self.queues = [Virtqueue(self.memory, maximum) for maximum in self.QUEUES]
        self.on_signal: Callable[[int], None] = lambda reason: None
        self.bandwidth = Bandwidth()
        self.status = 0
        self.driver_features = 0  # those that the driver accepted

    @property
    def features(self) -> int:
        """What the device offers."""
        return self.FEATURES | COMMON_FEATURES

    @property
    def live(self) -> bool:
        """Whether the driver has set it up and it works."""
        wanted = DRIVER_OK | FEATURES_OK
        return self.status & (wanted | NEEDS_RESET | FAILED) == wanted

    def set_status(self, value: int) -> None:
        """The driver writes the status: 0 resets; FEATURES_OK stays clear unless the features fit (3.1.1)."""
        if value == 0:
            self.status = self.driver_features = 0
            for queue in self.queues:
                queue.reset()
            self.reset()
            return
        fits = self.driver_features & F_VERSION_1 and not self.driver_features & ~self.features
        if value & FEATURES_OK and not self.status & FEATURES_OK and not fits:
            value &= ~FEATURES_OK
        was_live = self.live
        self.status = value & 0xFF | self.status & NEEDS_RESET
        if self.live and not was_live:
            for index in range(len(self.queues)):
                self.notify(index)

    def notify(self, index: int) -> None:
        """Look after a queue: the driver made chains available, or the device has something for it."""
        if self.live and index < len(self.queues) and self.queues[index].ready:
            self.carefully(index, lambda: self.process(index))

    def carefully(self, index: int, use: Callable[[], bool]) -> bool:
        """Have ``use`` work on a queue that is ready; the result is its own, which says whether a chain was given back.

        The driver is told of that; where it has broken the rules the device stops, and the result is False.
        """
        try:
            used = use()
            if used and self.queues[index].wants_interrupt():
                self.on_signal(QUEUE_INTERRUPT)
            return used
        except DriverError:
            self.status |= NEEDS_RESET
            self.on_signal(CONFIG_INTERRUPT)
            return False

    def go_on(self) -> None:
        """Go on with what had to wait for the bus."""
        for index, queue in enumerate(self.queues):
            if queue.waits:
                queue.waits = False
                self.notify(index)

    def process(self, index: int) -> bool:
        """Use chains of a queue; whether any was given back."""
        queue, used = self.queues[index], False
        for chain in self.chains(index):
            part = self.part(index, chain, queue.moved, self.bandwidth.left)
            self.bandwidth.charge(part.cost)
            queue.moved += part.moved
            if part.written is not None:
                queue.open, queue.moved = None, 0
                queue.push(chain.head, part.written)
                used = True
        return used

    def chains(self, index: int) -> Iterator[Chain]:
        """The chains of a queue that can be looked at now, an open one again and again, at most as many as it has
        entries: a driver may have the device write into the very queue, and so without end."""
        queue, count = self.queues[index], 0
        while True:
            if self.bandwidth.left <= 0:
                queue.waits = True
                self.bandwidth.wait()
                return
            if queue.open is None:
                queue.open = queue.pop() if count < queue.size else None
                if queue.open is None:
                    return
                count += 1
                self.bandwidth.charge(CHAIN_COST)
            yield queue.open

    def part(self, index: int, chain: Chain, moved: int, most: int) -> Part:
        """Carry out the next part of a chain of queue ``index``, of which ``moved`` has been moved; by default all.

        Args:
            most: bytes that it should count as at most; at least one unit is moved in any case.
        """
        written = self.handle(index, chain)
        return Part(0, total(chain.readable) + written, written)

    def handle(self, index: int, chain: Chain) -> int:
        """Carry out a whole chain of queue ``index``; how many bytes of its writable part were set."""
        raise NotImplementedError

    def config(self) -> bytes:
        """The device's configuration space."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes the configuration space; by default nothing in it can be written."""

    def reset(self) -> None:
        """Forget what the driver told; what the outside told stays."""

    def state(self) -> State:
        """As of a Device; the transport's registers are not in it."""
        own = {name: getattr(self, name) for name in self.STATE}
        return {
            "status": self.status,
            "driver_features": self.driver_features,
            "queues": [queue.state() for queue in self.queues],
            "own": {name: list(value) if isinstance(value, list) else value for name, value in own.items()},
        }

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Raises BadInput when the fields are not those of this device."""
        check_fields(type(self).__name__, state, ("status", "driver_features", "queues", "own"))
        check_fields(type(self).__name__, state["own"], self.STATE)
        self.status = state["status"]
        self.driver_features = state["driver_features"]
        for queue, saved in zip(self.queues, state["queues"], strict=True):
            queue.load_state(saved)
        for name, value in state["own"].items():
            setattr(self, name, list(value) if isinstance(value, list) else value)
