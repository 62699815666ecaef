"""The virtio network device. Source: VIRTIO 1.1, section 5.1.

Queue 0 has buffers for frames that come in, queue 1 frames to send; each frame has a header of 12 bytes before it,
which without offloads says nothing but that a frame has one buffer. There is no control queue, so that the device gives
its driver all frames, whatever their address.

Frames leave at the speed of the cable: some in one go, the next ones when these have passed.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from emu.devices.device import Clock, GuestMemory
from emu.devices.network import LONGEST, Cable, time_on_cable
from emu.devices.virtio import Chain, VirtioDevice, split, total

F_MAC, F_STATUS = 1 << 5, 1 << 16  # config: address; link
RECEIVE, TRANSMIT = 0, 1  # queues
HEADER = struct.Struct("<BBHHHHH")  # flags, GSO type, header length, GSO size, checksum's start and place, buffers
CONFIG = struct.Struct("<6sH")  # address, status
LINK_UP = 1
SERVICE_NS = 2_000  # from a notification until the device has looked
MOST_FRAMES = 32  # in one go
IDLE = -1


class VirtioNet(VirtioDevice):
    """A card with the address ``mac``, 6 bytes, on ``cable``."""

    DEVICE_ID: ClassVar[int] = 1
    FEATURES: ClassVar[int] = F_MAC | F_STATUS
    QUEUES: ClassVar[tuple[int, ...]] = (256, 256)
    STATE: ClassVar[tuple[str, ...]] = ("due",)

    def __init__(self, memory: GuestMemory, clock: Clock, cable: Cable, mac: bytes) -> None:
        super().__init__(memory)
        self._clock = clock
        self._cable = cable
        self._mac = mac
        self.due = IDLE  # virtual time in ns of the next frames to send
        cable.plug_in(self)

    def config(self) -> bytes:
        return CONFIG.pack(self._mac, LINK_UP if self._cable.connected else 0)

    def reset(self) -> None:
        self.due = IDLE
        self._cable.forget()

    def process(self, index: int) -> bool:
        """The driver has notified: frames to send wait their turn, those that have come may have a buffer now."""
        if index == TRANSMIT:
            if self.due == IDLE:
                self.due = self._clock() + SERVICE_NS
        else:
            self._cable.feed(self._clock())
        return False

    def deadline(self) -> int | None:
        return self.due if self.due != IDLE else None

    def tick(self, now_ns: int) -> None:
        if self.due != IDLE and self.due <= now_ns:
            self.due = IDLE
            self.carefully(TRANSMIT, lambda: self._transmit(now_ns))

    def receive(self, frame: bytes, now_ns: int) -> bool:
        """A frame from the cable: whether it is done with. Without a driver it is."""
        if not self.live or not self.queues[RECEIVE].ready:
            return True
        return self.carefully(RECEIVE, lambda: self._store(frame)) or not self.live

    def _store(self, frame: bytes) -> bool:
        chain = self.queues[RECEIVE].pop()
        if chain is None:
            return False
        data = HEADER.pack(0, 0, 0, 0, 0, 0, 1) + frame
        fits = len(data) <= total(chain.writable)  # else the frame is lost
        written = self.memory.scatter(chain.writable, data) if fits else 0
        self.queues[RECEIVE].push(chain.head, written)
        return True

    def _transmit(self, now_ns: int) -> bool:
        """Send what there is, some frames at most; the rest when these have passed."""
        queue, passed = self.queues[TRANSMIT], 0
        for count in range(MOST_FRAMES):
            chain = queue.pop()
            if chain is None:
                return count > 0
            passed += self._send(chain, now_ns)
            queue.push(chain.head, 0)
        self.due = now_ns + passed
        return True

    def _send(self, chain: Chain, now_ns: int) -> int:
        """Send a frame; the ns that it takes."""
        frame = b""
        if HEADER.size < total(chain.readable) <= HEADER.size + LONGEST:
            frame = self.memory.gather(split(chain.readable, HEADER.size)[1])
            self._cable.send(frame, now_ns)
        return time_on_cable(frame)
