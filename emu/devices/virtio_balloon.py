"""The virtio memory balloon. Source: VIRTIO 1.1, section 5.5; free page reporting: VIRTIO 1.2, 5.5.6.8.

Queues, in this order, the last two only if the driver accepted their features:
    inflate    u32 gfns that the guest does not need any more
    deflate    u32 gfns that it wants back; it tells so before it touches them
    statistics one buffer of (u16 tag, u64 value), which the device gives back when it wants newer ones
    reporting  buffers that are free memory: their contents do not matter until the guest uses them again
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from emu.addr import PAGE_SIZE
from emu.devices.device import GuestMemory
from emu.devices.virtio import CONFIG_INTERRUPT, Chain, Part, VirtioDevice, section, split, total

F_MUST_TELL_HOST = 1 << 0  # deflate is told before pages are used
F_STATS = 1 << 1  # statistics queue
F_REPORTING = 1 << 5  # reporting queue

INFLATE, DEFLATE, STATISTICS, REPORTING = range(4)
STATISTIC = struct.Struct("<HQ")
MOST_STATISTICS = 64  # that are read: Linux has ten
GFN = 4  # bytes of a gfn
GFN_COST = 1024  # bytes that giving up or taking back a page counts as
ACTUAL = 4  # offset in the configuration: pages in the balloon, written by the driver


class VirtioBalloon(VirtioDevice):
    """The balloon. Only told what the guest says: gfns may be of no memory, and may come twice.

    Args:
        memory: the guest's memory.
        inflate: gets gfns whose contents the guest gave up.
        deflate: gets gfns that the guest is about to use again.
        report: gets gfns that the guest does not use at the moment.

    Attributes:
        target: pages that the guest is asked to have in the balloon.
        actual: pages in the balloon, as the driver says.
    """

    DEVICE_ID: ClassVar[int] = 5
    FEATURES: ClassVar[int] = F_MUST_TELL_HOST | F_STATS | F_REPORTING
    QUEUES: ClassVar[tuple[int, ...]] = (128, 128, 128, 128)
    STATE: ClassVar[tuple[str, ...]] = ("target", "actual", "held", "tags", "values")

    def __init__(
        self,
        memory: GuestMemory,
        inflate: Callable[[list[int]], None],
        deflate: Callable[[list[int]], None],
        report: Callable[[list[int]], None],
    ) -> None:
        super().__init__(memory)
        self._inflate = inflate
        self._deflate = deflate
        self._report = report
        self.target = 0
        self.actual = 0
        self.held: int | None = None  # the chain of the statistics buffer
        self.tags: list[int] = []
        self.values: list[int] = []
        self._asked = False  # only within ``ask_for_statistics``

    def set_target(self, pages: int) -> None:
        """Ask the guest to have ``pages`` pages in the balloon."""
        self.target = pages
        if self.live:
            self.on_signal(CONFIG_INTERRUPT)

    @property
    def statistics(self) -> dict[int, int]:
        """The last statistics by tag: 0 and 1 swapped in and out, 4 free, 5 total, 6 available, all in bytes, …"""
        return dict(zip(self.tags, self.values, strict=True))

    def ask_for_statistics(self) -> None:
        """Have the guest send new statistics; nothing happens when it has not sent the last ones yet."""
        if self.held is not None:
            self._asked = True
            self.notify(STATISTICS)
            self._asked = False

    def process(self, index: int) -> bool:
        return self._take_statistics() if self._role(index) == STATISTICS else super().process(index)

    def part(self, index: int, chain: Chain, moved: int, most: int) -> Part:
        role, pages = self._role(index), max(most // GFN_COST, 1)
        if role is None:
            return Part(0, 0, 0)
        if role == REPORTING:
            gfns, left = _free_gfns(chain, moved, pages)
            self._report(gfns)
            return Part(len(gfns), len(gfns) * GFN_COST, None if left else 0)
        data = self.memory.gather(section(chain.readable, moved, pages * GFN))
        gfns = np.frombuffer(data, "<u4", len(data) // GFN).tolist()
        (self._inflate if role == INFLATE else self._deflate)(gfns)
        return Part(len(data), len(gfns) * GFN_COST, 0 if moved + len(data) == total(chain.readable) else None)

    def config(self) -> bytes:
        return struct.pack("<II", self.target, self.actual)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset == ACTUAL and len(data) == 4:
            self.actual = int.from_bytes(data, "little")

    def reset(self) -> None:
        self.actual = 0
        self.held = None
        self.tags, self.values = [], []

    def _role(self, index: int) -> int | None:
        """What a queue is for: queues of features that the driver did not accept leave no gap."""
        roles = [INFLATE, DEFLATE]
        roles += [STATISTICS] * bool(self.driver_features & F_STATS)
        roles += [REPORTING] * bool(self.driver_features & F_REPORTING)
        return roles[index] if index < len(roles) else None

    def _take_statistics(self) -> bool:
        used = False
        for chain in self.chains(STATISTICS):
            used |= self._give_back()  # a driver has but one buffer
            self.held = chain.head
            self.queues[STATISTICS].open = None
            data = self.memory.gather(split(chain.readable, MOST_STATISTICS * STATISTIC.size)[0])
            found = list(STATISTIC.iter_unpack(data[: len(data) // STATISTIC.size * STATISTIC.size]))
            self.tags, self.values = [tag for tag, _ in found], [value for _, value in found]
        return (self._asked and self._give_back()) or used

    def _give_back(self) -> bool:
        if self.held is None:
            return False
        self.queues[STATISTICS].push(self.held, 0)
        self.held = None
        return True


def _free_gfns(chain: Chain, begin: int, count: int) -> tuple[list[int], bool]:
    """``count`` gfns from number ``begin`` on of the whole pages in a chain's buffers; whether there are more."""
    gfns: list[int] = []
    for gpa, size in chain.writable:
        pages = range(-(-gpa // PAGE_SIZE), (gpa + size) // PAGE_SIZE)
        if begin >= len(pages):
            begin -= len(pages)
            continue
        wanted = pages[begin : begin + count - len(gfns)]
        gfns += wanted
        if begin + len(wanted) < len(pages):
            return gfns, True
        begin = 0
    return gfns, False
