"""The Bochs display interface: graphics on a VGA with a linear frame buffer.

Source: Bochs' VBE_DISPI interface as QEMU's standard VGA has it (docs/specs/standard-vga.rst).

    port 0x1CE  index, 16 bits          port 0x1CF, also 0x1D0  data, 16 bits
    0 ID, 0xB0C0 to 0xB0C5   1, 2 width and height   3 bits a pixel: 8, 15, 16, 24, 32
    4 enable: bit 0 on, 1 registers 1 to 3 read the largest values, 6 linear, 7 keep what is in the memory
    5 bank of the window at 0xA0000   6, 7 width and height of what the memory holds   8, 9 where in it the screen is
    10 size of the memory in 64K

The PCI function 1234:1111 has the memory in BAR 0 and registers in BAR 2:

    0x000 to 0x3FF  EDID of the monitor: there is none
    0x400 to 0x41F  VGA ports 0x3C0 to 0x3DF
    0x500 to 0x515  the registers above, 16 bits each
    0x600, 0x604    size of these two registers; byte order of the pixels, little-endian

What is in the memory is drawn by those who look at it (``Vbe.picture``). There are no planes, and no window at 0xA0000:
modes are linear ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from emu.devices.device import Device, State, check_fields
from emu.devices.pci import COMMAND, COMMAND_IO, COMMAND_MEMORY, PciFunction
from emu.devices.vga import Rgb, Vga

VENDOR, DEVICE, CLASS, REVISION = 0x1234, 0x1111, 0x0300, 2
MEMORY_SIZE = 16 << 20  # bytes
REGISTERS_SIZE = 0x1000  # bytes of BAR 2
VGA_PORTS_AT, VGA_PORTS_END, DISPI_AT, EXTENDED_AT = 0x400, 0x420, 0x500, 0x600  # offsets in BAR 2
VGA_PORTS_OFFSET = 0x10  # of port 0x3C0 in the VGA's ports
LITTLE_ENDIAN = 0x1E1E_1E1E

ID, WIDTH, HEIGHT, DEPTH, ENABLE, BANK, VIRTUAL_WIDTH, VIRTUAL_HEIGHT, X_OFFSET, Y_OFFSET, MEMORY = range(11)
IDS = range(0xB0C0, 0xB0C6)
ENABLED, CAPABILITIES, LINEAR, KEEP = 0x01, 0x02, 0x40, 0x80
MOST = {WIDTH: 16000, HEIGHT: 12000, DEPTH: 32}
DEPTHS = (8, 15, 16, 24, 32)  # bits a pixel


@dataclass(frozen=True)
class VideoMode:
    """A graphics mode: pixels, and bits a pixel (one of DEPTHS)."""

    width: int
    height: int
    depth: int

    @property
    def pitch(self) -> int:
        """Bytes from a line to the next."""
        return self.width * ((self.depth + 7) // 8)


@dataclass(frozen=True)
class Picture:
    """What a linear frame buffer shows.

    Attributes:
        mode: its size and format.
        pitch: bytes from a line to the next.
        data: ``pitch`` bytes a line; the last one may be cut off behind its last pixel.
        palette: the 256 colours of a picture of 8 bits a pixel.
    """

    mode: VideoMode
    pitch: int
    data: bytes
    palette: tuple[Rgb, ...]


class Vbe(Device):
    """The registers at the ports.

    Args:
        vga: has the palette.
        switch_on: is called when a mode is switched on, with whether the memory is to be cleared.
        look: reads the memory: offset, bytes.
    """

    max_access: ClassVar[int] = 2
    STATE: ClassVar[tuple[str, ...]] = ("index", "registers")

    def __init__(self, vga: Vga, switch_on: Callable[[bool], None], look: Callable[[int, int], bytes]) -> None:
        self._vga = vga
        self._switch_on = switch_on
        self._look = look
        self.index = 0
        self.registers = [0] * 11
        self.registers[ID], self.registers[MEMORY] = IDS[-1], MEMORY_SIZE >> 16

    def read(self, offset: int, size: int) -> int:
        return self.index if offset == 0 else self.register(self.index)  # data at any of the other ports

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.index = value
        else:
            self.set_register(self.index, value)

    def register(self, index: int) -> int:
        """What a register reads as; there are none above 10."""
        if index >= len(self.registers):
            return 0
        if self.registers[ENABLE] & CAPABILITIES and index in MOST:
            return MOST[index]
        if index == VIRTUAL_HEIGHT and self.is_on:
            return min(MEMORY_SIZE // self._pitch(), 0xFFFF)
        return self.registers[index]

    def set_register(self, index: int, value: int) -> None:
        """Write a register: a mode that is shown changes at once, within what the memory has room for."""
        if index in (MEMORY, VIRTUAL_HEIGHT) or index >= len(self.registers):
            return
        if index == ID:
            if value in IDS:
                self.registers[ID] = value
            return
        was_on = self.is_on
        self.registers[index] = value
        if index == ENABLE and value & ENABLED and not was_on:
            registers = self.registers
            registers[VIRTUAL_WIDTH] = registers[WIDTH]
            registers[X_OFFSET] = registers[Y_OFFSET] = registers[BANK] = 0
            self._switch_on(not value & KEEP)
        if index in (WIDTH, VIRTUAL_WIDTH):
            self.registers[VIRTUAL_WIDTH] = max(self.registers[VIRTUAL_WIDTH], self.registers[WIDTH])

    @property
    def is_on(self) -> bool:
        """Whether a mode is switched on."""
        return bool(self.registers[ENABLE] & ENABLED)

    def set_mode(self, mode: VideoMode | None) -> None:
        """Switch a mode on as a BIOS does, or back to the VGA's own."""
        if mode is not None:
            self.registers[WIDTH : DEPTH + 1] = [mode.width, mode.height, mode.depth]
        self.set_register(ENABLE, 0)
        if mode is not None:
            self.set_register(ENABLE, ENABLED | LINEAR)

    def picture(self) -> Picture | None:
        """What is shown, in one of these modes or one of the VGA's own; None for text, and what cannot be shown."""
        if not self.is_on:
            pixels = self._vga.pixels()
            if pixels is None:
                return None
            width, height, pitch, data = pixels
            return Picture(VideoMode(width, height, 8), pitch, data, self._vga.dac_colours())
        width, height, depth = self.registers[WIDTH : DEPTH + 1]
        if depth not in DEPTHS or not width or not height:
            return None
        pitch = self._pitch()
        bytes_a_pixel = (depth + 7) // 8
        at = self.registers[Y_OFFSET] * pitch + self.registers[X_OFFSET] * bytes_a_pixel
        height = min(height, max((MEMORY_SIZE - at) // pitch, 0))
        if not height:
            return None
        data = self._look(at, (height - 1) * pitch + width * bytes_a_pixel)
        return Picture(VideoMode(width, height, depth), pitch, data, self._vga.dac_colours())

    def _pitch(self) -> int:
        pixels = max(self.registers[VIRTUAL_WIDTH], self.registers[WIDTH], 1)
        return pixels * ((max(self.registers[DEPTH], 8) + 7) // 8)


class VgaRegisters(Device):
    """The registers in BAR 2."""

    max_access: ClassVar[int] = 4

    def __init__(self, vga: Vga, vbe: Vbe) -> None:
        self._vga = vga
        self._vbe = vbe

    def read(self, offset: int, size: int) -> int:
        if VGA_PORTS_AT <= offset and offset + size <= VGA_PORTS_END:
            at = offset - VGA_PORTS_AT + VGA_PORTS_OFFSET
            return sum(self._vga.read(at + n, 1) << 8 * n for n in range(size))
        if DISPI_AT <= offset < EXTENDED_AT:
            low = self._vbe.register((offset - DISPI_AT) // 2)
            high = self._vbe.register((offset - DISPI_AT) // 2 + 1) if size == 4 else 0
            return (low | high << 16) >> 8 * (offset & 1)
        return {EXTENDED_AT: 8, EXTENDED_AT + 4: LITTLE_ENDIAN}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        if VGA_PORTS_AT <= offset and offset + size <= VGA_PORTS_END:
            for n in range(size):
                self._vga.write(offset - VGA_PORTS_AT + VGA_PORTS_OFFSET + n, 1, value >> 8 * n & 0xFF)
        elif DISPI_AT <= offset < EXTENDED_AT and not offset & 1 and size > 1:
            for n in range(size // 2):
                self._vbe.set_register((offset - DISPI_AT) // 2 + n, value >> 16 * n & 0xFFFF)

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        check_fields("VgaRegisters", state, ())


def vga_function() -> PciFunction:
    """The PCI function, without its regions."""
    function = PciFunction(VENDOR, DEVICE, CLASS, REVISION)
    function.set(COMMAND, 2, COMMAND_IO | COMMAND_MEMORY)
    return function
