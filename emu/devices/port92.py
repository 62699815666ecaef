"""System control port A at 0x92, and the A20 gate. Source: IBM PS/2 Hardware Interface Technical Reference; PIIX3.

    bit 0  fast reset: its rise resets the CPU, as the reset line of the keyboard controller does
    bit 1  A20: lets address line 20 of the CPU through
    others keep what was written and do nothing here (watchdog, security lock, disk lights)

The 8088 had 20 address lines, so that FFFF:0010 was address 0 again. The AT keeps programs happy that want this: a gate
holds A20 low until somebody opens it. The keyboard controller's output port has one bit for it, port 0x92 another, and
the chip set lets A20 through while either of them is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device, State, check_fields

FAST_RESET = 0x01
A20 = 0x02


class A20Gate:
    """ORs its inputs; ``on_level`` gets each new level of A20: True lets it through, False holds it low.

    ``on_level`` is not called for the level that the gate has from the start, that of ``i8042``: let through, because a
    machine that boots a kernel without a BIOS has what a BIOS would leave, and one with a BIOS does as QEMU's PC.
    """

    INPUTS: ClassVar[tuple[str, ...]] = ("i8042", "port92")

    def __init__(self, on_level: Callable[[bool], None]) -> None:
        self._on_level = on_level
        self._inputs = dict.fromkeys(self.INPUTS, False)
        self._inputs["i8042"] = True

    @property
    def level(self) -> bool:
        """Whether A20 passes."""
        return any(self._inputs.values())

    def set_i8042(self, level: bool) -> None:
        """Drive the input from the keyboard controller's output port."""
        self._set("i8042", level)

    def set_port92(self, level: bool) -> None:
        """Drive the input from port 0x92."""
        self._set("port92", level)

    def state(self) -> State:
        return dict(self._inputs)

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned, and tell ``on_level`` the level that A20 has now."""
        check_fields("A20Gate", state, self.INPUTS)
        self._inputs = {name: bool(state[name]) for name in self.INPUTS}
        self._on_level(self.level)

    def _set(self, name: str, level: bool) -> None:
        before = self.level
        self._inputs[name] = level
        if self.level != before:
            self._on_level(self.level)


class Port92(Device):
    """The port. ``set_a20`` gets the A20 bit at each write, ``on_reset`` is called when the fast reset bit rises."""

    STATE: ClassVar[tuple[str, ...]] = ("value",)

    def __init__(self, set_a20: Callable[[bool], None], on_reset: Callable[[], None]) -> None:
        self._set_a20 = set_a20
        self._on_reset = on_reset
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        before, self.value = self.value, value
        self._set_a20(bool(value & A20))
        if value & ~before & FAST_RESET:
            self._on_reset()
