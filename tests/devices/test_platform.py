"""The wiring of the PC: what reaches what."""

from __future__ import annotations

import pytest

from emu.devices import layout
from emu.devices.acpi_pm import SCI_EN
from emu.devices.platform import Platform
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from emu.observe.outcome import STATUS_RESET, STATUS_SUCCESS, Ending
from emu.session import run_vm
from emu.testing import boot
from tests.guests.programs import program

POWER = 0x8000_0B00  # CONFIG_ADDRESS: 00:01.3
PM_BASE, PM_ENABLE = 0x40, 0x80


def new_vm(ram: int = 64 << 20) -> VirtualMachine:
    return Machine(8 << 20).create_vm("vm", ram, 1 << 20, "nested")


def configure(vm: VirtualMachine, register: int, size: int, value: int) -> None:
    vm.platform.bus.write(0xCF8, 4, POWER | register)
    vm.platform.bus.write(0xCFC, size, value)


def cell(vm: VirtualMachine, index: int, cells: int = 1) -> int:
    value = 0
    for n in range(cells):
        vm.platform.bus.write(0x70, 1, index + n)
        value |= vm.platform.bus.read(0x71, 1) << 8 * n
    return value


@pytest.mark.parametrize(
    ("ram", "base", "extended", "above_16m", "above_4g"),
    [
        (640 << 10, 640, 0, 0, 0),
        (64 << 20, 640, 63 << 10, 48 << 4, 0),
        (5 << 30, 640, 0xFFFF, (0xC000_0000 - (16 << 20)) >> 16, (2 << 30) >> 16),
    ],
)
def test_memory_sizes_in_cmos(ram: int, base: int, extended: int, above_16m: int, above_4g: int) -> None:
    vm = new_vm(ram)
    assert cell(vm, 0x15, 2) == base
    assert cell(vm, 0x17, 2) == cell(vm, 0x30, 2) == extended
    assert cell(vm, 0x34, 2) == above_16m
    assert cell(vm, 0x5B, 3) == above_4g


def test_power_management_moves_with_its_pci_function() -> None:
    vm = new_vm()
    bus = vm.platform.bus
    assert bus.read(layout.ACPI_PM_PORT + 4, 2) == SCI_EN
    configure(vm, PM_BASE, 4, 0xB001)
    assert bus.read(layout.ACPI_PM_PORT + 4, 2) == 0xFFFF
    assert bus.read(0xB004, 2) == SCI_EN
    configure(vm, PM_ENABLE, 1, 0)  # not decoded
    assert bus.read(0xB004, 2) == 0xFFFF
    configure(vm, PM_ENABLE, 1, 1)
    assert bus.read(0xB004, 2) == SCI_EN


def test_power_management_stays_away_from_other_devices() -> None:
    vm = new_vm()
    bus = vm.platform.bus
    before = bus.read(layout.COM1_PORT + 5, 1)
    configure(vm, PM_BASE, 4, 0xC001)
    assert bus.read(0xC004, 2) == SCI_EN
    configure(vm, PM_BASE, 4, 0x41)  # the PIT's
    assert bus.read(layout.COM1_PORT + 5, 1) == before
    assert bus.read(0xC004, 2) == bus.read(layout.ACPI_PM_PORT + 4, 2) == 0xFFFF
    configure(vm, PM_BASE, 4, layout.ACPI_PM_PORT | 1)
    assert bus.read(layout.ACPI_PM_PORT + 4, 2) == SCI_EN


def request(vm: VirtualMachine) -> int:
    """The IRR of both 8259s."""
    bits = 0
    for n, port in enumerate((0x20, 0xA0)):
        vm.platform.bus.write(port, 1, 0x0A)
        bits |= vm.platform.bus.read(port, 1) << 8 * n
    return bits


