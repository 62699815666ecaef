"""The set of devices of a VM and how they are wired: the one file that knows them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from emu.devices import e1000_pci, layout, testdev, vbe
from emu.devices.acpi_pm import AcpiPm, SmiCommandPorts
from emu.devices.apic_bus import ApicBus
from emu.devices.apic_page import ApicPage
from emu.devices.balloon_port import BalloonPort
from emu.devices.bandwidth import Bandwidth
from emu.devices.bus import MmioBus, PortBus
from emu.devices.bus_master import PORTS as BUS_MASTER_PORTS
from emu.devices.bus_master import BusMaster
from emu.devices.console import DebugConsole
from emu.devices.cpu_pins import CpuPins
from emu.devices.device import BalloonDriver, BoardMemory, Device, GuestMemory, IrqLine
from emu.devices.disc import Disc
from emu.devices.disk import Disk
from emu.devices.dma import Dma
from emu.devices.e1000 import E1000
from emu.devices.exit import ExitPort
from emu.devices.fdc import Fdc
from emu.devices.firmware_facts import tell_firmware
from emu.devices.floppy import FloppyDisk
from emu.devices.fw_cfg import FwCfg
from emu.devices.hpet import Hpet
from emu.devices.i8042 import I8042
from emu.devices.ide import IdeChannel
from emu.devices.ioapic import IoApic
from emu.devices.loader_port import LoaderPort
from emu.devices.monitor import Monitor
from emu.devices.output import ALL, ConsoleOutput, trim
from emu.devices.parts import NO_PARTS, Parts
from emu.devices.pci import (
    IDE_BUS_MASTER,
    IDE_PLACE,
    ISA_BRIDGE_PLACE,
    PM_BASE,
    PM_ENABLE,
    POWER_PLACE,
    VGA_PLACE,
    PciHost,
    i440fx,
)  # fmt: skip
from emu.devices.pci_bars import PciBars, RegisterPages, place_ports
from emu.devices.pci_interrupts import PciInterrupts
from emu.devices.pic import PicPair
from emu.devices.pit import Pit, SystemControlPort
from emu.devices.port92 import A20Gate, Port92
from emu.devices.post import PostCodes
from emu.devices.rtc import Rtc
from emu.devices.uart import Uart16550
from emu.devices.vbe import Vbe, VgaRegisters
from emu.devices.vga import Vga
from emu.devices.video_memory import VideoMemory
from emu.devices.virtio import VirtioDevice
from emu.devices.virtio_balloon import VirtioBalloon
from emu.devices.virtio_blk import VirtioBlock
from emu.devices.virtio_console import VirtioConsole
from emu.devices.virtio_mmio import EmptySlot, VirtioMmio
from emu.devices.virtio_net import VirtioNet
from emu.devices.virtio_rng import VirtioRng
from emu.devices.wires import SwitchedWire, Wires
from emu.errors import BadInput
from emu.units import NEVER


class Platform:
    """A PC: what QEMU's ``pc`` machine has.

    Args:
        ram: bytes of guest memory, for those who tell the guest.
        memory: guest memory, for devices that transfer by themselves.
        clock: virtual time in ns.
        parts: what is plugged in.
        cpus: number of processors, 1 to 16; each has an index from 0 on, which is its APIC ID.
        running: the index of the processor that accesses a device right now.
        set_intr, raise_nmi, on_init, on_startup: the inputs of the processors, as ``CpuPins`` says.
        set_a20: gets the level of address line 20.
        balloon: gets what the guest tells its balloon devices, and tells them how many pages to ask for.
        on_exit: gets the value written to the exit port.
        on_power_off, on_reset: the guest switches the machine off, or resets it.
        on_suspend, on_wake: it puts the machine to sleep; a device ends that.
        on_cpu_reset: the guest resets the processor, by the keyboard controller, port 0x92 or 0xCF9; by default as
            on_reset.
        on_load: the BIOS wants the guest's kernel loaded.

    Attributes:
        bus, mmio: I/O ports, and device registers in memory.
        uart: the first serial port; its output is part of the console.
        uart2: the second one, if there is one; serial2: what was printed there, and serial2_sinks: who gets it, too.
        output: what the guest prints, on all of its consoles.
        keyboard: keyboard and mouse.
        vga: the display; vbe: its graphics.
        loader: by which the BIOS has a kernel loaded.
        monitor: tells what is on the text screen.
        lapics: the local APIC of each processor.
        virtio_balloon: the balloon device that Linux uses; it has the guest's own statistics of its memory.
        fw_cfg: what QEMU tells its firmware.
        network: what the network card is plugged into, if there is one.
        bandwidth: what virtio devices and fw_cfg may move at a time.
    """

    def __init__(
        self,
        ram: int,
        memory: BoardMemory,
        clock: Callable[[], int],
        parts: Parts = NO_PARTS,
        *,
        cpus: int = 1,
        running: Callable[[], int] = lambda: 0,
        set_intr: Callable[[int, bool], None],
        raise_nmi: Callable[[int], None],
        on_init: Callable[[int], None],
        on_startup: Callable[[int, int], None],
        set_a20: Callable[[bool], None],
        balloon: BalloonDriver,
        on_exit: Callable[[int], None],
        on_power_off: Callable[[], None],
        on_suspend: Callable[[], None],
        on_wake: Callable[[], None],
        on_reset: Callable[[], None],
        on_cpu_reset: Callable[[], None] | None = None,
        on_load: Callable[[], None] = lambda: None,
    ) -> None:
        self.bus = PortBus()
        self.mmio = MmioBus()
        self.output = ConsoleOutput()
        self.serial2 = bytearray()
        self.serial2_sinks: list[Callable[[bytes], None]] = []
        self._clock = clock
        self._memory = memory
        self._net = parts.net
        self.network = None if parts.net is None else parts.net.cable.network
        self.bandwidth = Bandwidth(clock)
        self._add_interrupt_controllers(cpus, running, CpuPins(set_intr, raise_nmi, on_init, on_startup))
        self.uart = Uart16550(self.wire(layout.IRQ_COM1), self.output, clock)
        a20 = A20Gate(set_a20)
        self.keyboard = I8042(
            self.wire(layout.IRQ_KEYBOARD), self.wire(layout.IRQ_MOUSE), clock, a20.set_i8042, on_cpu_reset or on_reset
        )
        self._power = AcpiPm(self.wire(layout.IRQ_ACPI), on_power_off, clock, on_suspend, on_wake)
        self._add_timers(clock)
        self.vga = Vga(lambda gpa, size: memory.peek(gpa, size), clock)
        self.monitor = Monitor(self.vga)
        video = VideoMemory(memory, vbe.MEMORY_SIZE, layout.VIDEO_FRAME_BUFFER)
        self.vbe = Vbe(self.vga, video.switch_on, video.look)
        self.fw_cfg = FwCfg(memory, self.bandwidth)
        self._add_disks(parts.disks, parts.cdrom)
        self._add_floppies(memory, parts.floppies)
        self._timed: list[Device | VirtioNet] = []
        self._add_virtio(memory, parts.virtio_disk, balloon)
        balloon_port = BalloonPort(balloon.inflate, balloon.deflate)
        balloon.front_ends += [balloon_port.set_target, self.virtio_balloon.set_target]
        pci = i440fx(layout.ACPI_PM_PORT, layout.IRQ_ACPI, on_reset, on_cpu_reset)
        self._add_graphics(pci, video)
        self._add_network(pci, memory)
        bars = PciBars(pci.functions[IDE_PLACE])
        ports_size = len(self._bus_masters) * BUS_MASTER_PORTS
        bars.add(IDE_BUS_MASTER, ports_size, layout.IDE_BUS_MASTER_PORT, self._place_bus_masters, io=True)
        self._place_bus_masters(layout.IDE_BUS_MASTER_PORT)
        self._power_function = pci.functions[POWER_PLACE]
        self._power_function.written = self._place_power_ports
        ports: list[tuple[int, int, Device]] = [
            (layout.COM1_PORT, layout.COM_PORTS, self.uart),
            (layout.KEYBOARD_DATA_PORT, 1, self.keyboard.data),
            (layout.KEYBOARD_COMMAND_PORT, 1, self.keyboard.command),
            (layout.SYSTEM_CONTROL_PORT_A, 1, Port92(a20.set_port92, on_cpu_reset or on_reset)),
            (layout.POST_PORT, 1, PostCodes()),
            (layout.ACPI_PM_PORT, layout.ACPI_PM_PORTS, self._power),
            (layout.SMI_PORT, layout.SMI_PORTS, SmiCommandPorts(self._power)),
            (layout.VGA_PORT, layout.VGA_PORTS, self.vga),
            (layout.VBE_PORT, layout.VBE_PORTS, self.vbe),
            (layout.FW_CFG_PORT, layout.FW_CFG_PORTS, self.fw_cfg),
            (layout.PCI_PORT, layout.PCI_PORTS, pci),
            (layout.DEBUG_CONSOLE_PORT, layout.DEBUG_CONSOLE_PORTS, DebugConsole(self.output)),
            (layout.EXIT_PORT, layout.EXIT_PORTS, ExitPort(on_exit)),
            (layout.BALLOON_PORT, layout.BALLOON_PORTS, balloon_port),
        ]
        self.loader = LoaderPort(on_load)
        ports.append((layout.LOADER_PORT, 1, self.loader))
        for base, length, device in ports:
            self.bus.register(base, length, device)
        self.uart2: Uart16550 | None = None
        if "serial2" in parts.devices:
            self.uart2 = Uart16550(self.wire(layout.IRQ_COM2), self._print_serial2, clock)
            self.bus.register(layout.COM2_PORT, layout.COM_PORTS, self.uart2)
        if "testdev" in parts.devices:
            testdev.plug_in(self.bus, self.mmio, self.wire)
        tell_firmware(self._rtc, self.fw_cfg, ram, cpus, len(parts.floppies), parts.boot_order)
        self._resets = self._power_up_state(a20)
        self._timed += [
            self._pit, self._rtc, self.uart, self.keyboard, self._hpet, *self.lapics, self._power, self._fdc,
            *self._bus_masters, self.bandwidth,
        ]  # fmt: skip
        if self.uart2 is not None:
            self._timed.append(self.uart2)

    def _place_power_ports(self, offset: int, size: int) -> None:
        """The guest has written into the PCI function that says where the ports of power management are."""
        base = int.from_bytes(self._power_function.config[PM_BASE : PM_BASE + 2], "little") & ~0x3F
        decoded = base and self._power_function.config[PM_ENABLE] & 1
        place_ports(self.bus, self._power, layout.ACPI_PM_PORTS, base if decoded else None)

    def _place_bus_masters(self, base: int | None) -> None:
        """The ports of the IDE bus masters have come to ``base``, or are nowhere; what else is there stays."""
        for number, master in enumerate(self._bus_masters):
            at = None if base is None else base + number * BUS_MASTER_PORTS
            place_ports(self.bus, master, BUS_MASTER_PORTS, at)

    def _add_interrupt_controllers(self, cpus: int, running: Callable[[], int], pins: CpuPins) -> None:
        bus = ApicBus(cpus, pins, lambda: self._pic.acknowledge(), lambda vector: self._ioapic.eoi(vector), self._clock)
        self.lapics = bus.apics
        lint0 = [lapic.lint0 for lapic in self.lapics]
        self._pic = PicPair(lint0[0].set if cpus == 1 else Wires(*lint0).set)
        self._ioapic = IoApic(bus.message)
        self.bus.register(layout.PIC_MASTER_PORT, layout.PIC_MASTER_PORTS, self._pic.master)
        self.bus.register(layout.PIC_SLAVE_PORT, layout.PIC_SLAVE_PORTS, self._pic.slave)
        self.bus.register(layout.ELCR_PORT, layout.ELCR_PORTS, self._pic.elcr)
        self.mmio.register(layout.IO_APIC, layout.IO_APIC_SIZE, self._ioapic)
        self.mmio.register(layout.LOCAL_APIC, layout.LOCAL_APIC_SIZE, ApicPage(self.lapics, running))

    def _add_timers(self, clock: Callable[[], int]) -> None:
        """The PIT and the RTC, and the HPET, which can take their interrupts over."""
        pit_wire = SwitchedWire(self.wire(layout.IRQ_PIT))
        rtc_wire = SwitchedWire(self.wire(layout.IRQ_RTC))

        def on_legacy(hpet_replaces: bool) -> None:
            pit_wire.connect(not hpet_replaces)
            rtc_wire.connect(not hpet_replaces)

        self._pit = Pit(pit_wire, clock)
        self._rtc = Rtc(Wires(rtc_wire, self._power), clock)
        self._hpet = Hpet(self.wire, clock, on_legacy)
        self.bus.register(layout.PIT_PORT, layout.PIT_PORTS, self._pit)
        self.bus.register(layout.SYSTEM_CONTROL_PORT, layout.SYSTEM_CONTROL_PORTS, SystemControlPort(self._pit, clock))
        self.bus.register(layout.RTC_PORT, layout.RTC_PORTS, self._rtc)
        self.mmio.register(layout.HPET, layout.HPET_SIZE, self._hpet)

    def _add_graphics(self, pci: PciHost, video: VideoMemory) -> None:
        """The PCI side of the display adapter."""
        function = vbe.vga_function()
        pci.functions[VGA_PLACE] = function
        registers = VgaRegisters(self.vga, self.vbe)
        self.mmio.register(layout.VGA_REGISTERS, vbe.REGISTERS_SIZE, registers)
        bars = PciBars(function)
        bars.add(0, vbe.MEMORY_SIZE, layout.VIDEO_FRAME_BUFFER, video.place, prefetchable=True)
        pages = RegisterPages(self.mmio, self._memory, registers, vbe.REGISTERS_SIZE)
        bars.add(2, vbe.REGISTERS_SIZE, layout.VGA_REGISTERS, pages.place)

    def _add_network(self, pci: PciHost, memory: GuestMemory) -> None:
        """The wiring of PCI interrupts, and the card that has one."""
        net, interrupts = self._net, PciInterrupts(pci.functions[ISA_BRIDGE_PLACE], self.wire)
        if net is not None and net.card == "e1000":
            line = interrupts.pin(layout.E1000_PLACE[0], 0)
            card = E1000(line, memory, self._clock, net.cable, net.mac)
            e1000_pci.plug_in(pci, self.bus, self.mmio, self._memory, card)
            self._timed += [net.cable, card]
            self._pic.elcr.write(1, 1, 1 << layout.IRQ_E1000 - 8)  # as a BIOS leaves it for a PCI interrupt

    def _add_disks(self, disks: Sequence[Disk], cdrom: Disc | None) -> None:
        if len(disks) > 2:
            raise BadInput("--disk", f"{len(disks)} disks, the IDE channel takes two")
        first, second, *_ = (*disks, None, None)
        self._bus_masters = tuple(BusMaster(self._memory, self._clock) for _ in range(2))
        primary = IdeChannel(Wires(self.wire(layout.IRQ_IDE), self._bus_masters[0]), (first, second))
        secondary = IdeChannel(Wires(self.wire(layout.IRQ_IDE2), self._bus_masters[1]), (cdrom, None), serial=3)
        self.ide = (primary, secondary)
        for master, channel in zip(self._bus_masters, self.ide, strict=True):
            master.serve(channel)
        self.bus.register(layout.IDE_PORT, layout.IDE_PORTS, primary)
        self.bus.register(layout.IDE_CONTROL_PORT, 1, primary.control)
        self.bus.register(layout.IDE2_PORT, layout.IDE2_PORTS, secondary)
        self.bus.register(layout.IDE2_CONTROL_PORT, 1, secondary.control)
        for number, disk in enumerate(disks):
            self._rtc.set_disk(number, *disk.geometry)

    def _add_floppies(self, memory: GuestMemory, floppies: Sequence[FloppyDisk]) -> None:
        """ISA DMA, and the floppy controller with its drives."""
        if len(floppies) > 2:
            raise BadInput("--floppy", f"{len(floppies)} floppy disks, there are two drives")
        dma = Dma(memory)
        self._fdc = Fdc(self.wire(layout.IRQ_FLOPPY), dma.channel(layout.DMA_FLOPPY), self._clock, floppies)
        self.bus.register(layout.DMA_PORT, layout.DMA_PORTS, dma.controllers[0])
        self.bus.register(layout.DMA2_PORT, layout.DMA2_PORTS, dma.controllers[1])
        self.bus.register(layout.DMA_PAGE_PORT, layout.DMA_PAGE_PORTS, dma.pages)
        self.bus.register(layout.FLOPPY_PORT, layout.FLOPPY_PORTS, self._fdc)
        self.bus.register(layout.FLOPPY_CHANGE_PORT, 1, self._fdc.change_port)
        self._rtc.set_floppies([floppy.format.drive for floppy in floppies])

    def _add_virtio(self, memory: GuestMemory, disk: Disk | None, balloon: BalloonDriver) -> None:
        self.virtio_console = VirtioConsole(memory, self.output)
        self.virtio_balloon = VirtioBalloon(memory, balloon.inflate, balloon.deflate, balloon.report)
        block = None if disk is None else VirtioBlock(memory, disk)
        net, card = self._net, None
        if net is not None and net.card == "virtio":
            card = VirtioNet(memory, self._clock, net.cable, net.mac)
            self._timed += [net.cable, card]
        devices: tuple[VirtioDevice | None, ...] = (
            VirtioRng(memory), self.virtio_console, self.virtio_balloon, block, card,
        )  # fmt: skip
        for (gpa, size, irq), device in zip(layout.virtio_slots(), devices, strict=True):
            slot = VirtioMmio(self.wire(irq), device) if device else EmptySlot()
            if device is not None:
                device.bandwidth = self.bandwidth
                self.bandwidth.join(device.go_on)
            self.mmio.register(gpa, size, slot)

    def wire(self, irq: int) -> IrqLine:
        """The wire of interrupt 0 to 23: to the 8259s below 16, and to the I/O APIC, where ISA's 0 is input 2.

        The 8259s are connected by 2: it goes to the I/O APIC alone, where the HPET shares the input with the PIT.
        """
        apic = self._ioapic.line(2 if irq == 0 else irq)
        return Wires(self._pic.line(irq), apic) if irq < 16 and irq != 2 else apic

    @property
    def resumes(self) -> bool:
        """Whether a program is to go on behind a reset of the processor."""
        return self._rtc.resumes

    def reset(self) -> None:
        """Be as after power-up, but for what a battery and the world outside keep; virtual time goes on."""
        for reset in self._resets:
            reset()

    @property
    def asleep(self) -> bool:
        """Whether the machine is in the sleep state S3."""
        return self._power.asleep

    def wake(self) -> None:
        """Be as at the end of a sleep: as at a reset, but for what tells why."""
        happened = self._power.status
        self.reset()
        self._power.woken(happened)
        self._rtc.tell_of_sleep()

    def _power_up_state(self, a20: A20Gate) -> list[Callable[[], None]]:
        """What to call at a reset. Devices may drive their interrupts meanwhile, so that controllers come last."""
        controllers: list[Device] = [self._ioapic, *self.lapics]
        devices = {id(device): device for device in (*self.bus.devices, *self.mmio.devices)}
        devices[id(self.bandwidth)] = self.bandwidth
        for device in (self._pic.master, self._pic.slave, *controllers):
            devices.pop(id(device), None)
        resets = [partial(device.machine_reset, device.state()) for device in (*devices.values(), *controllers)]
        return [*resets, partial(self._pic.load_state, self._pic.state()), partial(a20.load_state, a20.state())]

    def leave_as_bios(self) -> None:
        """Program interrupt controllers, timer and the DMA cascade as QEMU's BIOS does before it starts a kernel."""
        master, slave = layout.PIC_MASTER_PORT, layout.PIC_SLAVE_PORT
        for port, value in (
            (master, 0x11), (master + 1, 0x08), (master + 1, 0x04), (master + 1, 0x01), (master + 1, 0xB8),
            (slave, 0x11), (slave + 1, 0x70), (slave + 1, 0x02), (slave + 1, 0x01), (slave + 1, 0x8E),
            (layout.PIT_PORT + 3, 0x34), (layout.PIT_PORT, 0), (layout.PIT_PORT, 0),
            (layout.DMA2_PORT + 0x16, 0xC0), (layout.DMA2_PORT + 0x14, 0x00),
        ):  # fmt: skip
            self.bus.write(port, 1, value)

    @property
    def console(self) -> bytearray:
        """Everything that the guest printed so far; of very much the end (:mod:`emu.devices.output`)."""
        return self.output.printed

    def listen(self, sink: Callable[[bytes], None], urgent: bytes = ALL) -> None:
        """Call ``sink`` with what the guest prints from now on.

        Args:
            urgent: the bytes at which that must happen at once; with others it may wait until the VM stops, or until
                an event is passed on.
        """
        self.output.listen(sink, urgent)

    def remarks(self) -> list[str]:
        """What the user should know of the devices at the end of a run, each a sentence without a full stop."""
        return [] if self.network is None else self.network.remarks()

    def unlisten(self, sink: Callable[[bytes], None]) -> None:
        """Stop calling ``sink``."""
        self.output.unlisten(sink)

    @property
    def apic_page_mapped(self) -> bool:
        """Whether the registers of a local APIC are in memory: one at least is enabled and in xAPIC mode."""
        return any(lapic.mapped is not None for lapic in self.lapics)

    def acknowledge(self, cpu: int) -> int:
        """A processor accepts an interrupt: its vector."""
        return self.lapics[cpu].acknowledge()

    def read_msr(self, cpu: int, index: int) -> int | None:
        """A processor's model-specific register that belongs to a device; None when there is none."""
        return self.lapics[cpu].read_msr(index)

    def write_msr(self, cpu: int, index: int, value: int) -> bool:
        """Whether the processor's register exists and takes the value."""
        return self.lapics[cpu].write_msr(index, value)

    def deadline(self) -> int:
        """Virtual time in ns at which a device wants :meth:`tick`, or somebody looks at the screen; else NEVER."""
        look = self.monitor.deadline() if self.monitor.watchers else None
        earliest = self.wake_deadline()
        return earliest if look is None else min(earliest, look)

    def wake_deadline(self) -> int:
        """As :meth:`deadline`, but only for what can wake a processor."""
        earliest = NEVER
        for device in self._timed:
            deadline = device.deadline()
            if deadline is not None and deadline < earliest:
                earliest = deadline
        return earliest

    def tick(self, now: int) -> None:
        """Bring all devices to virtual time ``now``."""
        for device in self._timed:
            device.tick(now)
        self.monitor.tick(now)

    def _print_serial2(self, data: bytes) -> None:
        self.serial2 += data
        trim(self.serial2)
        for sink in self.serial2_sinks:
            sink(data)
