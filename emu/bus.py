"""The port-I/O bus: from a port number to the register of a device.

An x86 CPU has 65536 byte-wide ports. A 16- or 32-bit access to devices with byte-wide ports appears on an ISA bus as
two or four byte accesses, lowest port first; they need not all hit the same device. Nobody drives the data lines of a
port without a device: they float high, so it reads as all ones, and writes are lost.
"""

from __future__ import annotations

from emu.devices.device import Device
from emu.errors import BadInput, EmuError

PORTS = 0x10000  # ports of an x86 CPU


class PortConflict(EmuError):
    """A device was registered over another one. `port` is the first port that both claim."""

    def __init__(self, port: int, owner: Device, newcomer: Device) -> None:
        super().__init__(f"port {port:#x} of {type(newcomer).__name__} is already taken by {type(owner).__name__}")
        self.port = port
        self.owner = owner
        self.newcomer = newcomer


class PortBus:
    """Finds the device behind a port. Ports may be claimed at any time and stay claimed."""

    def __init__(self) -> None:
        self._claims: dict[int, tuple[Device, int, int]] = {}  # port -> device, its first port, the port past its last

    def register(self, base: int, length: int, device: Device) -> None:
        """Give the ports `base` to `base + length - 1` to `device`; a device may own several ranges.

        Raises PortConflict, and registers nothing, when one of them has an owner; BadInput when they are no ports.
        """
        if base < 0 or length < 1 or base + length > PORTS:
            what = f"{length:#x} ports from {base:#x} for {type(device).__name__}"
            raise BadInput(what, f"not within 0 to {PORTS - 1:#x}")
        for port in range(base, base + length):
            if port in self._claims:
                raise PortConflict(port, self._claims[port][0], device)
        for port in range(base, base + length):
            self._claims[port] = (device, base, base + length)

    def read(self, port: int, size: int) -> int:
        """Value of an IN of `size` (1, 2 or 4) bytes."""
        claim = self._claims.get(port)
        if claim is not None:
            device, base, end = claim
            if size == 1 or (size <= device.max_access and port + size <= end):
                return device.read(port - base, size) & ((1 << 8 * size) - 1)
        elif size == 1:
            return 0xFF
        half = size // 2
        return self.read(port, half) | self.read(port + half, half) << 8 * half

    def write(self, port: int, size: int, value: int) -> None:
        """An OUT of the low `size` (1, 2 or 4) bytes of `value`."""
        claim = self._claims.get(port)
        if claim is not None:
            device, base, end = claim
            if size == 1 or (size <= device.max_access and port + size <= end):
                device.write(port - base, size, value & ((1 << 8 * size) - 1))
                return
        elif size == 1:
            return
        half = size // 2
        self.write(port, half, value)
        self.write(port + half, half, value >> 8 * half)
