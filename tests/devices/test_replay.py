"""Frames from a file, at their times."""

from __future__ import annotations

from emu.devices.network import Cable
from emu.devices.pcap import Packet
from emu.devices.replay import Replay
from tests.devices.network_guest import MAC, OTHER, Taker, frame


def played(*packets: Packet) -> list[tuple[int, bytes]]:
    cable = Cable(Replay(packets, MAC))
    card = Taker(cable)
    while (due := cable.deadline()) is not None:
        cable.tick(due)
    return card.taken


def test_what_came_in_comes_in_at_the_same_time() -> None:
    incoming, outgoing = frame(payload=b"in" * 30), frame(OTHER, MAC)
    packets = [Packet(5, True, outgoing), Packet(1000, False, incoming), Packet(1001, False, frame(MAC, MAC))]
    assert played(*packets) == [(1000, incoming), (1001, frame(MAC, MAC))]


def test_without_directions_the_card_s_own_frames_are_left_out_and_time_begins_with_the_file() -> None:
    epoch = 1_700_000_000 * 10**9
    packets = [Packet(epoch, None, frame(OTHER, MAC)), Packet(epoch + 70, None, frame()), Packet(epoch + 90, None, b"")]
    assert played(*packets) == [(70, frame())]


def test_frames_at_one_time_keep_their_order() -> None:
    packets = [Packet(10, False, frame(payload=bytes((number,)) * 60)) for number in range(100)]
    assert [data[14] for _, data in played(*packets)] == list(range(100))


def test_what_the_guest_sends_goes_nowhere() -> None:
    cable = Cable(Replay([], MAC))
    assert cable.connected
    cable.send(frame(), 3)
    assert cable.deadline() is None
