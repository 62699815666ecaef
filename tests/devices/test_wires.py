"""Wires between devices and interrupt controllers."""

from __future__ import annotations

from emu.devices.wires import NumberedWire, SwitchedWire, Wires


class Pin:
    def __init__(self) -> None:
        self.levels: list[bool] = []

    def set(self, level: bool) -> None:
        self.levels.append(level)


def test_one_output_drives_all_inputs() -> None:
    pins = [Pin(), Pin(), Pin()]
    wires = Wires(*pins)
    wires.set(True)
    wires.set(False)
    assert [pin.levels for pin in pins] == [[True, False]] * 3


def test_a_switched_wire_is_low_while_disconnected() -> None:
    pin = Pin()
    wire = SwitchedWire(pin)
    wire.set(True)
    wire.connect(False)
    assert pin.levels == [True, False]
    wire.set(False)
    wire.set(True)
    assert pin.levels == [True, False]


def test_a_switched_wire_has_its_level_again_when_connected() -> None:
    pin = Pin()
    wire = SwitchedWire(pin)
    wire.connect(False)
    wire.set(True)
    wire.connect(True)
    assert pin.levels[-1] is True
    wire.connect(False)
    wire.set(False)
    wire.connect(True)
    assert pin.levels[-1] is False


def test_a_numbered_wire_names_the_input() -> None:
    driven: list[tuple[int, bool]] = []
    wire = NumberedWire(lambda number, level: driven.append((number, level)), 7)
    wire.set(True)
    wire.set(False)
    assert driven == [(7, True), (7, False)]
