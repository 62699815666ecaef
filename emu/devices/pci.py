"""The PCI bus of an i440FX board, reached by configuration mechanism 1.

Sources: PCI Local Bus Specification 2.1 (3.2.2.3.2 mechanism 1, 6 configuration space); Intel 82441FX (order 290549)
and 82371 PIIX3/PIIX4 (290550, 290562) data sheets.

Ports by offset from 0xCF8:
    0-3  CONFIG_ADDRESS, only as a doubleword: 31 enable, 23-16 bus, 15-11 device, 10-8 function, 7-2 register
    1    as a byte: PIIX3's reset control, port 0xCF9
    4-7  CONFIG_DATA: the four bytes of that register
A function that does not exist reads as all ones.

The board has the functions that make a PC's chips findable; their ports are fixed, and only the IDE controller and
the display adapter have BARs that decode something (emu.devices.pci_bars):
    00:00.0  host bridge         00:01.0  ISA bridge, PIIX3
    00:01.1  IDE, both channels at their old addresses; BAR 4: the bus master
    00:01.3  power management, PIIX4                    00:02.0  VGA (emu.devices.vbe)
    00:03.0  a network card, when there is one (emu.devices.e1000_pci)
They come up as a BIOS leaves them, for kernels that are started without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from emu.devices.device import Device, State, check_fields
from emu.errors import BadInput

CONFIG_SIZE = 256  # bytes of configuration space

VENDOR_ID, DEVICE_ID = 0x00, 0x02  # offsets, u16 each
COMMAND, STATUS = 0x04, 0x06  # u16
REVISION, PROGRAMMING, CLASS = 0x08, 0x09, 0x0A  # u8, u8, u16
CACHE_LINE = 0x0C
HEADER_TYPE = 0x0E  # bit 7: more functions
BAR = 0x10  # six u32
SUBSYSTEM_VENDOR, SUBSYSTEM = 0x2C, 0x2E  # u16
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
OWN = 0x40  # from here on registers of the device's own

COMMAND_IO = 0x0001  # decodes I/O
COMMAND_MEMORY = 0x0002  # decodes memory
COMMAND_MASTER = 0x0004
COMMAND_WRITABLE = 0x0507  # these, SERR#, INTx off
BARS = 6
BAR_IO = 0x01  # an I/O BAR
MULTIFUNCTION = 0x80

ADDRESS_ENABLE = 0x8000_0000
ALL_ONES = 0xFFFF_FFFF
RESET_CONTROL = 1  # offset of port 0xCF9
RESET_CPU = 0x04  # its rise resets
RESET_HARD = 0x02  # the whole board, not the processor alone

INTEL = 0x8086
HOST_BRIDGE, ISA_BRIDGE, IDE, POWER = 0x1237, 0x7000, 0x7010, 0x7113  # device IDs of Intel
QEMU_SUBSYSTEM_VENDOR, QEMU_SUBSYSTEM = 0x1AF4, 0x1100  # SeaBIOS looks here for a QEMU board and what comes with it
PAM = range(0x59, 0x60)  # host bridge: read and write enables of 0xC0000 to 0xFFFFF
SMRAM = 0x72  # host bridge: SMM memory
PIRQ = range(0x60, 0x64)  # ISA bridge: where the PCI interrupts go
PIRQ_OFF = 0x80
PIRQ_ROUTES = (10, 10, 11, 11)  # as QEMU's BIOS sets them
IDE_PLACE = (1, 1)  # device, function
IDE_BUS_MASTER = 4  # BAR
IDE_TIMING = (0x40, 0x42)  # u16 a channel
IDE_DECODE = 0x8000  # the channel is on
PM_BASE = 0x40  # u32: I/O address, bit 0 set
ISA_BRIDGE_PLACE = (1, 0)  # device, function
POWER_PLACE = (1, 3)
VGA_PLACE = (2, 0)
PM_ENABLE = 0x80  # bit 0: PM_BASE is decoded
DEVACTB = 0x58  # u32, bit 25: APM port writes cause SMIs


class PciFunction(Device):
    """One function's configuration space; reads and writes by offset.

    ``written`` is called with offset and size behind every write. Bits without a write mask keep their value.
    """

    max_access: ClassVar[int] = 4

    def __init__(self, vendor: int, device: int, class_code: int, revision: int = 0) -> None:
        self.config = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)
        self.written: Callable[[int, int], None] = lambda offset, size: None
        self.set(VENDOR_ID, 2, vendor)
        self.set(DEVICE_ID, 2, device)
        self.set(CLASS, 2, class_code)
        self.set(REVISION, 1, revision)
        self.set(SUBSYSTEM_VENDOR, 2, QEMU_SUBSYSTEM_VENDOR)
        self.set(SUBSYSTEM, 2, QEMU_SUBSYSTEM)
        self.allow(COMMAND, 2, COMMAND_WRITABLE)
        self.allow(CACHE_LINE, 1, 0xFF)
        self.allow(INTERRUPT_LINE, 1, 0xFF)
        self.writable[OWN:] = b"\xff" * (CONFIG_SIZE - OWN)

    def set(self, offset: int, size: int, value: int) -> None:
        """Give a register its value, whatever its write mask."""
        self.config[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, size: int, mask: int) -> None:
        """Let the guest write the bits of ``mask``, and no others, of a register."""
        self.writable[offset : offset + size] = mask.to_bytes(size, "little")

    def add_bar(self, number: int, size: int, io: bool = False) -> None:
        """Base address register ``number``, of a region of ``size`` bytes, a power of two, which it tells when sized.

        Raises ValueError for other sizes and numbers.
        """
        if number not in range(BARS) or size & (size - 1) or size < (4 if io else 16):
            raise ValueError(f"BAR {number} of {size} bytes")
        self.set(BAR + 4 * number, 4, BAR_IO if io else 0)
        self.allow(BAR + 4 * number, 4, -size & ALL_ONES)

    def bar(self, number: int) -> int:
        """The address that the guest gave to BAR ``number``."""
        value = self.read(BAR + 4 * number, 4)
        return value & (~3 if value & BAR_IO else ~15)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        for index in range(offset, offset + size):
            mask = self.writable[index]
            self.config[index] = self.config[index] & ~mask | value & mask
            value >>= 8
        self.written(offset, size)

    def state(self) -> State:
        return {"config": self.config.hex()}

    def load_state(self, state: State) -> None:
        check_fields("PciFunction", state, ("config",))
        self.config[:] = bytes.fromhex(state["config"])


class PciHost(Device):
    """The ports 0xCF8 to 0xCFF and the functions of bus 0, by (device, function).

    ``on_reset`` is called when the guest resets the machine through port 0xCF9, ``on_cpu_reset`` (by default the same)
    when it resets the processor alone. Raises BadInput for a place that does not exist.
    """

    max_access: ClassVar[int] = 4

    def __init__(
        self,
        functions: Mapping[tuple[int, int], PciFunction],
        on_reset: Callable[[], None] = lambda: None,
        on_cpu_reset: Callable[[], None] | None = None,
    ) -> None:
        for device, function in functions:
            if device not in range(32) or function not in range(8):
                raise BadInput(f"PCI function {device:02x}.{function}", "not one of 00.0 to 1f.7")
        self.functions = dict(functions)
        self._on_reset = on_reset
        self._on_cpu_reset = on_cpu_reset or on_reset
        self.address = 0  # CONFIG_ADDRESS
        self.reset_control = 0

    def read(self, offset: int, size: int) -> int:
        if offset >= 4:
            function = self._selected()
            return ALL_ONES if function is None else function.read(self.address & 0xFC | offset & 3, size)
        if offset == 0 and size == 4:
            return self.address
        return self.reset_control if (offset, size) == (RESET_CONTROL, 1) else ALL_ONES

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4:
            function = self._selected()
            if function is not None:
                function.write(self.address & 0xFC | offset & 3, size, value)
        elif offset == 0 and size == 4:
            self.address = value
        elif (offset, size) == (RESET_CONTROL, 1):
            rises = value & RESET_CPU and not self.reset_control & RESET_CPU
            self.reset_control = value & (RESET_CPU | RESET_HARD)
            if rises:
                (self._on_reset if value & RESET_HARD else self._on_cpu_reset)()

    def machine_reset(self, power_up: State) -> None:
        super().machine_reset(power_up)
        for function in self.functions.values():
            function.written(0, CONFIG_SIZE)

    def state(self) -> State:
        functions = {f"{device:02x}.{number}": found.state() for (device, number), found in self.functions.items()}
        return {"address": self.address, "reset_control": self.reset_control, "functions": functions}

    def load_state(self, state: State) -> None:
        check_fields("PciHost", state, ("address", "reset_control", "functions"))
        names = {f"{device:02x}.{number}": found for (device, number), found in self.functions.items()}
        check_fields("PCI bus", state["functions"], tuple(names))
        self.address = state["address"]
        self.reset_control = state["reset_control"]
        for name, function in names.items():
            function.load_state(state["functions"][name])

    def _selected(self) -> PciFunction | None:
        """The function that CONFIG_ADDRESS names."""
        address = self.address
        if not address & ADDRESS_ENABLE or address & 0x00FF_0000:  # there is no bus but 0
            return None
        return self.functions.get((address >> 11 & 0x1F, address >> 8 & 7))


def host_bridge() -> PciFunction:
    """82441FX. What the PAM registers would switch is all RAM here; they keep what was written."""
    function = PciFunction(INTEL, HOST_BRIDGE, class_code=0x0600, revision=2)
    function.set(COMMAND, 2, COMMAND_MEMORY | COMMAND_MASTER)
    function.set(STATUS, 2, 0x0280)  # fast back-to-back, medium DEVSEL#
    function.set(SMRAM, 1, 0x02)
    return function


def isa_bridge() -> PciFunction:
    """PIIX3."""
    function = PciFunction(INTEL, ISA_BRIDGE, class_code=0x0601)
    function.set(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER)
    function.set(STATUS, 2, 0x0200)  # medium DEVSEL#
    function.set(HEADER_TYPE, 1, MULTIFUNCTION)
    for offset, irq in zip(PIRQ, PIRQ_ROUTES, strict=True):
        function.set(offset, 1, irq)
    return function


def ide_function() -> PciFunction:
    """PIIX3's IDE controller in legacy mode; it has a BAR for its bus master, which is not added here."""
    function = PciFunction(INTEL, IDE, class_code=0x0101)
    function.set(PROGRAMMING, 1, 0x80)  # a bus master, and nothing that could be switched
    function.set(COMMAND, 2, COMMAND_IO | COMMAND_MASTER)
    function.set(STATUS, 2, 0x0280)  # fast back-to-back, medium DEVSEL#
    for offset in IDE_TIMING:
        function.set(offset, 2, IDE_DECODE)
    return function


