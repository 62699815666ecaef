"""The exit port at 0xF4."""

from __future__ import annotations

import pytest

from emu.devices.bus import PortBus
from emu.devices.exit import ExitPort
from emu.devices.layout import EXIT_PORT, EXIT_PORTS


@pytest.mark.parametrize(("size", "expected"), [(1, 0x78), (2, 0x5678), (4, 0x12345678)])
def test_a_write_of_any_size_is_one_call(size: int, expected: int) -> None:
    bus, values = PortBus(), list[int]()
    bus.register(EXIT_PORT, EXIT_PORTS, ExitPort(values.append))
    bus.write(0xF4, size, 0x12345678)
    assert values == [expected]


def test_reads_are_zero_and_do_not_exit() -> None:
    bus, values = PortBus(), list[int]()
    bus.register(EXIT_PORT, EXIT_PORTS, ExitPort(values.append))
    assert bus.read(0xF4, 4) == 0
    assert values == []
