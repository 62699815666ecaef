"""The port bus: who answers at a port, in how many pieces, and what nobody answers."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.devices import layout
from emu.devices.bus import PORTS, AddressConflict, PortBus
from emu.devices.device import Device
from emu.errors import BadInput, EmuError


class Recorder(Device):
    """Byte-wide registers that remember what was written, and every access."""

    def __init__(self, fill: int = 0) -> None:
        self.registers: dict[int, int] = {}
        self.fill = fill
        self.log: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.log.append(("read", offset, size))
        return self.registers.get(offset, self.fill)

    def write(self, offset: int, size: int, value: int) -> None:
        self.log.append(("write", offset, size))
        self.registers[offset] = value


class WideRecorder(Recorder):
    max_access: ClassVar[int] = 4


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_a_port_without_a_device_reads_all_ones_and_ignores_writes(size: int, ones: int) -> None:
    bus = PortBus()
    bus.write(0x80, size, 0)
    assert bus.read(0x80, size) == ones


def test_a_device_gets_offsets_and_bytes() -> None:
    bus, device = PortBus(), Recorder()
    bus.register(0x3F8, 8, device)
    bus.write(0x3FB, 1, 0x1280)
    assert bus.read(0x3FB, 1) == 0x80
    assert device.log == [("write", 3, 1), ("read", 3, 1)]


def test_a_wide_access_to_byte_ports_is_split_lowest_port_first() -> None:
    bus, device = PortBus(), Recorder()
    bus.register(0x100, 4, device)
    bus.write(0x100, 4, 0x44332211)
    assert device.log == [("write", offset, 1) for offset in range(4)]
    assert bus.read(0x100, 4) == 0x44332211
    assert bus.read(0x101, 2) == 0x3322


def test_a_device_may_take_wide_accesses_whole() -> None:
    bus, device = PortBus(), WideRecorder()
    bus.register(0x100, 4, device)
    bus.write(0x100, 4, 0x44332211)
    bus.write(0x102, 2, 0xBEEF)
    assert device.log == [("write", 0, 4), ("write", 2, 2)]


def test_a_wide_access_is_split_where_it_leaves_the_device() -> None:
    bus, left, right = PortBus(), WideRecorder(), Recorder(fill=0x77)
    bus.register(0x100, 2, left)
    bus.register(0x102, 1, right)
    bus.write(0x100, 4, 0x44332211)
    assert left.log == [("write", 0, 2)]
    assert right.registers == {0: 0x33}
    left.registers[1] = 0x55
    assert bus.read(0x101, 4) == 0xFFFF_3355


def test_an_access_past_the_last_port_finds_nobody() -> None:
    bus, device = PortBus(), Recorder()
    bus.register(0, 1, device)
    bus.register(PORTS - 1, 1, device)
    assert bus.read(PORTS - 1, 2) == 0xFF00
    bus.write(PORTS - 1, 4, 0x01020304)
    assert device.registers == {0: 0x04}


def test_answers_are_cut_to_size() -> None:
    bus = PortBus()
    bus.register(0x10, 1, Recorder(fill=0xABC))
    assert bus.read(0x10, 1) == 0xBC


def test_a_device_may_own_several_ranges() -> None:
    bus, device = PortBus(), Recorder(fill=1)
    bus.register(0x10, 1, device)
    bus.register(0x20, 1, device)
    assert bus.read(0x10, 1) == bus.read(0x20, 1) == 1


def test_overlap_is_refused_and_changes_nothing() -> None:
    bus, first, second = PortBus(), Recorder(), Recorder()
    bus.register(0x100, 4, first)
    with pytest.raises(AddressConflict) as caught:
        bus.register(0xFE, 3, second)
    assert (caught.value.address, caught.value.owner, caught.value.newcomer) == (0x100, first, second)
    assert isinstance(caught.value, EmuError)
    assert "0x100" in str(caught.value)
    assert bus.read(0xFE, 1) == 0xFF


@pytest.mark.parametrize(("base", "length"), [(-1, 2), (0, 0), (PORTS, 1), (PORTS - 1, 2)])
def test_ranges_that_are_no_ports_are_refused(base: int, length: int) -> None:
    with pytest.raises(BadInput):
        PortBus().register(base, length, Recorder())


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=8))
def test_every_port_belongs_to_the_first_who_asked(ranges: list[tuple[int, int]]) -> None:
    bus = PortBus()
    owners: dict[int, int] = {}
    for number, (base, length) in enumerate(ranges):
        ports = range(base, base + length)
        if any(port in owners for port in ports):
            with pytest.raises(AddressConflict):
                bus.register(base, length, Recorder(fill=number))
        else:
            bus.register(base, length, Recorder(fill=number))
            owners |= dict.fromkeys(ports, number)
    assert [bus.read(port, 1) for port in range(40)] == [owners.get(port, 0xFF) for port in range(40)]


def test_the_machine_s_port_ranges_do_not_overlap() -> None:
    bus = PortBus()
    ranges = {name: base for name, base in vars(layout).items() if name.endswith("_PORT")}
    assert "PIC_MASTER_PORT" in ranges
    for name, base in ranges.items():
        length = layout.COM_PORTS if name.startswith("COM") else getattr(layout, name + "S", 1)
        bus.register(base, length, Recorder())