def power_management(pm_base: int, irq: int) -> PciFunction:
    """PIIX4's power management with its ports at ``pm_base``, its interrupt (SCI) at ``irq``."""
    function = PciFunction(INTEL, POWER, class_code=0x0680, revision=3)
    function.set(COMMAND, 2, COMMAND_IO)
    function.set(STATUS, 2, 0x0280)  # fast back-to-back, medium DEVSEL#
    function.set(INTERRUPT_LINE, 1, irq)
    function.set(INTERRUPT_PIN, 1, 1)
    function.set(PM_BASE, 4, pm_base | 1)
    function.set(PM_ENABLE, 1, 1)
    function.set(DEVACTB, 4, 1 << 25)  # so that a BIOS takes SMM for set up and leaves it alone
    return function


def i440fx(
    pm_base: int,
    sci: int,
    on_reset: Callable[[], None] = lambda: None,
    on_cpu_reset: Callable[[], None] | None = None,
) -> PciHost:
    """The board described above: PM ports at ``pm_base``, SCI at interrupt ``sci``."""
    functions = {
        (0, 0): host_bridge(),
        ISA_BRIDGE_PLACE: isa_bridge(),
        IDE_PLACE: ide_function(),
        POWER_PLACE: power_management(pm_base, sci),
    }
    return PciHost(functions, on_reset, on_cpu_reset)
