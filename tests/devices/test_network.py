"""The cable: times, what waits, what is lost."""

from __future__ import annotations

import json

from emu.devices.network import BUFFER, IN_FLIGHT, MOST_FRAMES, NS_PER_BYTE, OVERHEAD, Cable, Network
from tests.devices.network_guest import Recorder, Taker, frame


def test_what_the_card_sends_is_padded_and_logged() -> None:
    network, log = Recorder(), []
    cable = Cable(network, lambda *entry: log.append(entry))
    cable.send(frame(payload=b"abc"), 7)
    [(time, sent)] = network.sent
    assert (time, len(sent), sent[14:17], sent[17:]) == (7, 60, b"abc", bytes(43))
    assert log == [(7, True, sent)]
    cable.send(b"short", 8)
    cable.send(bytes(1 << 20), 8)
    assert len(network.sent) == 1


def test_frames_come_one_after_the_other_at_the_speed_of_the_cable() -> None:
    network, log = Recorder(), []
    cable = Cable(network, lambda *entry: log.append(entry))
    card = Taker(cable)
    for number in range(3):
        network.deliver(frame(payload=bytes((number,)) * 86), 1000)
    step = (100 + OVERHEAD) * NS_PER_BYTE
    times = []
    while (due := cable.deadline()) is not None:
        cable.tick(due - 1)
        cable.tick(due)
        times.append(due)
    assert times == [1000 + step, 1000 + 2 * step, 1000 + 3 * step]
    assert [(time, data[14]) for time, data in card.taken] == list(zip(times, range(3), strict=True))
    assert [(time, outbound) for time, outbound, _ in log] == [(time, False) for time in times]


def test_a_frame_without_a_buffer_waits_until_the_card_has_one() -> None:
    network = Recorder()
    cable = Cable(network)
    card = Taker(cable, buffers=1)
    network.deliver(frame(payload=b"1" * 50), 0)
    network.deliver(frame(payload=b"2" * 50), 0)
    cable.tick(1_000_000)
    assert [data[14:15] for _, data in card.taken] == [b"1"]
    assert cable.deadline() is None
    card.buffers = 5
    cable.feed(2_000_000)
    assert [data[14:15] for _, data in card.taken] == [b"1", b"2"]


def test_what_has_no_room_is_lost_and_counted() -> None:
    network = Recorder()
    cable = Cable(network)
    card = Taker(cable, buffers=0)
    for _ in range(64):
        network.deliver(frame(payload=bytes(1500)), 0)
    cable.tick(10**9)
    kept = BUFFER // 1514
    assert cable.lost == 64 - kept
    card.buffers = 1000
    cable.feed(10**9)
    assert len(card.taken) == kept
    for _ in range(IN_FLIGHT // 1514 + 10):
        network.deliver(frame(payload=bytes(1500)), 10**9)
    assert cable.lost == 64 - kept + 10


def test_a_tick_delivers_a_bounded_number() -> None:
    network = Recorder()
    cable = Cable(network)
    card = Taker(cable)
    for _ in range(MOST_FRAMES + 5):
        network.deliver(frame(), 0)
    cable.tick(10**9)
    assert len(card.taken) == MOST_FRAMES
    due = cable.deadline()
    assert due is not None and due < 10**9
    cable.tick(10**9)
    assert len(card.taken) == MOST_FRAMES + 5


def test_nothing_is_sent_into_a_cable_that_leads_nowhere() -> None:
    cable = Cable(Network())
    cable.send(frame(), 0)
    assert not cable.connected
    assert cable.deadline() is None


def test_state_survives_json() -> None:
    networks = Recorder(), Recorder()
    cable, other = Cable(networks[0]), Cable(networks[1])
    Taker(cable, buffers=0)
    networks[0].deliver(frame(payload=b"a" * 50), 0)
    cable.tick(10_000)
    networks[0].deliver(frame(payload=b"b" * 50), 10_000)
    other.load_state(json.loads(json.dumps(cable.state())))
    card = Taker(other)
    other.feed(20_000)
    due = other.deadline()
    assert due == cable.deadline() and due is not None
    other.tick(due)
    assert [data[14:15] for _, data in card.taken] == [b"a", b"b"]
