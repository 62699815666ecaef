"""The virtio console with one port. Source: VIRTIO 1.1, section 5.3.

Queue 0 has buffers for what is typed, queue 1 what the guest prints. Nothing is lost: input waits for buffers.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import GuestMemory, Sink
from emu.devices.virtio import Chain, VirtioDevice, total

RECEIVE, TRANSMIT = 0, 1  # queues
CONFIG_SIZE = 12  # bytes: columns, rows, ports, emergency write; all zero without their features


class VirtioConsole(VirtioDevice):
    """A console. What the guest prints goes to ``sink``; ``offer`` is the keyboard."""

    DEVICE_ID: ClassVar[int] = 3
    QUEUES: ClassVar[tuple[int, ...]] = (128, 128)
    STATE: ClassVar[tuple[str, ...]] = ("offered",)

    def __init__(self, memory: GuestMemory, sink: Sink) -> None:
        super().__init__(memory)
        self._sink = sink
        self.offered: list[int] = []  # input without a buffer yet

    def offer(self, data: bytes) -> None:
        """Input for the guest. It gets it as soon as it has buffers."""
        self.offered += data
        self.notify(RECEIVE)

    def config(self) -> bytes:
        return bytes(CONFIG_SIZE)

    def process(self, index: int) -> bool:
        if index == TRANSMIT:
            return super().process(index)
        used = False
        while self.offered:
            chain = next(self.chains(RECEIVE), None)
            if chain is None:
                break
            data = bytes(self.offered[: total(chain.writable)])
            self.memory.scatter(chain.writable, data)
            self.queues[RECEIVE].push(chain.head, len(data))
            del self.offered[: len(data)]
            used = True
        return used

    def handle(self, index: int, chain: Chain) -> int:
        self._sink(self.memory.gather(chain.readable))
        return 0
