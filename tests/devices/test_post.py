"""Port 0x80."""

from __future__ import annotations

import json

import pytest

from emu.devices.bus import PortBus
from emu.devices.post import KEPT, PostCodes
from emu.errors import BadInput

PORT = 0x80


def board() -> tuple[PortBus, PostCodes]:
    bus, card = PortBus(), PostCodes()
    bus.register(PORT, 1, card)
    return bus, card


def test_codes_are_kept_in_order_and_the_last_reads_back() -> None:
    bus, card = board()
    assert bus.read(PORT, 1) == 0xFF
    for code in (0x01, 0x13, 0x01):
        bus.write(PORT, 1, code)
    assert (card.codes, bus.read(PORT, 1)) == ([0x01, 0x13, 0x01], 0x01)


def test_delay_writes_do_not_push_out_the_codes() -> None:
    bus, card = board()
    bus.write(PORT, 1, 0x42)
    for _ in range(2 * KEPT):
        bus.write(PORT, 1, 0)
    assert card.codes == [0x42, 0]


def test_only_so_many_are_kept() -> None:
    bus, card = board()
    for code in range(KEPT + 10):
        bus.write(PORT, 1, code & 0xFF)
    assert len(card.codes) == KEPT
    assert card.codes[-1] == (KEPT + 9) & 0xFF
    assert card.codes[0] == 10


def test_state_survives_json() -> None:
    bus, card = board()
    bus.write(PORT, 1, 7)
    other = PostCodes()
    other.load_state(json.loads(json.dumps(card.state())))
    bus.write(PORT, 1, 8)
    assert (other.codes, other.read(0, 1)) == ([7], 7)
    with pytest.raises(BadInput):
        other.load_state({})
