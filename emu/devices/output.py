"""What the guest prints, on its way to those who listen.

The native plane collects bytes in a buffer instead of calling Python for each, and everybody who looks at the console
empties that first. Who acts on what is printed, at the very moment, names the bytes with which a text that he waits for
may end: those are *urgent*, and never collected.

Listeners get everything. What is kept for those who ask later is the last KEPT bytes at least: a guest can print
without end.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from emu.devices.shared import Shared, record

CAPACITY = 4096  # bytes collected at most
ALL = bytes(range(256))  # every byte is urgent
KEPT = 16 << 20  # bytes


@record
class OutputRecord(Shared):
    """What the native plane needs (:mod:`emu.cpu.registers`)."""

    count: int  # bytes collected
    data_at: int  # host address of CAPACITY bytes
    urgent_at: int  # host address of a byte for each value: not 0 where it must not be collected


class ConsoleOutput(OutputRecord):
    """The output of all consoles of a machine; call it to print."""

    def __init__(self) -> None:
        super().__init__()
        self._data = (ctypes.c_ubyte * CAPACITY)()
        self._urgent = (ctypes.c_ubyte * 256)()
        self.data_at, self.urgent_at = ctypes.addressof(self._data), ctypes.addressof(self._urgent)
        self._printed = bytearray()
        self._dropped = 0  # bytes that were printed before those in _printed
        self._sinks: list[tuple[Callable[[bytes], None], bytes]] = []

    @property
    def printed(self) -> bytearray:
        """Everything so far; of more than KEPT bytes the last ones."""
        self.flush()
        return self._printed

    @property
    def total(self) -> int:
        """How many bytes were printed so far."""
        self.flush()
        return self._dropped + len(self._printed)

    def find(self, text: bytes, begin: int) -> int:
        """Where ``text`` was printed first from position ``begin`` on, counted from the first byte ever printed; -1
        when it was not, or is not kept any more."""
        self.flush()
        found = self._printed.find(text, max(begin - self._dropped, 0))
        return found + self._dropped if found >= 0 else -1

    def __call__(self, data: bytes) -> None:
        """Print."""
        self.flush()
        self._pass_on(data)

    def flush(self) -> None:
        """Pass on what is collected."""
        if self.count:
            data = bytes(self._data[: self.count])
            self.count = 0
            self._pass_on(data)

    def listen(self, sink: Callable[[bytes], None], urgent: bytes = ALL) -> None:
        """Call ``sink`` with what is printed from now on, at once after the bytes in ``urgent``."""
        self.flush()
        self._sinks.append((sink, urgent))
        self._note_urgent()

    def unlisten(self, sink: Callable[[bytes], None]) -> None:
        """Stop calling ``sink``."""
        self.flush()
        self._sinks.remove(next(entry for entry in self._sinks if entry[0] == sink))
        self._note_urgent()

    def _note_urgent(self) -> None:
        wanted = {byte for _, urgent in self._sinks for byte in urgent}
        self._urgent[:] = [byte in wanted for byte in range(256)]

    def _pass_on(self, data: bytes) -> None:
        self._printed += data
        self._dropped += trim(self._printed)
        for sink, _ in tuple(self._sinks):
            sink(data)


def trim(text: bytearray) -> int:
    """Drop the beginning of a text that has grown far beyond KEPT bytes; how many bytes of it."""
    excess = len(text) - KEPT
    if excess < KEPT:
        return 0
    del text[:excess]
    return excess
