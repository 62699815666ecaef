"""The debug console at port 0xE9."""

from __future__ import annotations

from emu.devices.bus import PortBus
from emu.devices.console import DebugConsole
from emu.devices.layout import DEBUG_CONSOLE_PORT, DEBUG_CONSOLE_PORTS


def test_bytes_go_out_and_the_port_names_itself() -> None:
    bus, out = PortBus(), bytearray()
    bus.register(DEBUG_CONSOLE_PORT, DEBUG_CONSOLE_PORTS, DebugConsole(out.extend))
    for byte in b"hello\n\xff":
        bus.write(0xE9, 1, byte)
    assert out == b"hello\n\xff"
    assert bus.read(0xE9, 1) == 0xE9


def test_a_wide_write_prints_its_low_byte() -> None:
    bus, out = PortBus(), bytearray()
    bus.register(DEBUG_CONSOLE_PORT, DEBUG_CONSOLE_PORTS, DebugConsole(out.extend))
    bus.write(0xE9, 2, 0x4241)
    assert out == b"A"


def test_it_has_no_time_and_no_state() -> None:
    console = DebugConsole(lambda data: None)
    assert console.deadline() is None
    assert console.state() == {}
    console.load_state({})
