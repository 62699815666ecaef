"""A network that repeats what once came from another one: the frames of a file, at the virtual times that stand there.

A file that says for each packet whether the card has sent or got it (:mod:`emu.devices.pcap`) is taken at its word. In
others, such as tcpdump's, what has the card's address as its source was sent by the card, and time begins with the
first packet. What the guest sends goes nowhere.

A guest with one processor does the same as it did with the network that the file is a log of, event for event. With
several, the looks at the host's sockets have cut their turns, and are not there now.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from emu.devices.network import Network
from emu.devices.pcap import Packet

SOURCE = slice(6, 12)  # of a frame


class Replay(Network):
    """The frames of ``packets``, in the order of their times, that came to the card with the address ``mac``."""

    connected = True

    def __init__(self, packets: Iterable[Packet], mac: bytes) -> None:
        super().__init__()
        all_of_them = list(packets)
        foreign = any(packet.outbound is None for packet in all_of_them)
        first = all_of_them[0].time if foreign else 0
        coming = (packet for packet in all_of_them if not _sent(packet, mac))
        self._packets = deque((packet.time - first, packet.data) for packet in coming)

    def deadline(self) -> int | None:
        return self._packets[0][0] if self._packets else None

    def tick(self, now_ns: int) -> None:
        while self._packets and self._packets[0][0] <= now_ns:
            at, frame = self._packets.popleft()
            self.arrive(frame, at)


def _sent(packet: Packet, mac: bytes) -> bool:
    return packet.data[SOURCE] == mac if packet.outbound is None else packet.outbound
