"""What an 82540EM counts.

Source: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 13.7. Of the errors
that these registers count there are none.
"""

from __future__ import annotations

from emu.devices.device import Device, State, check_fields

REGISTERS = range(0x4000, 0x4100)
GOOD_RECEIVED, GOOD_SENT, BYTES_RECEIVED, BYTES_SENT = 0x4074, 0x4080, 0x4088, 0x4090
ALL_RECEIVED, ALL_SENT, ALL_BYTES_RECEIVED, ALL_BYTES_SENT = 0x40D0, 0x40D4, 0x40C0, 0x40C8
WIDE = (BYTES_RECEIVED, BYTES_SENT, ALL_BYTES_RECEIVED, ALL_BYTES_SENT)  # of 64 bits
FCS = 4  # bytes, which count


class Statistics(Device):
    """The registers, by their offsets in the card; each is cleared when it is read, a wide one by its upper half."""

    def __init__(self) -> None:
        self._values: dict[int, int] = {}

    def reset(self) -> None:
        """As after power-up."""
        self._values.clear()

    def sent(self, size: int) -> None:
        """A frame of so many bytes has been sent."""
        self._count({GOOD_SENT: 1, ALL_SENT: 1, BYTES_SENT: size + FCS, ALL_BYTES_SENT: size + FCS})

    def received(self, size: int) -> None:
        """A frame of so many bytes has been received."""
        self._count({GOOD_RECEIVED: 1, ALL_RECEIVED: 1, BYTES_RECEIVED: size + FCS, ALL_BYTES_RECEIVED: size + FCS})

    def _count(self, amounts: dict[int, int]) -> None:
        for offset, amount in amounts.items():
            self._values[offset] = self._values.get(offset, 0) + amount

    def read(self, offset: int, size: int) -> int:
        if offset in WIDE:
            return self._values.get(offset, 0) & 0xFFFF_FFFF
        if offset - 4 in WIDE:
            return self._values.pop(offset - 4, 0) >> 32 & 0xFFFF_FFFF
        return self._values.pop(offset, 0) & 0xFFFF_FFFF

    def state(self) -> State:
        return {"values": {str(offset): value for offset, value in self._values.items()}}

    def load_state(self, state: State) -> None:
        check_fields("Statistics", state, ("values",))
        self._values = {int(offset): value for offset, value in state["values"].items()}
