"""The debug console at port 0xE9, known from Bochs: the shortest way for a guest to print.

A byte written goes out. A read returns 0xE9, so that a guest can tell the console from an empty port, which reads 0xFF.
"""

from __future__ import annotations

from emu.devices.device import Device, Sink
from emu.devices.output import ConsoleOutput
from emu.devices.shared import CONSOLE, Plain, record

PRESENT = 0xE9  # what the port reads as when there is a console


@record
class ConsoleRecord(Plain):
    """What the native plane needs (:mod:`emu.cpu.registers`)."""

    output_at: int  # host address of a ConsoleOutput's record; 0 when the sink is something else


class DebugConsole(Device, ConsoleRecord):
    """One write-only byte port in front of ``sink``."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(1)
        self.kind = CONSOLE
        self.reads[0] = PRESENT
        self.output_at = sink.shared_at if isinstance(sink, ConsoleOutput) else 0
        self._sink = sink

    def read(self, offset: int, size: int) -> int:
        return PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self._sink(bytes((value,)))
