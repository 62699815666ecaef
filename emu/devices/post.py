"""Port 0x80: the progress codes of a power-on self test. Source: IBM PC/AT Technical Reference.

A firmware writes a number here before each step of its work; a card with two digits shows where it stopped. Kernels
write to the port as well, only because that takes about a microsecond on an ISA bus (Linux' io_delay), and always the
same number: a repeated code is kept once.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Device, State
from emu.devices.shared import ASK, Plain

KEPT = 256  # codes that are remembered; the oldest goes first
NOTHING_YET = 0xFF  # what the port reads before the first write


class PostCodes(Device, Plain):
    """The card in the slot.

    Attributes:
        codes: what was written, oldest first, without immediate repetitions; the last KEPT of them.
    """

    STATE: ClassVar[tuple[str, ...]] = ("codes",)

    def __init__(self) -> None:
        super().__init__(1)
        self.codes: list[int] = []
        self._publish()

    def read(self, offset: int, size: int) -> int:
        return self.codes[-1] if self.codes else NOTHING_YET

    def write(self, offset: int, size: int, value: int) -> None:
        if self.codes and self.codes[-1] == value:
            return
        self.codes.append(value)
        if len(self.codes) > KEPT:
            del self.codes[0]
        self._publish()

    def load_state(self, state: State) -> None:
        super().load_state(state)
        self._publish()

    def _publish(self) -> None:
        """A repeated code changes nothing."""
        self.reads[0] = self.read(0, 1)
        self.writes[0] = self.codes[-1] if self.codes else ASK
