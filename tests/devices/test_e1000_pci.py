"""The network card on its board: configuration space, regions, and the way of its interrupt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emu.boot.tables import pci_interrupts
from emu.devices import layout
from emu.devices.e1000 import REGISTERS_SIZE
from emu.devices.net import make_net, parse_net
from emu.devices.parts import Parts
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine

SLOT, _ = layout.E1000_PLACE
CARD, BRIDGE = 0x8000_0000 | SLOT << 11, 0x8000_0800
STATUS, ICS, IMS = 8, 0xC8, 0xD0


@pytest.fixture
def vm() -> Iterator[VirtualMachine]:
    made = Machine(8 << 20).create_vm(
        "vm", 64 << 20, 1 << 20, "nested", Parts(net=make_net(parse_net("none,card=e1000")))
    )
    yield made
    made.close()


def get(vm: VirtualMachine, register: int, size: int = 4, function: int = CARD) -> int:
    vm.platform.bus.write(0xCF8, 4, function | register & ~3)
    return vm.platform.bus.read(0xCFC + (register & 3), size)


def put(vm: VirtualMachine, register: int, value: int, size: int = 4, function: int = CARD) -> None:
    vm.platform.bus.write(0xCF8, 4, function | register & ~3)
    vm.platform.bus.write(0xCFC + (register & 3), size, value)


def interrupt(vm: VirtualMachine) -> None:
    vm.platform.mmio.write(layout.E1000 + IMS, 4, 4)
    vm.platform.mmio.write(layout.E1000 + ICS, 4, 4)


def io_apic_input(vm: VirtualMachine, number: int) -> bool:
    return bool(vm.platform._ioapic.lines >> number & 1)


def test_identity_and_regions(vm: VirtualMachine) -> None:
    assert get(vm, 0) == 0x100E_8086
    assert get(vm, 8) == 0x0200_0003
    assert get(vm, 4, 2) == 3  # I/O and memory; bus mastering is the driver's
    assert (get(vm, 0x3C, 1), get(vm, 0x3D, 1)) == (11, 1)
    for register, address, mask in ((0x10, layout.E1000, -REGISTERS_SIZE), (0x14, layout.E1000_PORT | 1, -64 | 1)):
        assert get(vm, register) == address
        put(vm, register, 0xFFFF_FFFF)
        assert get(vm, register) == mask & 0xFFFF_FFFF
        put(vm, register, address)
    assert vm.platform.mmio.read(layout.E1000 + STATUS, 4) == 0x8008_0781


def test_the_regions_move(vm: VirtualMachine) -> None:
    put(vm, 0x10, 0xE020_0000)
    assert vm.platform.mmio.read(0xE020_0000 + STATUS, 4) == 0x8008_0781
    assert vm.platform.mmio.read(layout.E1000 + STATUS, 4) == 0xFFFF_FFFF
    put(vm, 0x14, 0xD001)
    vm.platform.bus.write(0xD000, 4, STATUS)
    assert vm.platform.bus.read(0xD004, 4) == 0x8008_0781
    put(vm, 4, 0, 2)
    assert vm.platform.mmio.read(0xE020_0000 + STATUS, 4) == 0xFFFF_FFFF
    assert vm.platform.bus.read(0xD004, 4) == 0xFFFF_FFFF
    vm.platform.reset()
    assert vm.platform.mmio.read(layout.E1000 + STATUS, 4) == 0x8008_0781


def test_the_interrupt_comes_where_the_tables_say(vm: VirtualMachine) -> None:
    [told] = [number for slot, pin, number in pci_interrupts() if (slot, pin) == (SLOT, 0)]
    assert told == layout.IRQ_E1000
    interrupt(vm)
    assert io_apic_input(vm, told)
    vm.platform.leave_as_bios()
    vm.platform.bus.write(0xA1, 1, 0xFF & ~(1 << told - 8))
    vm.platform.bus.write(0x21, 1, 0xFB)
    vector = 0x70 + told - 8
    assert vm.processor.native.intr_line and vm.platform.acknowledge(0) == vector
    for port in (0xA0, 0x20):
        vm.platform.bus.write(port, 1, 0x20)
    assert vm.platform.acknowledge(0) == vector  # level-triggered: it is still there
    for port in (0xA0, 0x20):
        vm.platform.bus.write(port, 1, 0x20)
    vm.platform.mmio.read(layout.E1000 + 0xC0, 4)
    assert not io_apic_input(vm, told) and not vm.processor.native.intr_line


def test_a_bios_may_route_it_elsewhere(vm: VirtualMachine) -> None:
    interrupt(vm)
    put(vm, 0x62, 5, 1, BRIDGE)
    assert (io_apic_input(vm, 11), io_apic_input(vm, 5)) == (False, True)
    put(vm, 0x62, 0x80, 1, BRIDGE)
    assert not io_apic_input(vm, 5)
    put(vm, 0x61, 5, 1, BRIDGE)  # that is another slot's
    assert not io_apic_input(vm, 5)


def test_the_command_register_switches_the_interrupt_off(vm: VirtualMachine) -> None:
    interrupt(vm)
    assert get(vm, 6, 2) & 8
    put(vm, 4, 0x0403, 2)
    assert get(vm, 6, 2) & 8 and not io_apic_input(vm, 11)
    put(vm, 4, 0x0003, 2)
    assert io_apic_input(vm, 11)


def test_reset_takes_it_back(vm: VirtualMachine) -> None:
    put(vm, 4, 7, 2)
    interrupt(vm)
    vm.platform.reset()
    assert not io_apic_input(vm, 11)
    assert (get(vm, 4, 2), get(vm, 6, 2) & 8) == (3, 0)
