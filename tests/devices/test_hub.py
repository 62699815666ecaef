"""Ports of a hub, with clocks of their own."""

from __future__ import annotations

from emu.devices.hub import Hub, HubPort
from emu.devices.network import Cable
from tests.devices.network_guest import Taker, frame


class Machine:
    def __init__(self, hub: Hub, now: int = 0) -> None:
        self.port = HubPort("lan")
        self.cable = Cable(self.port)
        self.card = Taker(self.cable)
        hub.join(self.port, now)

    def heard(self, until: int) -> list[tuple[int, int]]:
        """Time of its own, and first byte of the contents, of what has come."""
        while (due := self.cable.deadline()) is not None and due <= until:
            self.cable.tick(due)
        return [(time, data[14]) for time, data in self.card.taken]


TAKES = (60 + 24) * 8  # ns of a short frame on its way


def say(what: int) -> bytes:
    return frame(payload=bytes((what,)) * 46)


def test_all_others_hear_it_in_the_next_round_whoever_had_its_turn_first() -> None:
    hub = Hub()
    first, second, third = (Machine(hub) for _ in range(3))
    third.cable.send(say(3), 700)
    first.cable.send(say(1), 900)
    first.cable.send(say(2), 950)
    hub.exchange(1000)
    assert second.heard(10_000) == [(1000 + TAKES, 3), (1000 + 2 * TAKES, 1), (1000 + 3 * TAKES, 2)]
    assert first.heard(10_000) == [(1000 + TAKES, 3)]
    assert third.heard(10_000) == [(1000 + TAKES, 1), (1000 + 2 * TAKES, 2)]
    hub.exchange(2000)
    assert first.cable.deadline() is None


def test_a_late_machine_has_a_clock_of_its_own() -> None:
    hub = Hub()
    first = Machine(hub)
    late = Machine(hub, now=5000)
    first.cable.send(say(1), 5500)
    late.cable.send(say(2), 400)
    hub.exchange(6000)
    assert late.heard(10_000) == [(1000 + TAKES, 1)]
    assert first.heard(10_000) == [(6000 + TAKES, 2)]


def test_what_a_machine_sent_before_its_end_goes_on() -> None:
    hub = Hub()
    first, second = Machine(hub), Machine(hub)
    first.cable.send(say(1), 10)
    first.port.close()
    second.cable.send(say(2), 20)
    hub.exchange(1000)
    assert second.heard(10_000) == [(1000 + TAKES, 1)]
    assert first.heard(10_000) == [] and hub.ports == [second.port]
