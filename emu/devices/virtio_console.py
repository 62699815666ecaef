"""The virtio console with one port. Source: VIRTIO 1.1, section 5.3.

Queue 0 has buffers for what is typed, queue 1 what the guest prints. Nothing is lost: input waits for buffers.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import GuestMemory, Sink
from emu.devices.virtio import Chain, Part, VirtioDevice, section, total

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
        if self.offered:
            queue = self.queues[RECEIVE]
            for chain in self.chains(RECEIVE):
                data = bytes(self.offered[: total(chain.writable)])
                self.bandwidth.charge(self.memory.scatter(chain.writable, data))
                queue.open = None
                queue.push(chain.head, len(data))
                del self.offered[: len(data)]
                used = True
                if not self.offered:
                    break
        return used

    def part(self, index: int, chain: Chain, moved: int, most: int) -> Part:
        piece = section(chain.readable, moved, most)
        self._sink(self.memory.gather(piece))
        size = total(piece)
        return Part(size, size, 0 if moved + size == total(chain.readable) else None)
