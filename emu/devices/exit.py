"""The exit port: a guest ends its run by writing a number, as with QEMU's isa-debug-exit.

It is one register, four ports wide, and takes a byte, a word or a double word in one piece. Reads return 0. What the
number means (the exit status is ``value << 1 | 1``) is the machine's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Device


class ExitPort(Device):
    """Calls ``on_exit`` with each value written."""

    max_access: ClassVar[int] = 4

    def __init__(self, on_exit: Callable[[int], None]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._on_exit(value)
