"""The virtio entropy device. Source: VIRTIO 1.1, section 5.4.

A run must be repeatable, so the bytes are none of the host's randomness: request n gets SHAKE-128 of the seed and n.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

from emu.devices.device import GuestMemory
from emu.devices.virtio import Chain, VirtioDevice, total

LONGEST = 0x10000  # bytes for one request; the device may give fewer than asked for


class VirtioRng(VirtioDevice):
    """One queue of buffers to fill. The same ``seed`` gives the same bytes in every run."""

    DEVICE_ID: ClassVar[int] = 4
    QUEUES: ClassVar[tuple[int, ...]] = (8,)
    STATE: ClassVar[tuple[str, ...]] = ("requests",)

    def __init__(self, memory: GuestMemory, seed: bytes = b"") -> None:
        super().__init__(memory)
        self._seed = seed
        self.requests = 0  # how many were served

    def handle(self, index: int, chain: Chain) -> int:
        number = self.requests.to_bytes(8, "little")
        self.requests += 1
        wanted = min(total(chain.writable), LONGEST)
        return self.memory.scatter(chain.writable, hashlib.shake_128(number + self._seed).digest(wanted))