def test_hpet_legacy_replacement_disconnects_pit_and_rtc() -> None:
    vm = new_vm()
    platform = vm.platform
    for port, value in ((0x43, 0x34), (0x40, 0), (0x40, 8), (0x70, 0x0A), (0x71, 0x26), (0x70, 0x0B), (0x71, 0x42)):
        platform.bus.write(port, 1, value)  # PIT: periodic; RTC: periodic, 1024 Hz
    for legacy, requested in ((0, 0x101), (2, 0), (0, 0x101)):
        platform.mmio.write(layout.HPET + 0x10, 4, legacy)  # the HPET's own timers stand still
        platform.leave_as_bios()  # forgets what the 8259s have latched
        for port, value in ((0x43, 0x34), (0x40, 0), (0x40, 8)):
            platform.bus.write(port, 1, value)
        for _ in range(20):
            vm.processor.native.vtime += 1_000_000
            platform.tick(vm.now)
            platform.bus.write(0x70, 1, 0x0C)
            platform.bus.read(0x71, 1)  # lets the RTC's line fall
        assert request(vm) & 0x101 == requested, legacy


def test_the_hpet_reaches_input_2_of_the_io_apic() -> None:
    vm = new_vm()
    mmio, apic = vm.platform.mmio, vm.platform.lapics[0]
    apic.write(0xF0, 4, 0x1FF)
    for register, value in ((0x10 + 2 * 2, 0x8055), (0x11 + 2 * 2, 0)):  # level-triggered, vector 55, APIC ID 0
        mmio.write(layout.IO_APIC, 4, register)
        mmio.write(layout.IO_APIC + 0x10, 4, value)
    for offset, value in ((0x100, 2 << 9 | 0b110), (0x108, 100), (0x10, 1)):  # timer 0: level, enabled, route 2
        mmio.write(layout.HPET + offset, 8, value)
    vm.processor.native.vtime += 10_000
    vm.platform.tick(vm.now)
    assert apic.acknowledge() == 0x55
    assert request(vm) & 1 << 2 == 0, "the 8259s have no such input"


def test_virtio_slots_can_be_read() -> None:
    vm = new_vm()
    kinds = []
    for gpa, _, _ in layout.virtio_slots():
        assert vm.platform.mmio.read(gpa, 4) == 0x7472_6976
        kinds.append(vm.platform.mmio.read(gpa + 8, 4))
    assert kinds[:2] == [4, 3]  # entropy source, console
    assert kinds[3:] == [0, 0]  # neither a disk nor a network card


def test_left_as_by_a_bios() -> None:
    vm = new_vm()
    vm.platform.leave_as_bios()
    bus = vm.platform.bus
    assert (bus.read(0x21, 1), bus.read(0xA1, 1)) == (0xB8, 0x8E)
    vm.processor.native.vtime = 60_000_000  # the timer's 55 ms, IRQ 0 at vector 8
    vm.platform.tick(vm.now)
    assert vm.processor.native.intr_line == 1
    assert vm.platform.acknowledge(0) == 8


class Several:
    """A platform with four processors, of which `running` accesses devices."""

    def __init__(self) -> None:
        self.now = 0
        self.running = 0
        self.intr = [False] * 4
        self.started: list[tuple[int, int]] = []
        self.vm = new_vm()  # for its memory
        self.platform = Platform(
            64 << 20, self.vm.dmm, lambda: self.now,
            cpus=4, running=lambda: self.running, set_intr=self.intr.__setitem__, raise_nmi=lambda cpu: None,
            on_init=lambda cpu: None, on_startup=lambda cpu, vector: self.started.append((cpu, vector)),
            set_a20=lambda level: None, balloon=self.vm.dmm.balloon, on_exit=lambda value: None,
            on_power_off=lambda: None, on_suspend=lambda: None, on_wake=lambda: None, on_reset=lambda: None,
        )  # fmt: skip

    def apic(self, cpu: int, *writes: tuple[int, int]) -> None:
        self.running = cpu
        for offset, value in writes:
            self.platform.mmio.write(layout.LOCAL_APIC + offset, 4, value)


def test_the_number_of_processors_in_cmos_and_fw_cfg() -> None:
    for bus, cpus in ((new_vm().platform.bus, 1), (Several().platform.bus, 4)):
        bus.write(0x70, 1, 0x5F)
        assert bus.read(0x71, 1) == cpus - 1
        for key in (0x05, 0x0F):
            bus.write(0x510, 2, key)
            assert [bus.read(0x511, 1), bus.read(0x511, 1)] == [cpus, 0]


