"""The set of devices of a VM and how they are wired."""

from __future__ import annotations

from collections.abc import Callable

from emu import layout
from emu.bus import PortBus
from emu.clock import NEVER
from emu.devices.console import DebugConsole
from emu.devices.device import Device
from emu.devices.exit import ExitPort
from emu.devices.pic import PicPair
from emu.devices.pit import Pit, SystemControlPort
from emu.devices.uart import Uart16550


class Platform:
    """A minimal PC: interrupt controllers, timer, serial port, debug console and exit port.

    Args:
        clock: virtual time in ns.
        set_intr: gets the level of the CPU's interrupt line.
        on_exit: gets the value written to the exit port.

    Attributes:
        bus: the I/O ports.
        uart: the first serial port; its output is part of the console.
        console: everything that the guest printed so far, bytes.
    """

    def __init__(
        self, clock: Callable[[], int], set_intr: Callable[[bool], None], on_exit: Callable[[int], None]
    ) -> None:
        self.bus = PortBus()
        self.console = bytearray()
        self._sinks: list[Callable[[bytes], None]] = []
        self._pic = PicPair(set_intr)
        pit = Pit(self._pic.line(layout.IRQ_PIT), clock)
        self.uart = Uart16550(self._pic.line(layout.IRQ_COM1), self._print, clock)
        control = SystemControlPort(pit, clock)
        bus = self.bus
        bus.register(layout.PIC_MASTER_PORT, layout.PIC_MASTER_PORTS, self._pic.master)
        bus.register(layout.PIC_SLAVE_PORT, layout.PIC_SLAVE_PORTS, self._pic.slave)
        bus.register(layout.ELCR_PORT, layout.ELCR_PORTS, self._pic.elcr)
        bus.register(layout.PIT_PORT, layout.PIT_PORTS, pit)
        bus.register(layout.SYSTEM_CONTROL_PORT, layout.SYSTEM_CONTROL_PORTS, control)
        bus.register(layout.COM1_PORT, layout.COM_PORTS, self.uart)
        bus.register(layout.DEBUG_CONSOLE_PORT, layout.DEBUG_CONSOLE_PORTS, DebugConsole(self._print))
        bus.register(layout.EXIT_PORT, layout.EXIT_PORTS, ExitPort(on_exit))
        self._timed: list[Device] = [pit, self.uart]

    def listen(self, sink: Callable[[bytes], None]) -> None:
        """Call ``sink`` with what the guest prints from now on."""
        self._sinks.append(sink)

    def unlisten(self, sink: Callable[[bytes], None]) -> None:
        """Stop calling ``sink``."""
        self._sinks.remove(sink)

    def acknowledge(self) -> int:
        """The CPU accepts an interrupt: its vector."""
        return self._pic.acknowledge()

    def deadline(self) -> int:
        """Virtual time in ns at which a device wants :meth:`tick`; NEVER when none does."""
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

    def _print(self, data: bytes) -> None:
        self.console += data
        for sink in tuple(self._sinks):
            sink(data)
