"""Keyboard and mouse by themselves; with their controller they are tested in test_i8042.py."""

from __future__ import annotations

import json

import pytest

from emu.devices.ps2 import ACK, QUEUE, RESEND, TO_SET_1, TO_SET_2, Keyboard, Mouse, chord, keys_for, translated
from emu.errors import BadInput


def taken(device: Keyboard | Mouse) -> list[int]:
    values = []
    while device.pending():
        values.append(device.take())
    return values


def test_translation_is_one_to_one_but_for_the_two_high_codes() -> None:
    assert len(TO_SET_1) == len(set(TO_SET_1)) == 0x80
    assert all(translated(TO_SET_2[code]) == code for code in range(1, 0x80))
    assert (TO_SET_2[0x41], TO_SET_2[0x54]) == (0x83, 0x84), "F7 and SysRq"
    assert [translated(value) for value in (0xAA, 0xAB, 0xE0, 0xEE, 0xFA, 0xFE)] == [0xAA, 0xAB, 0xE0, 0xEE, 0xFA, 0xFE]


@pytest.mark.parametrize(
    ("set_2", "set_1"),
    [(0x76, 0x01), (0x16, 0x02), (0x1C, 0x1E), (0x5A, 0x1C), (0x29, 0x39), (0x12, 0x2A), (0x05, 0x3B), (0x78, 0x57)],
)
def test_well_known_keys(set_2: int, set_1: int) -> None:
    """Esc, 1, A, Enter, space, left Shift, F1, F11."""
    assert (translated(set_2), TO_SET_2[set_1]) == (set_1, set_2)


def test_every_printable_character_can_be_typed_by_keys_that_are_released() -> None:
    for character in map(chr, [*range(1, 0x1B), *range(0x1B, 0x1C), *range(0x20, 0x80)]):
        keys = keys_for(character)
        assert sorted(code & 0x7F for code in keys if code & 0x80) == sorted(code for code in keys if not code & 0x80)
    assert len({tuple(keys_for(chr(code))) for code in range(0x20, 0x7F)}) == 0x7F - 0x20
    for character in ("\0", "\x1c", "\x80", "€"):
        with pytest.raises(BadInput):
            keys_for(character)


def test_chord_releases_in_the_opposite_order() -> None:
    assert chord([0x1D, 0xE053]) == [0x1D, 0xE053, 0xE0D3, 0x9D]
    assert chord([]) == []


def test_answers_come_before_scan_codes() -> None:
    keyboard = Keyboard()
    keyboard.key(0xE048)
    assert keyboard.take() == 0xE0
    keyboard.write(0xED)
    assert taken(keyboard) == [ACK, 0x75]


def test_reset_and_defaults_forget() -> None:
    for command, answer, scanning in ((0xFF, [ACK, 0xAA], True), (0xF5, [ACK], False), (0xF6, [ACK], True)):
        keyboard = Keyboard()
        for value in (0xF0, 1, 0xED, 7):
            keyboard.write(value)
        keyboard.key(0x1E)
        keyboard.write(command)
        assert taken(keyboard) == answer
        assert (keyboard.scan_set, keyboard.lights, keyboard.scanning) == (2, 0, scanning)


def test_a_command_in_place_of_an_argument_is_a_command() -> None:
    keyboard = Keyboard()
    keyboard.write(0xED)
    keyboard.write(0xEE)
    keyboard.write(0x02)
    assert taken(keyboard) == [ACK, 0xEE, RESEND]
    assert keyboard.lights == 0


def test_answers_that_nobody_takes_do_not_pile_up() -> None:
    for device in (Keyboard(), Mouse()):
        for _ in range(100):
            device.write(0xF2)
        assert len(taken(device)) == QUEUE


def test_mouse_status_shows_its_settings() -> None:
    mouse = Mouse()
    for value in (0xE8, 3, 0xF3, 40, 0xF0, 0xE7, 0xF4):
        mouse.write(value)
    assert taken(mouse) == [ACK] * 7
    mouse.write(0xE9)
    assert taken(mouse) == [ACK, 0x70, 3, 40]
    mouse.write(0xFE)
    assert taken(mouse) == [40]


def test_state_survives_json() -> None:
    for device, other, command, argument in ((Keyboard(), Keyboard(), 0xF0, 1), (Mouse(), Mouse(), 0xF3, 60)):
        device.write(command)
        other.load_state(json.loads(json.dumps(device.state())))
        for each in (device, other):
            each.write(argument)
        assert other.state() == device.state()
        assert taken(other) == taken(device) == [ACK, ACK]
        with pytest.raises(BadInput):
            other.load_state({})
