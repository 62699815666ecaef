"""QEMU's pc-testdev, with which kvm-unit-tests raise interrupts and look at port and memory accesses.

Source: kvm-unit-tests (lib/x86/apic.c, x86/emulator.c, x86/realmode.c, x86/eventinj.c); QEMU's ``-device pc-testdev``.

    0xE0 to 0xE3        four bytes that read as they were written, in accesses of 1, 2 and 4 bytes
    0xE4 to 0xE7        write: the page at this gpa is to be mapped anew, which is never needed here
    0xE8 to 0xEB        the four bytes of 0xE0, one at a time; 0xE9 stays the console's
    0x2000 to 0x2017    write: the level of interrupt line 0 to 23
    0xFF000000          64K that read as they were written, each access by way of the device
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from emu.devices.bus import MmioBus, PortBus
from emu.devices.device import Device, IrqLine, State, check_fields

BYTES, FLUSH, SINGLE_BYTES = 0xE0, 0xE4, 0xE8  # ports
LINES, LINE_COUNT = 0x2000, 24  # ports
CONSOLE_BYTE = 1  # of SINGLE_BYTES
MEMORY, MEMORY_SIZE = 0xFF00_0000, 0x1_0000  # gpa, bytes


class Scratch(Device):
    """Bytes that read as they were written: all of ``data`` from ``first`` on."""

    max_access: ClassVar[int] = 4

    def __init__(self, data: bytearray, first: int = 0) -> None:
        self._data = data
        self._first = first

    def read(self, offset: int, size: int) -> int:
        at = self._first + offset
        return int.from_bytes(self._data[at : at + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        at = self._first + offset
        self._data[at : at + size] = value.to_bytes(size, "little")

    def state(self) -> State:
        return {"data": self._data.hex()}

    def load_state(self, state: State) -> None:
        check_fields("Scratch", state, ("data",))
        self._data[:] = bytes.fromhex(state["data"])


class InterruptPorts(Device):
    """A port for each interrupt line; ``wire`` gives the wire of a line."""

    def __init__(self, wire: Callable[[int], IrqLine]) -> None:
        self._wires = [wire(line) for line in range(LINE_COUNT)]

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._wires[offset].set(value != 0)


class FlushPort(Device):
    """Takes the gpa of a page and does nothing about it: what the guest reaches is always up to date."""

    max_access: ClassVar[int] = 4

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def plug_in(ports: PortBus, mmio: MmioBus, wire: Callable[[int], IrqLine]) -> None:
    """Put the device into a machine.

    Args:
        wire: gives the wire of an interrupt line, 0 to 23.

    Raises:
        AddressConflict: something else is there.
    """
    data = bytearray(4)
    ports.register(BYTES, len(data), Scratch(data))
    ports.register(FLUSH, 4, FlushPort())
    for number in range(len(data)):
        if number != CONSOLE_BYTE:
            ports.register(SINGLE_BYTES + number, 1, Scratch(data, number))
    ports.register(LINES, LINE_COUNT, InterruptPorts(wire))
    mmio.register(MEMORY, MEMORY_SIZE, Scratch(bytearray(MEMORY_SIZE)))
