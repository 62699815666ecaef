"""The cable between a network card and what it is plugged into.

Frames are Ethernet frames (IEEE 802.3, clause 3) from the destination address on, without preamble and without FCS. A
card sends through its :class:`Cable`; a :class:`Network` is what answers. Everything happens at virtual times: a frame
from the network takes NS_PER_BYTE for each of its bytes, one frame after the other, and comes to the card at the end.

What the card has no buffers for waits, as in the card's own packet buffer; what that has no room for is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from emu.devices.device import Device, State, check_fields
from emu.units import NEVER

NS_PER_BYTE = 8  # a gigabit a second
OVERHEAD = 24  # bytes that a frame takes on the cable beside its own: preamble, FCS, gap
SHORTEST, LONGEST = 60, 16 << 10  # bytes of a frame that is sent, without FCS; shorter ones are padded
HEADER = 14  # bytes: destination, source, type
BUFFER = 48 << 10  # bytes that wait for the card
IN_FLIGHT = 4 << 20  # bytes that can be on their way to the card
MOST_FRAMES = 64  # that arrive in one tick

Log = Callable[[int, bool, bytes], None]  # virtual time in ns, whether the card has sent it, the frame


def time_on_cable(frame: bytes) -> int:
    """ns that a frame takes."""
    return (len(frame) + OVERHEAD) * NS_PER_BYTE


class Card(Protocol):
    """What a network card is for its cable."""

    def receive(self, frame: bytes, now_ns: int) -> bool:
        """A frame has come. False when there is no buffer for it yet: it stays, until the card calls ``feed``."""


class Network:
    """What a cable leads to; by default nothing.

    Attributes:
        deliver: set by the cable: takes a frame for the card, which goes on its way at the virtual time given (ns).
        arrive: the same for a frame that is at the card at that time.
        connected: whether the card sees a link.
    """

    connected = False

    def __init__(self) -> None:
        self.deliver: Callable[[bytes, int], None] = lambda frame, now_ns: None
        self.arrive: Callable[[bytes, int], None] = lambda frame, at_ns: None

    def send(self, frame: bytes, now_ns: int) -> None:
        """The card has sent a frame."""

    def deadline(self) -> int | None:
        """Virtual time in ns at which ``tick`` has something to do."""
        return None

    def tick(self, now_ns: int) -> None:
        """Bring the network to virtual time ``now_ns``."""

    def remarks(self) -> list[str]:
        """What the user should know at the end of a run, each a sentence without a full stop."""
        return []

    def close(self) -> None:
        """Let go of what it has of the host."""


class Cable(Device):
    """From a card to a network.

    Args:
        network: at its far end.
        log: gets every frame.

    Attributes:
        lost: frames for which the card had no room.
    """

    def __init__(self, network: Network, log: Log | None = None) -> None:
        self.network = network
        self.lost = 0
        self._log = log
        self._card: Card | None = None
        self._coming: deque[tuple[int, bytes]] = deque()  # when each arrives
        self._waiting: deque[bytes] = deque()  # arrived, without a buffer of the guest
        self._coming_bytes = self._waiting_bytes = 0
        self._free_at = 0  # when the last of them has passed
        network.deliver, network.arrive = self._deliver, self._arrive

    @property
    def connected(self) -> bool:
        """Whether there is a link."""
        return self.network.connected

    def plug_in(self, card: Card) -> None:
        """Whose cable it is."""
        self._card = card

    def send(self, frame: bytes, now_ns: int) -> None:
        """The card sends a frame; what is no frame is not sent."""
        if not HEADER <= len(frame) <= LONGEST or not self.connected:
            return
        frame = frame.ljust(SHORTEST, b"\0")
        if self._log is not None:
            self._log(now_ns, True, frame)
        self.network.send(frame, now_ns)

    def feed(self, now_ns: int) -> None:
        """The card may have buffers for frames that wait."""
        while self._waiting and self._card is not None and self._card.receive(self._waiting[0], now_ns):
            self._waiting_bytes -= len(self._waiting.popleft())

    def forget(self) -> None:
        """The card has been reset: what waits in its packet buffer is lost."""
        self._waiting.clear()
        self._waiting_bytes = 0

    def deadline(self) -> int | None:
        due = self.network.deadline()
        if self._coming:
            due = min(self._coming[0][0], NEVER if due is None else due)
        return due

    def tick(self, now_ns: int) -> None:
        due = self.network.deadline()
        if due is not None and due <= now_ns:
            self.network.tick(now_ns)
        for _ in range(MOST_FRAMES):
            if not self._coming or self._coming[0][0] > now_ns:
                break
            at, frame = self._coming.popleft()
            self._coming_bytes -= len(frame)
            if self._log is not None:
                self._log(at, False, frame)
            if self._waiting_bytes + len(frame) > BUFFER:
                self.lost += 1
                continue
            self._waiting.append(frame)
            self._waiting_bytes += len(frame)
            self.feed(now_ns)

    def state(self) -> State:
        """Of the cable; the network has none, as the world outside has none."""
        return {
            "lost": self.lost,
            "coming": [[at, frame.hex()] for at, frame in self._coming],
            "waiting": [frame.hex() for frame in self._waiting],
            "free_at": self._free_at,
        }

    def load_state(self, state: State) -> None:
        check_fields("Cable", state, ("lost", "coming", "waiting", "free_at"))
        self.lost, self._free_at = state["lost"], state["free_at"]
        self._coming = deque((at, bytes.fromhex(frame)) for at, frame in state["coming"])
        self._waiting = deque(bytes.fromhex(frame) for frame in state["waiting"])
        self._coming_bytes = sum(len(frame) for _, frame in self._coming)
        self._waiting_bytes = sum(map(len, self._waiting))

    def _deliver(self, frame: bytes, now_ns: int) -> None:
        """The network sends a frame to the card."""
        if self._coming_bytes + len(frame) > IN_FLIGHT:
            self.lost += 1
            return
        self._free_at = max(self._free_at, now_ns) + time_on_cable(frame)
        self._arrive(frame, self._free_at)

    def _arrive(self, frame: bytes, at_ns: int) -> None:
        if HEADER <= len(frame) <= LONGEST:
            self._coming.append((at_ns, frame))
            self._coming_bytes += len(frame)
