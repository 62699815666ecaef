"""QEMU's firmware configuration device: named and numbered blobs for firmware and kernel.
Source: QEMU's specification "QEMU Firmware Configuration (fw_cfg) Device".

A 16-bit key selects an item, of which the data port then gives one byte after the other; after its end come zeros.
Bit 14 of a key asks for the long gone writing mode and is ignored; bit 15 is the set of items of the architecture.

    offset 0    write 2 bytes: key; the position in the item becomes 0
    offset 1    read 1 byte: the next byte; writes are ignored
    offset 4    write 4 bytes, big-endian: upper half of the address of a DMA request
    offset 8    write 4 bytes, big-endian: lower half; a short request is carried out before the write is over
    offset 4-11 read: "QEMU CFG"

A DMA request lies in memory: control, length (4 bytes each) and address (8), big-endian. Its control's upper half is
the key to select first if DMA_SELECT is set; the transfer begins at the position in the item and moves it on. Done, the
device stores 0 as control, or DMA_ERROR; a driver waits for that, and a second request meanwhile fails. Reading behind
the end gives zeros; only items that were declared so can be written, and only within their size.

Key 0x19 is the directory of the named items: their number (4 bytes), then for each its size (4), key (2), 2 bytes of
nothing and its name (56, ending with NUL); all big-endian. Files have the keys from 0x20 on, sorted by name as in QEMU,
so that the order in which a machine adds them cannot be seen.
"""

from __future__ import annotations

import struct
from typing import ClassVar

from emu.devices.bandwidth import Bandwidth
from emu.devices.device import Device, GuestMemory, State, check_fields
from emu.errors import BadInput

SIGNATURE = 0x00  # "QEMU"
ID = 0x01  # which interfaces there are, 4 bytes
UUID = 0x02  # 16 bytes
RAM_SIZE = 0x03  # bytes of memory, 8 bytes
NOGRAPHIC = 0x04  # 2 bytes: 1 sends the firmware's output to the serial port
NB_CPUS = 0x05  # processors at start, 2 bytes
KERNEL_ADDR = 0x07  # this and the following up to SETUP_DATA: what a boot ROM loads, sizes and addresses 4 bytes
KERNEL_SIZE = 0x08
INITRD_ADDR = 0x0A
INITRD_SIZE = 0x0B
BOOT_MENU = 0x0E  # 2 bytes: 1 offers a boot menu
MAX_CPUS = 0x0F  # processors that there can be, 2 bytes
KERNEL_ENTRY = 0x10
KERNEL_DATA = 0x11
INITRD_DATA = 0x12
CMDLINE_ADDR = 0x13
CMDLINE_SIZE = 0x14
CMDLINE_DATA = 0x15
SETUP_ADDR = 0x16
SETUP_SIZE = 0x17
SETUP_DATA = 0x18
FILE_DIR = 0x19
FILE_FIRST = 0x20  # key of the first file
FILE_SLOTS = 0x20  # files that QEMU has room for
ARCH_LOCAL = 0x8000  # bit of the keys below: items of the PC
ACPI_TABLES = 0x8000
SMBIOS_ENTRIES = 0x8001
IRQ0_OVERRIDE = 0x8002
E820_TABLE = 0x8003
HPET = 0x8004
WRITE_MODE = 0x4000  # ignored bit of a key

ID_TRADITIONAL = 0x01
ID_DMA = 0x02
DMA_SIGNATURE = b"QEMU CFG"
DMA_ERROR = 0x01
DMA_READ = 0x02
DMA_SKIP = 0x04
DMA_SELECT = 0x08
DMA_WRITE = 0x10
REQUEST = struct.Struct(">IIQ")  # control, length, address
DIRECTORY_ENTRY = struct.Struct(">IHH56s")  # size, key, reserved, name

SELECTOR, DATA, DMA_HIGH, DMA_LOW, PORTS = 0, 1, 4, 8, 12  # offsets
CHUNK = 0x10000  # bytes that are moved at once


