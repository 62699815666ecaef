"""The buses: from an I/O port, or from a gpa, to the register of a device.

An x86 CPU has 65536 byte-wide ports. A 16- or 32-bit access to devices with byte-wide ports appears on an ISA bus as
two or four byte accesses, lowest port first; they need not all hit the same device. Nobody drives the data lines of a
port without a device: they float high, so it reads as all ones, and writes are lost. The same holds for memory.

The records of devices that share their state with the native plane stand in a table, where that finds them.
"""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right

from emu.addr import MMIO_SIZE, PAGE_SHIFT
from emu.devices.device import Device
from emu.devices.shared import Head
from emu.errors import BadInput, EmuError

PORTS = 0x10000  # ports of an x86 CPU
NATIVE_MMIO = 0xFE00_0000  # gpa from which on there are registers with records, up to 4 GiB


class AddressConflict(EmuError):
    """A device was registered over another one. ``address`` is the first port or gpa that both claim."""

    def __init__(self, address: int, owner: Device, newcomer: Device) -> None:
        super().__init__(f"{address:#x} of {type(newcomer).__name__} is already taken by {type(owner).__name__}")
        self.address = address
        self.owner = owner
        self.newcomer = newcomer


class _Bus:
    """Finds the device behind an address. Addresses may be claimed and given up at any time.

    Args:
        end: one more than the highest address.
        what: what its addresses are called.
        first, shift: the table of records begins at the address ``first``; log2 of how many addresses an entry is for.

    Attributes:
        table_at: host address of the table: for each ``1 << shift`` addresses the host address of the record of the
            device there (:mod:`emu.devices.shared`) as an int64; 0 where the native plane knows none.
    """

    def __init__(self, end: int, what: str, first: int, shift: int) -> None:
        self._end = end
        self._what = what
        self._table_first, self._table_shift = first, shift
        entries = ctypes.c_int64 * (end - first >> shift)
        self._table = entries.from_buffer(mmap.mmap(-1, ctypes.sizeof(entries)))  # takes memory where it is used
        self.table_at = ctypes.addressof(self._table)
        self._first: list[int] = []  # of each claim, ascending
        self._claims: list[tuple[Device, int, int]] = []  # device, its first address, the one past its last

    def register(self, base: int, length: int, device: Device) -> None:
        """Give the addresses ``base`` to ``base + length - 1`` to ``device``.

        A device may own several ranges, but one with a record only one.

        Raises AddressConflict, and registers nothing, when one of them has an owner; BadInput when there are no such.
        """
        if base < 0 or length < 1 or base + length > self._end:
            what = f"{length:#x} {self._what} from {base:#x} for {type(device).__name__}"
            raise BadInput(what, f"not within 0 to {self._end - 1:#x}")
        taken = self._overlapping(base, length)
        if taken is not None:
            raise AddressConflict(max(base, taken[1]), taken[0], device)
        place = bisect_right(self._first, base)
        self._first.insert(place, base)
        self._claims.insert(place, (device, base, base + length))
        if isinstance(device, Head):
            device.first, device.length = base, length
            self._enter(base, length, device.shared_at)

    def is_free(self, base: int, length: int) -> bool:
        """Whether ``register`` would take these addresses."""
        return 0 <= base and base + length <= self._end and self._overlapping(base, length) is None

    def _overlapping(self, base: int, length: int) -> tuple[Device, int, int] | None:
        place = bisect_right(self._first, base)
        for claim in self._claims[max(place - 1, 0) : place + 1]:
            if base < claim[2] and claim[1] < base + length:
                return claim
        return None

    @property
    def devices(self) -> list[Device]:
        """Those that own addresses, each once, in the order of their first ones."""
        return list({id(device): device for device, _, _ in self._claims}.values())

    def bases(self, device: Device) -> list[int]:
        """The first address of each range that ``device`` owns."""
        return [base for owner, base, _ in self._claims if owner is device]

    def unregister(self, device: Device) -> None:
        """Take back all that ``device`` owns."""
        if isinstance(device, Head):
            self._enter(device.first, device.length, 0)
        kept = [claim for claim in self._claims if claim[0] is not device]
        self._first = [first for _, first, _ in kept]
        self._claims = kept

    def _enter(self, base: int, length: int, record_at: int) -> None:
        """Note in the table whose the addresses are; where an entry is for several devices, the last one has it."""
        first, last = base - self._table_first >> self._table_shift, base + length - 1 - self._table_first
        for index in range(first, (last >> self._table_shift) + 1):
            self._table[index] = record_at

    def _find(self, address: int) -> tuple[Device, int, int] | None:
        place = bisect_right(self._first, address) - 1
        if place >= 0:
            claim = self._claims[place]
            if address < claim[2]:
                return claim
        return None

    def read(self, address: int, size: int) -> int:
        """Value of a load or IN of ``size`` (1, 2, 4 or 8) bytes."""
        claim = self._find(address)
        if claim is not None:
            device, base, end = claim
            if size == 1 or (size <= device.max_access and address + size <= end):
                return device.read(address - base, size) & ((1 << 8 * size) - 1)
        elif size == 1:
            return 0xFF
        half = size // 2
        return self.read(address, half) | self.read(address + half, half) << 8 * half

    def write(self, address: int, size: int, value: int) -> None:
        """A store or OUT of the low ``size`` (1, 2, 4 or 8) bytes of ``value``."""
        claim = self._find(address)
        if claim is not None:
            device, base, end = claim
            if size == 1 or (size <= device.max_access and address + size <= end):
                device.write(address - base, size, value & ((1 << 8 * size) - 1))
                return
        elif size == 1:
            return
        half = size // 2
        self.write(address, half, value)
        self.write(address + half, half, value >> 8 * half)


class PortBus(_Bus):
    """The I/O ports of an x86 CPU."""

    def __init__(self) -> None:
        super().__init__(PORTS, "ports", 0, 0)


class MmioBus(_Bus):
    """Device registers in memory, by gpa."""

    def __init__(self) -> None:
        super().__init__(MMIO_SIZE, "bytes", NATIVE_MMIO, PAGE_SHIFT)

    def gfns(self) -> list[range]:
        """The pages in which there are registers."""
        return [range(first >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1) for _, first, end in self._claims]
