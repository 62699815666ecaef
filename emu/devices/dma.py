"""ISA DMA: the two 8237A controllers of a PC/AT and their page registers.

Sources: Intel 8237A data sheet (231466); IBM PC/AT technical reference, DMA; 82371 (PIIX3, 290550), 4.1.

The first controller has channels 0 to 3 and counts bytes; the second has channels 4 to 7, counts words, and its channel
4 is where the first one hangs (cascade): unless that is unmasked nothing moves on channels 0 to 3.

Registers of a controller, by number; the ports of the second are two apart:
    0-7  address and count of each channel, 16 bits through a flip-flop, low byte first
    8    read status: terminal counts, which reading clears, and requests; write command: bit 2 switches all off
    9    write request by software       A  write one mask bit
    B    write mode of a channel         C  clear the flip-flop
    D    read temporary; master clear    E  unmask all              F  read and write all mask bits
A page register holds the upper bits of a channel's address, which do not count: a transfer wraps within its 64 KiB, or
on the second controller within its 128 KiB.

A device moves what it has through its ``DmaChannel``. Memory-to-memory transfers are left out, as in the chips that
took the 8237's place; requests by software move nothing, as no device answers to them.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Device, GuestMemory, State, check_fields

CHANNELS = 4  # of a controller
STATUS, REQUEST, MASK, MODE, CLEAR_FLIP_FLOP, MASTER_CLEAR, CLEAR_MASK, ALL_MASKS = range(8, 16)
COMMAND, TEMPORARY = STATUS, MASTER_CLEAR  # the same numbers, written and read
DISABLED = 0x04  # command: no service
AUTO = 0x10  # mode: address and count begin anew at terminal count
DOWN = 0x20  # mode: addresses fall
VERIFY, TO_MEMORY, FROM_MEMORY = range(3)  # mode, bits 2 and 3
CASCADED = 3  # mode, bits 6 and 7; demand, single and block are the same here, where nobody else wants the bus
WORD = 0xFFFF
PAGE_PORTS = {0: 0x87, 1: 0x83, 2: 0x81, 3: 0x82, 5: 0x8B, 6: 0x89, 7: 0x8A}  # page register of each channel
FIRST_PAGE_PORT = 0x81


class DmaController(Device):
    """One 8237A.

    Args:
        stride: from one register's port to the next.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "base_address", "base_count", "address", "count", "mode", "mask", "terminal", "requests", "command", "high",
    )  # fmt: skip

    def __init__(self, stride: int = 1) -> None:
        self._stride = stride
        self.base_address = [0] * CHANNELS
        self.base_count = [0] * CHANNELS
        self.address = [0] * CHANNELS  # now; in units of the controller
        self.count = [0] * CHANNELS  # units left but one; WORD at the end
        self.mode = [0] * CHANNELS
        self._clear()

    def _clear(self) -> None:
        """Reset, or master clear."""
        self.mask = 0xF  # a bit a channel: it gets no service
        self.terminal = 0  # a bit a channel: its count has ended
        self.requests = 0  # a bit a channel: it asks for service
        self.command = 0
        self.high = False  # flip-flop: the next byte is the high one

    def read(self, offset: int, size: int) -> int:
        number = offset // self._stride
        if number < STATUS:
            values = self.count if number & 1 else self.address
            value = values[number >> 1]
            value = value >> 8 if self.high else value & 0xFF
            self.high = not self.high
            return value
        if number == STATUS:
            value = self.requests << 4 | self.terminal
            self.terminal = 0
            return value
        if number == TEMPORARY:
            return 0
        return 0xF0 | self.mask if number == ALL_MASKS else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        number = offset // self._stride
        channel, bit = value & 3, 1 << (value & 3)
        if number < STATUS:
            self._write_half(number, value)
        elif number == COMMAND:
            self.command = value
        elif number == REQUEST:
            self.requests = self.requests | bit if value & 4 else self.requests & ~bit
        elif number == MASK:
            self.mask = self.mask | bit if value & 4 else self.mask & ~bit
        elif number == MODE:
            self.mode[channel] = value & 0xFC
        elif number == CLEAR_FLIP_FLOP:
            self.high = False
        elif number == MASTER_CLEAR:
            self._clear()
        elif number == CLEAR_MASK:
            self.mask = 0
        else:
            self.mask = value & 0xF

    def _write_half(self, number: int, value: int) -> None:
        """A byte of an address or a count, which goes to the base and to the current register."""
        base, current = (self.base_count, self.count) if number & 1 else (self.base_address, self.address)
        channel = number >> 1
        for register in (base, current):
            old = register[channel]
            register[channel] = old & 0xFF | value << 8 if self.high else old & 0xFF00 | value
        self.high = not self.high

    def serves(self, channel: int) -> bool:
        """Whether a request of ``channel`` would be served."""
        return not self.command & DISABLED and not self.mask >> channel & 1

    def set_request(self, channel: int, level: bool) -> None:
        """The level of a channel's request line."""
        self.requests = self.requests & ~(1 << channel) | level << channel

    def advance(self, channel: int, units: int) -> bool:
        """So many units, no more than the count, have been moved; whether that was the terminal count."""
        step = -units if self.mode[channel] & DOWN else units
        self.address[channel] = self.address[channel] + step & WORD
        self.count[channel] = self.count[channel] - units & WORD
        if self.count[channel] != WORD:
            return False
        self.terminal |= 1 << channel
        self.requests &= ~(1 << channel)
        if self.mode[channel] & AUTO:
            self.address[channel], self.count[channel] = self.base_address[channel], self.base_count[channel]
        else:
            self.mask |= 1 << channel
        return True