class FwCfg(Device):
    """The device.

    Args:
        memory: where its DMA requests and their data are.
        bandwidth: what it may move; by default without a limit.
    """

    max_access: ClassVar[int] = 4
    STATE: ClassVar[tuple[str, ...]] = ("key", "position", "dma_high", "request", "target", "missing")

    def __init__(self, memory: GuestMemory, bandwidth: Bandwidth | None = None) -> None:
        self._memory = memory
        self._bandwidth = bandwidth or Bandwidth()
        self._bandwidth.join(self._go_on)
        self._items: dict[int, bytes | bytearray] = {}
        self._files: dict[str, bytes | bytearray] = {}  # sorted by name
        self.key = 0
        self.position = 0  # next byte of the selected item
        self.dma_high = 0  # upper half of the next request's address
        self.request: int | None = None  # gpa of the reading request that is being carried out
        self.target = 0  # gpa of its next byte
        self.missing = 0  # bytes of it
        self.set(SIGNATURE, b"QEMU")
        self.set(ID, struct.pack("<I", ID_TRADITIONAL | ID_DMA))
        self._update_directory()

    def set(self, key: int, data: bytes) -> None:
        """Give item ``key`` its content, which replaces an older one. Numbers in it are little-endian.

        Raises BadInput for a key of files or of none.
        """
        if not 0 <= key & ~ARCH_LOCAL < FILE_FIRST or key == FILE_DIR:
            raise BadInput(f"fw_cfg key {key:#x}", f"not one of 0 to {FILE_FIRST - 1:#x}, or these with bit 15")
        self._items[key] = bytes(data)

    def add_file(self, name: str, data: bytes, writable: bool = False) -> None:
        """Add a file, or replace its content; a guest can change the bytes of a ``writable`` one by DMA.

        Raises BadInput when the name has no room (55 ASCII characters) or there are too many files.
        """
        if not name or not name.isascii() or len(name) > 55:
            raise BadInput(f"fw_cfg file {name!r}", "its name must be 1 to 55 ASCII characters")
        if name not in self._files and len(self._files) == FILE_SLOTS:
            raise BadInput(f"fw_cfg file {name!r}", f"there are {FILE_SLOTS} files already")
        self._files[name] = bytearray(data) if writable else bytes(data)
        self._files = {each: self._files[each] for each in sorted(self._files)}
        self._update_directory()

    def file(self, name: str) -> bytes:
        """Content of a file as it is now. Raises KeyError when there is none of that name."""
        return bytes(self._files[name])

    def read(self, offset: int, size: int) -> int:
        if offset >= DMA_HIGH:
            return int.from_bytes(DMA_SIGNATURE[offset - DMA_HIGH :][:size], "little")
        value = 0
        for byte, at in enumerate(range(offset, offset + size)):
            value |= (self._next_byte() if at <= DATA else 0xFF) << 8 * byte
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == SELECTOR and size == 2:
            self._select(value)
        elif size == 4 and offset in (DMA_HIGH, DMA_LOW):
            half = int.from_bytes(value.to_bytes(4, "little"), "big")
            if offset == DMA_HIGH:
                self.dma_high = half
            else:
                at, self.dma_high = self.dma_high << 32 | half, 0
                self._carry_out(at)

    def machine_reset(self, power_up: State) -> None:
        """What the files hold is the machine's configuration, and stays."""
        self.key = self.position = self.dma_high = 0
        self.request = None

    def state(self) -> State:
        """The contents are the machine's configuration and not part of it, but what the guest can write is, in hex."""
        written = {name: data.hex() for name, data in self._files.items() if isinstance(data, bytearray)}
        return super().state() | {"written": written}

    def load_state(self, state: State) -> None:
        check_fields("FwCfg", state, (*self.STATE, "written"))
        writable = [name for name, data in self._files.items() if isinstance(data, bytearray)]
        check_fields("FwCfg files", state["written"], tuple(writable))
        super().load_state({name: state[name] for name in self.STATE})
        for name in writable:
            self._files[name] = bytearray.fromhex(state["written"][name])
        self._update_directory()

    def _update_directory(self) -> None:
        directory = struct.pack(">I", len(self._files))
        for key, (name, data) in enumerate(self._files.items(), FILE_FIRST):
            directory += DIRECTORY_ENTRY.pack(len(data), key, 0, name.encode())
            self._items[key] = data
        self._items[FILE_DIR] = directory

    def _select(self, key: int) -> None:
        self.key = key & ~WRITE_MODE
        self.position = 0

    def _selected(self) -> bytes | bytearray:
        """The item under the key; there are keys without one, which is as good as an empty one."""
        return self._items.get(self.key, b"")

    def _next_byte(self) -> int:
        item = self._selected()
        if self.position >= len(item):
            return 0
        self.position += 1
        return item[self.position - 1]

    def _carry_out(self, at: int) -> None:
        control, length, gpa = REQUEST.unpack(self._memory.read(at, REQUEST.size))
        if self.request is not None:
            self._finish(at, False)
            return
        if control & DMA_SELECT:
            self._select(control >> 16)
        if control & DMA_READ:
            self.request, self.target, self.missing = at, gpa, length
            self._go_on()
            return
        done = True
        if control & DMA_WRITE:
            done = self._write_from(gpa, length)
        elif control & DMA_SKIP:
            self._skip(length)
        self._finish(at, done)

    def _finish(self, at: int, done: bool) -> None:
        """Tell the driver how its request at ``at`` has ended."""
        self._memory.write(at, struct.pack(">I", 0 if done else DMA_ERROR))

    def _skip(self, length: int) -> None:
        self.position = max(self.position, min(self.position + length, len(self._selected())))

    def _go_on(self) -> None:
        """Move as much as may be moved now of the request that reads."""
        if self.request is None:
            return
        while self.missing:
            left = self._bandwidth.left
            if left <= 0:
                self._bandwidth.wait()
                return
            size = min(CHUNK, left, self.missing)
            item, start = self._selected(), self.position
            self._memory.write(self.target, bytes(item[start : start + size]).ljust(size, b"\0"))
            self._bandwidth.charge(size)
            self._skip(size)
            self.target += size
            self.missing -= size
        at, self.request = self.request, None
        self._finish(at, True)

    def _write_from(self, gpa: int, length: int) -> bool:
        """Whether the selected item could be written in full length."""
        item, start = self._selected(), self.position
        if not length:
            return True
        if not isinstance(item, bytearray) or start + length > len(item):
            return False
        item[start : start + length] = self._memory.read(gpa, length)
        self._skip(length)
        return True
