"""Interrupt wires between a device and the controllers."""

from __future__ import annotations

from collections.abc import Callable

from emu.devices.device import IrqLine


class Wires:
    """One output that drives several inputs."""

    def __init__(self, *inputs: IrqLine) -> None:
        self._inputs = inputs

    def set(self, level: bool) -> None:
        for wire in self._inputs:
            wire.set(level)


class SwitchedWire:
    """A wire that can be disconnected; its far end is low meanwhile."""

    def __init__(self, to: IrqLine) -> None:
        self._to = to
        self._level = False
        self._connected = True

    def set(self, level: bool) -> None:
        self._level = level
        if self._connected:
            self._to.set(level)

    def connect(self, connected: bool) -> None:
        """Connect or disconnect it."""
        self._connected = connected
        self._to.set(self._level and connected)


class NumberedWire:
    """The wire to one of several inputs of a chip. ``drive`` gets the input's number and its level."""

    def __init__(self, drive: Callable[[int, bool], None], number: int) -> None:
        self._drive = drive
        self._number = number

    def set(self, level: bool) -> None:
        self._drive(self._number, level)
