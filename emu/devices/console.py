"""The debug console at port 0xE9, known from Bochs: the shortest way for a guest to print.

A byte written goes out. A read returns 0xE9, so that a guest can tell the console from an empty port, which reads 0xFF.
"""

from __future__ import annotations

from emu.devices.device import Device, Sink

PRESENT = 0xE9  # what the port reads as when there is a console


class DebugConsole(Device):
    """One write-only byte port in front of ``sink``."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def read(self, offset: int, size: int) -> int:
        return PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self._sink(bytes((value,)))
