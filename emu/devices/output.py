"""What the guest prints, on its way to those who listen.

The native plane collects bytes in a buffer instead of calling Python for each, and everybody who looks at the console
empties that first. Who acts on what is printed, at the very moment, names the bytes with which a text that he waits for
may end: those are *urgent*, and never collected.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from emu.devices.shared import Shared, record

CAPACITY = 4096  # bytes collected at most
ALL = bytes(range(256))  # every byte is urgent


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
        self._sinks: list[tuple[Callable[[bytes], None], bytes]] = []

    @property
    def printed(self) -> bytearray:
        """Everything so far."""
        self.flush()
        return self._printed

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
        for sink, _ in tuple(self._sinks):
            sink(data)