def test_each_processor_has_its_own_apic_registers_and_timer() -> None:
    board = Several()
    for cpu in range(4):
        board.apic(cpu, (0xF0, 0x1FF), (0x3E0, 0xB), (0x320, 0x40 + cpu), (0x380, 1000 * (4 - cpu)))
        assert board.platform.mmio.read(layout.LOCAL_APIC + 0x20, 4) == cpu << 24
    assert board.platform.deadline() == 1000
    board.now = 2000
    board.platform.tick(board.now)
    assert board.intr == [False, False, True, True]
    assert (board.platform.acknowledge(2), board.platform.acknowledge(3)) == (0x42, 0x43)
    assert board.platform.deadline() == 3000


def test_one_processor_starts_another() -> None:
    board = Several()
    board.apic(0, (0x310, 2 << 24), (0x300, 0x4500), (0x300, 0x4608))
    assert board.started == [(2, 8)]


def test_the_8259_interrupts_whoever_opens_lint0() -> None:
    board = Several()
    board.platform.leave_as_bios()
    board.now = 60_000_000
    board.platform.tick(board.now)
    assert board.intr == [True, False, False, False]
    board.apic(0, (0x350, 0x10000))
    board.apic(1, (0xF0, 0x1FF), (0x350, 0x700))
    assert board.intr == [False, True, False, False]
    assert board.platform.acknowledge(1) == 8


def test_each_processor_has_its_own_apic_msrs() -> None:
    board = Several()
    assert board.platform.apic_page_mapped
    for cpu in range(4):
        assert board.platform.read_msr(cpu, 0x802) is None
        assert board.platform.write_msr(cpu, 0x1B, 0xFEE00C00)
        assert board.platform.read_msr(cpu, 0x802) == cpu
        assert board.platform.apic_page_mapped == (cpu < 3)


RESETS = {
    "port 0x92": "mov al, 1\n out 0x92, al",
    "keyboard controller": "mov al, 0xFE\n out 0x64, al",
    "PCI": "mov dx, 0xCF9\n mov al, 2\n out dx, al\n mov al, 6\n out dx, al",
}
ENDINGS = {
    "ACPI": ("mov dx, 0x604\n mov ax, 0x2000\n out dx, ax", Ending.POWER_OFF),
    **{how: (code, Ending.RESET) for how, code in RESETS.items()},
}


@pytest.mark.parametrize("how", ENDINGS)
def test_how_guests_end(how: str) -> None:
    code, ending = ENDINGS[how]
    outcome = run_vm(boot(program("real", f"{code}\n cli\n hlt\n"), ram="1M", no_reboot=True).vm, max_time=1_000_000)
    assert (outcome.ending, outcome.status) == (ending, STATUS_RESET if ending == Ending.RESET else STATUS_SUCCESS)


@pytest.mark.parametrize("mode", ["real", "long"])
def test_what_follows_the_end_does_not_count(mode: str) -> None:
    """The rest of the block may still be executed, but a fault in it is no crash."""
    outcome = run_vm(boot(program(mode, "mov al, 5\n out 0xF4, al\n ud2\n"), ram="4M").vm, max_time=1_000_000)
    assert (outcome.ending, outcome.status) == (Ending.EXIT, 11)


def test_the_bus_masters_are_where_their_bar_says() -> None:
    vm = new_vm()
    bus = vm.platform.bus
    ide = POWER - 0x200  # 00:01.1
    assert bus.read(0xC042, 1) == 0

    def set_up(offset: int, value: int) -> None:
        bus.write(0xCF8, 4, ide | offset)
        bus.write(0xCFC, 4, value)

    bus.write(0xC042, 1, 0x20)  # both channels
    bus.write(0xC04A, 1, 0x40)
    set_up(0x20, 0x1000)
    assert (bus.read(0xC042, 1), bus.read(0x1002, 1), bus.read(0x100A, 1)) == (0xFF, 0x20, 0x40)
    set_up(0x04, 0)  # no I/O
    assert bus.read(0x1002, 1) == 0xFF
    set_up(0x04, 5)
    set_up(0x20, layout.COM1_PORT & ~15)  # COM1's ports are taken by COM1
    assert bus.read(layout.COM1_PORT + 5, 1) == 0x60