class DmaChannel:
    """The request and acknowledge lines of one channel, for the device at their end."""

    def __init__(self, dma: Dma, number: int) -> None:
        self._wide = wide = number // CHANNELS  # words: all addresses and counts are twice as large
        self._controller, self._number = dma.controllers[wide], number % CHANNELS
        self._cascade = None if wide else dma.controllers[1]
        self._pages, self._page = dma.pages, PAGE_PORTS[number] - FIRST_PAGE_PORT
        self._memory = dma.memory

    @property
    def direction(self) -> int | None:
        """VERIFY, TO_MEMORY or FROM_MEMORY; None while requests are not served."""
        for controller, channel in ((self._controller, self._number), (self._cascade, 0)):
            if controller is not None:
                cascaded = controller.mode[channel] >> 6 == CASCADED
                if not controller.serves(channel) or cascaded is (controller is self._controller):
                    return None
        return self._controller.mode[self._number] >> 2 & 3

    @property
    def left(self) -> int:
        """Bytes up to the terminal count."""
        return self._controller.count[self._number] + 1 << self._wide

    def request(self, level: bool) -> None:
        """The level of the request line, which shows in the status."""
        self._controller.set_request(self._number, level)

    def put(self, data: bytes) -> bool:
        """Move ``data``, at most ``left`` bytes, to memory; whether that was the terminal count.

        In another direction only address and count change.
        """
        if self.direction == TO_MEMORY:
            data_left = data
            for gpa, size in self._pieces(len(data)):
                self._memory.write(gpa, self._turned(data_left[:size]))
                data_left = data_left[size:]
        return self._controller.advance(self._number, len(data) >> self._wide)

    def get(self, size: int) -> tuple[bytes, bool]:
        """The next ``size`` bytes, at most ``left``, of memory; whether that was the terminal count.

        In another direction nobody drives the bus: they are all ones.
        """
        data = b"\xff" * size
        if self.direction == FROM_MEMORY:
            data = b"".join(self._turned(self._memory.read(gpa, part)) for gpa, part in self._pieces(size))
        return data, self._controller.advance(self._number, size >> self._wide)

    def _turned(self, data: bytes) -> bytes:
        """The units of ``data`` in the order of their transfer: the last one first where addresses fall."""
        if not self._controller.mode[self._number] & DOWN:
            return data
        unit = 1 << self._wide
        return b"".join(data[at : at + unit] for at in range(len(data) - unit, -1, -unit))

    def _pieces(self, size: int) -> list[tuple[int, int]]:
        """gpa and bytes of what lies together among the next ``size`` bytes, in the order of their transfer."""
        unit = 1 << self._wide
        extent = 0x10000 << self._wide
        page = (self._pages.values[self._page] & ~self._wide) << 16
        at = self._controller.address[self._number] << self._wide
        if self._controller.mode[self._number] & DOWN:
            first = min(size, at + unit)
            pieces = [(page + at + unit - first, first), (page + extent - (size - first), size - first)]
        else:
            first = min(size, extent - at)
            pieces = [(page + at, first), (page, size - first)]
        return [piece for piece in pieces if piece[1]]


class Dma:
    """Both controllers and their page registers, at no addresses.

    Attributes:
        controllers: for channels 0 to 3, and 4 to 7.
        pages: the page registers.
        memory: what they transfer to and from.
    """

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory
        self.controllers = (DmaController(), DmaController(stride=2))
        self.pages = PageRegisters()

    def channel(self, number: int) -> DmaChannel:
        """The lines of channel 0 to 7, but for 4, the cascade."""
        return DmaChannel(self, number)


class PageRegisters(Device):
    """Ports 0x81 to 0x8F. Those that belong to no channel keep what is written, too."""

    def __init__(self) -> None:
        self.values = bytearray(15)

    def read(self, offset: int, size: int) -> int:
        return self.values[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        self.values[offset] = value

    def state(self) -> State:
        return {"values": self.values.hex()}

    def load_state(self, state: State) -> None:
        check_fields("PageRegisters", state, ("values",))
        self.values[:] = bytes.fromhex(state["values"])
