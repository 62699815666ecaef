"""A hub: what one card sends comes to the cards at all other ports, as on the coaxial cable that it took the place of.

The VMs of a fleet take turns, and each has a clock of its own. So that nobody hears of something before its own time,
what is sent in one round comes to the others at the beginning of the next one: a frame is a quantum of the fleet on its
way, at the most, and the order of the turns does not matter. Frames go on in the order of their times, those of one
time in the order of the ports.
"""

from __future__ import annotations

from emu.devices.network import Network


class HubPort(Network):
    """A port of the hub ``name``. Alone it leads to nobody.

    Attributes:
        started: time of the fleet in ns at which its VM's clock was 0.
        sent: frames that have not gone on, with the fleet's time.
        closed: its VM is no more; what it has sent still goes on.
    """

    connected = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.started = 0
        self.sent: list[tuple[int, bytes]] = []
        self.closed = False

    def send(self, frame: bytes, now_ns: int) -> None:
        self.sent.append((self.started + now_ns, frame))

    def close(self) -> None:
        self.closed = True


class Hub:
    """The ports that have been joined, in their order."""

    def __init__(self) -> None:
        self.ports: list[HubPort] = []

    def join(self, port: HubPort, now_ns: int) -> None:
        """One more port, whose VM starts at ``now_ns`` of the fleet's time."""
        port.started = now_ns
        self.ports.append(port)

    def exchange(self, now_ns: int) -> None:
        """Let what was sent go on to the other ports, from ``now_ns`` of the fleet's time on."""
        sent = [(time, number, frame) for number, port in enumerate(self.ports) for time, frame in port.sent]
        for time, number, frame in sorted(sent, key=lambda entry: entry[:2]):
            for other, port in enumerate(self.ports):
                if other != number and not port.closed:
                    port.deliver(frame, max(now_ns, time) - port.started)
        for port in self.ports:
            port.sent.clear()
        self.ports = [port for port in self.ports if not port.closed]
