"""A VGA in text mode. Source: IBM PS/2 Hardware Interface Technical Reference, video subsystem (1992).

Registers by offset from port 0x3B0; each is one byte:

    0x04, 0x24  CRT controller index      of the two addresses of the CRT controller and status, miscellaneous output
    0x05, 0x25  CRT controller data       bit 0 picks 0x3Bx (0, monochrome) or 0x3Dx (1, colour); the other is dead
    0x0A, 0x2A  read: input status 1; write: feature control
    0x10        attribute controller: index, then data, then index...; reading input status 1 makes it index again
    0x11        attribute controller data, read only
    0x12        read: input status 0; write: miscellaneous output, which 0x1C reads
    0x14, 0x15  sequencer index, data     0x1E, 0x1F  graphics controller index, data
    0x16        DAC pixel mask            0x17  read: DAC state; write: DAC entry to read
    0x18        DAC entry to write        0x19  DAC data: red, green, blue, 6 bits each, then the next entry
    0x1A        feature control, read only

    miscellaneous output  bit 0 addresses, 2-3 dot clock: 0 25.175 MHz, 1 28.322 MHz
    input status 1        bit 0 not displaying (blanked, horizontally or vertically), 3 vertical retrace

A character is two bytes in memory: its code, and its attribute, bits 0-3 foreground, 4-6 background, 7 blinks or, with
blinking switched off, is bit 3 of the background. A colour goes through the attribute controller's palette to an entry
of the DAC.

There is no video BIOS: the registers are from the start as one leaves them after setting mode 3, 80x25 in colour. There
are no planes: text memory and pixels are guest memory, and modes with planes are not shown. Neither are fonts, a split
screen, and panning by less than a character.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from emu.devices.device import Clock, Device

COLUMNS, ROWS = 80, 25
CELL_LINES = 16  # scan lines of a character, as Cursor counts them
TEXT, MONO_TEXT = 0xB8000, 0xB0000  # gpa
TEXT_SIZE = 0x8000  # bytes
PIXELS, PIXELS_SIZE = 0xA0000, 0x10000  # gpa, bytes
CHARACTERS = TEXT_SIZE // 2
NS = 1_000_000_000  # ns a second

CRTC_INDEX, CRTC_DATA, STATUS_1 = 0x24, 0x25, 0x2A  # offsets, where colour has them
MONO_TO_COLOUR = 0x20
ATTRIBUTE, ATTRIBUTE_READ, MISC = 0x10, 0x11, 0x12
SEQUENCER_INDEX, SEQUENCER_DATA = 0x14, 0x15
DAC_MASK, DAC_READ, DAC_WRITE, DAC_DATA = 0x16, 0x17, 0x18, 0x19
FEATURE_READ, MISC_READ, GRAPHICS_INDEX, GRAPHICS_DATA = 0x1A, 0x1C, 0x1E, 0x1F

MISC_COLOUR = 0x01
DOT_CLOCKS_HZ = (25_175_000, 28_322_000, 25_175_000, 25_175_000)  # by bits 2 and 3; nothing feeds the others
SEQ_CLOCKING = 1  # clocking mode: bit 0 characters 8 dots wide, else 9; 3 half the dot clock; 5 screen off
CLOCK_8_DOTS, CLOCK_HALF, CLOCK_SCREEN_OFF = 0x01, 0x08, 0x20
SEQ_MEMORY, CHAIN_4 = 4, 0x08  # memory mode: the planes are four neighbouring bytes
GFX_MODE, GFX_256_COLOURS = 5, 0x40
GFX_MISC = 6  # bit 0 graphics; 2-3 where memory is: 2 is 0xB0000, 3 is 0xB8000
GFX_MISC_GRAPHICS, GFX_MISC_MAP, GFX_MAP_MONO = 0x01, 0x0C, 0x08
ATTR_MODE, ATTR_PLANES, ATTR_COLOUR_SELECT = 0x10, 0x12, 0x14
ATTR_MODE_BLINK = 0x08
ATTR_MODE_P54 = 0x80  # palette bits 4 and 5 come from the colour select register
ATTR_DISPLAY = 0x20  # index: the palette belongs to the screen; without it the screen is blank
DAC_STATE_READ = 3  # a read was set up last; 0: a write

(
    CRTC_H_TOTAL, CRTC_H_DISPLAY_END, CRTC_H_BLANK_START, CRTC_H_BLANK_END, CRTC_H_RETRACE_START, CRTC_H_RETRACE_END,
    CRTC_V_TOTAL, CRTC_OVERFLOW, CRTC_PRESET, CRTC_MAX_LINE, CRTC_CURSOR_START, CRTC_CURSOR_END, CRTC_START_HIGH,
    CRTC_START_LOW, CRTC_CURSOR_HIGH, CRTC_CURSOR_LOW, CRTC_V_RETRACE_START, CRTC_V_RETRACE_END, CRTC_V_DISPLAY_END,
    CRTC_PITCH,
) = range(20)  # fmt: skip
CURSOR_OFF = 0x20  # cursor start
CURSOR_LINE = 0x1F  # cursor start, cursor end, maximum scan line
PROTECT = 0x80  # vertical retrace end: registers 0 to 7 are read only...
OVERFLOW_WRITABLE = 0x10  # ... but for this bit of the overflow register

# What a BIOS leaves in mode 3, 720x400 at 70 Hz.
MISC_MODE_3 = 0x67
SEQUENCER_MODE_3 = bytes.fromhex("03 00 03 00 02")
CRTC_MODE_3 = bytes.fromhex("5F4F50825581BF1F 004F0D0E00000000 9C8E8F281F96B9A3 FF")
GRAPHICS_MODE_3 = bytes.fromhex("00 00 00 00 00 10 0E 0F FF")
ATTRIBUTE_MODE_3 = bytes.fromhex("0001020304051407 38393A3B3C3D3E3F 0C000F0800")

# The bits that exist.
SEQUENCER_BITS = bytes.fromhex("03 3D 0F 3F 0E")
GRAPHICS_BITS = bytes.fromhex("0F 0F 0F 1F 03 7B 0F 0F FF")
ATTRIBUTE_BITS = b"\x3f" * 16 + bytes.fromhex("EF FF 3F 0F 0F")

CP437_LOW, CP437_DELETE = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼", "⌂"  # Python has control characters there
CP437 = CP437_LOW + bytes(range(32, 127)).decode("cp437") + CP437_DELETE + bytes(range(128, 256)).decode("cp437")

CP437_OF_LATIN_1 = dict(enumerate(CP437))  # for str.translate

Rgb = tuple[int, int, int]  # 0 to 255 each


class Cell(NamedTuple):
    """One character. Colours are indices into ``Screen.palette``."""

    character: str
    foreground: int
    background: int
    blink: bool = False


class Cursor(NamedTuple):
    """Where the cursor is, and its first and last scan line within a character of CELL_LINES."""

    row: int
    column: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Screen:
    """What the monitor shows: 25 rows of 80 cells, the cursor if it can be seen, and the 16 colours as they are now."""

    rows: tuple[tuple[Cell, ...], ...]
    cursor: Cursor | None
    palette: tuple[Rgb, ...]


class ScreenText(NamedTuple):
    """The characters on the screen: 25 rows of 80, and what of its row stands before the cursor, if that is seen."""

    rows: tuple[str, ...]
    before_cursor: str


def ega_colours() -> list[int]:
    """The DAC after mode 3 was set, 3 x 256 values of 6 bits: entry rgbRGB of the first 64 has R as 2/3 and r as 1/3
    of full red, the others are black."""
    colours = [0] * 768
    for entry in range(64):
        for component in range(3):
            strong, weak = entry >> 2 - component & 1, entry >> 5 - component & 1
            colours[3 * entry + component] = 0x2A * strong + 0x15 * weak
    return colours


class Vga(Device):
    """The chip. ``look`` reads guest memory, where the text is, without touching it; ``clock`` is for the beam."""

    STATE: ClassVar[tuple[str, ...]] = (
        "misc", "feature", "sequencer_index", "sequencer", "crtc_index", "crtc", "graphics_index", "graphics",
        "attribute_index", "attribute", "attribute_data", "dac", "dac_mask", "dac_read", "dac_write", "dac_component",
        "dac_state", "dac_latch",
    )  # fmt: skip

    def __init__(self, look: Callable[[int, int], bytes], clock: Clock) -> None:
        self._look = look
        self._clock = clock
        self.misc = MISC_MODE_3
        self.feature = 0
        self.sequencer_index, self.sequencer = 0, list(SEQUENCER_MODE_3)
        self.crtc_index, self.crtc = 0, list(CRTC_MODE_3)
        self.graphics_index, self.graphics = 0, list(GRAPHICS_MODE_3)
        self.attribute_index, self.attribute = ATTR_DISPLAY, list(ATTRIBUTE_MODE_3)
        self.attribute_data = False  # the next write to the attribute controller is data
        self.dac, self.dac_mask = ega_colours(), 0xFF
        self.dac_read = self.dac_write = 0  # entries
        self.dac_component = 0  # the next of red, green, blue
        self.dac_state = 0
        self.dac_latch = [0, 0, 0]  # an entry changes when its blue is written
        self._readers: dict[int, Callable[[], int]] = {
            ATTRIBUTE: lambda: 0 if self.attribute_data else self.attribute_index,
            ATTRIBUTE_READ: lambda: self._indexed(self.attribute, self.attribute_index & 0x1F),
            MISC: lambda: 0,  # input status 0: no interrupt, and no switches
            SEQUENCER_INDEX: lambda: self.sequencer_index,
            SEQUENCER_DATA: lambda: self._indexed(self.sequencer, self.sequencer_index),
            DAC_MASK: lambda: self.dac_mask,
            DAC_READ: lambda: self.dac_state,
            DAC_WRITE: lambda: self.dac_write,
            DAC_DATA: self._read_dac,
            FEATURE_READ: lambda: self.feature,
            MISC_READ: lambda: self.misc,
            GRAPHICS_INDEX: lambda: self.graphics_index,
            GRAPHICS_DATA: lambda: self._indexed(self.graphics, self.graphics_index),
            CRTC_INDEX: lambda: self.crtc_index,
            CRTC_DATA: lambda: self._indexed(self.crtc, self.crtc_index),
            STATUS_1: self._read_status,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            ATTRIBUTE: self._write_attribute,
            MISC: lambda value: setattr(self, "misc", value),
            SEQUENCER_INDEX: lambda value: setattr(self, "sequencer_index", value & 0x07),
            SEQUENCER_DATA: lambda value: self._set(self.sequencer, self.sequencer_index, value, SEQUENCER_BITS),
            DAC_MASK: lambda value: setattr(self, "dac_mask", value),
            DAC_READ: self._start_dac_read,
            DAC_WRITE: self._start_dac_write,
            DAC_DATA: self._write_dac,
            GRAPHICS_INDEX: lambda value: setattr(self, "graphics_index", value & 0x0F),
            GRAPHICS_DATA: lambda value: self._set(self.graphics, self.graphics_index, value, GRAPHICS_BITS),
            CRTC_INDEX: lambda value: setattr(self, "crtc_index", value),
            CRTC_DATA: self._write_crtc,
            STATUS_1: lambda value: setattr(self, "feature", value & 0x10),
        }

    # ---- registers ----

    def read(self, offset: int, size: int) -> int:
        reader = self._readers.get(self._decode(offset))
        return 0xFF if reader is None else reader()

    def write(self, offset: int, size: int, value: int) -> None:
        writer = self._writers.get(self._decode(offset))
        if writer is not None:
            writer(value)

    def _decode(self, offset: int) -> int:
        """The offset as colour has it; -1 when miscellaneous output has moved the register elsewhere."""
        if ATTRIBUTE <= offset < MONO_TO_COLOUR:
            return offset
        if self.misc & MISC_COLOUR:
            return offset if offset >= MONO_TO_COLOUR else -1
        return offset + MONO_TO_COLOUR if offset < ATTRIBUTE else -1

    @staticmethod
    def _indexed(registers: list[int], index: int) -> int:
        return registers[index] if index < len(registers) else 0

    @staticmethod
    def _set(registers: list[int], index: int, value: int, bits: bytes) -> None:
        if index < len(registers):
            registers[index] = value & bits[index]

    def _write_crtc(self, value: int) -> None:
        index = self.crtc_index
        if index <= CRTC_OVERFLOW and self.crtc[CRTC_V_RETRACE_END] & PROTECT:
            if index == CRTC_OVERFLOW:
                self.crtc[index] = self.crtc[index] & ~OVERFLOW_WRITABLE | value & OVERFLOW_WRITABLE
        elif index < len(self.crtc):
            self.crtc[index] = value

    def _write_attribute(self, value: int) -> None:
        if self.attribute_data:
            self._set(self.attribute, self.attribute_index & 0x1F, value, ATTRIBUTE_BITS)
        else:
            self.attribute_index = value & 0x3F
        self.attribute_data = not self.attribute_data

    def _start_dac_read(self, entry: int) -> None:
        self.dac_read, self.dac_component, self.dac_state = entry, 0, DAC_STATE_READ

    def _start_dac_write(self, entry: int) -> None:
        self.dac_write, self.dac_component, self.dac_state = entry, 0, 0

    def _read_dac(self) -> int:
        value = self.dac[3 * self.dac_read + self.dac_component]
        self.dac_component = (self.dac_component + 1) % 3
        if self.dac_component == 0:
            self.dac_read = (self.dac_read + 1) & 0xFF
        return value

    def _write_dac(self, value: int) -> None:
        self.dac_latch[self.dac_component] = value & 0x3F
        self.dac_component = (self.dac_component + 1) % 3
        if self.dac_component == 0:
            self.dac[3 * self.dac_write : 3 * self.dac_write + 3] = self.dac_latch
            self.dac_write = (self.dac_write + 1) & 0xFF

    # ---- the beam ----

    def _read_status(self) -> int:
        self.attribute_data = False
        line, character = self._beam()
        retrace_start = self._vertical(CRTC_V_RETRACE_START, 2, 7)
        # The end is given by its low four bits alone: the retrace takes up to 15 lines, or 16 when they are equal.
        retrace_lines = (self.crtc[CRTC_V_RETRACE_END] - retrace_start - 1 & 0x0F) + 1
        retrace = retrace_start <= line < retrace_start + retrace_lines
        displayed = line <= self._vertical(CRTC_V_DISPLAY_END, 1, 6) and character <= self.crtc[CRTC_H_DISPLAY_END]
        return 8 * retrace + (not displayed)

    def _beam(self) -> tuple[int, int]:
        """Scan line, and character within it, both counted from the top left of the picture."""
        clocking = self.sequencer[SEQ_CLOCKING]
        dots = 8 if clocking & CLOCK_8_DOTS else 9
        clock_hz = DOT_CLOCKS_HZ[self.misc >> 2 & 3] >> bool(clocking & CLOCK_HALF)
        characters = self.crtc[CRTC_H_TOTAL] + 5
        lines = self._vertical(CRTC_V_TOTAL, 0, 5) + 2
        return divmod(self._clock() * clock_hz // (NS * dots) % (characters * lines), characters)

    def _vertical(self, register: int, bit_8: int, bit_9: int) -> int:
        """A vertical timing register with its bits 8 and 9, which are these bits of the overflow register."""
        overflow = self.crtc[CRTC_OVERFLOW]
        return self.crtc[register] | (overflow >> bit_8 & 1) << 8 | (overflow >> bit_9 & 1) << 9

    # ---- the picture ----

    def is_graphics(self) -> bool:
        """Whether the guest has switched to graphics, of which ``screen`` shows nothing."""
        return bool(self.graphics[GFX_MISC] & GFX_MISC_GRAPHICS)

    def screen(self) -> Screen:
        """What is to be seen now: nothing but spaces, without a cursor, while the screen is off or shows graphics.

        Blinking characters and the cursor are always in their visible phase.
        """
        if self._is_blank():
            return Screen(((Cell(" ", 0, 0),) * COLUMNS,) * ROWS, None, self._palette())
        text = self._text_memory()
        blinking = bool(self.attribute[ATTR_MODE] & ATTR_MODE_BLINK)
        kinds = [_cell_kind(attribute, blinking) for attribute in range(256)]
        start, pitch = self._start(), self._pitch()
        rows = []
        for row in range(ROWS):
            places = (2 * ((start + row * pitch + column) % CHARACTERS) for column in range(COLUMNS))
            rows.append(tuple(Cell(CP437[text[place]], *kinds[text[place + 1]]) for place in places))
        return Screen(tuple(rows), self._cursor(), self._palette())

    def text(self) -> ScreenText:
        """The characters of ``screen`` alone, twenty times as fast."""
        if self._is_blank():
            return ScreenText((" " * COLUMNS,) * ROWS, "")
        characters = self._text_memory()[::2].decode("latin-1").translate(CP437_OF_LATIN_1)
        start, pitch = self._start(), self._pitch()
        twice = characters + characters  # a row may go over the end
        rows = tuple(twice[at : at + COLUMNS] for at in ((start + row * pitch) % CHARACTERS for row in range(ROWS)))
        cursor = self._cursor()
        return ScreenText(rows, "" if cursor is None else rows[cursor.row][: cursor.column])

    def pixels(self) -> tuple[int, int, int, bytes] | None:
        """The picture of a mode with a byte a pixel in a row of addresses, such as mode 13h: width, height, bytes of a
        line, and the lines.  None in text mode, for modes with planes, and while the screen is off."""
        chained = self.sequencer[SEQ_MEMORY] & CHAIN_4 and self.graphics[GFX_MODE] & GFX_256_COLOURS
        if not self.is_graphics() or not chained or self._is_off():
            return None
        width = (self.crtc[CRTC_H_DISPLAY_END] + 1) * 4
        repeated = ((self.crtc[CRTC_MAX_LINE] & CURSOR_LINE) + 1) << (self.crtc[CRTC_MAX_LINE] >> 7)
        height = (self._vertical(CRTC_V_DISPLAY_END, 1, 6) + 1) // repeated
        pitch = 8 * self.crtc[CRTC_PITCH]
        size = (height - 1) * pitch + width if pitch and height else 0
        start = 4 * self._start() % PIXELS_SIZE
        if not 0 < size <= PIXELS_SIZE:
            return None
        window = self._look(PIXELS, PIXELS_SIZE)
        return width, height, pitch, (window + window)[start : start + size]

    def _is_off(self) -> bool:
        return bool(not self.attribute_index & ATTR_DISPLAY or self.sequencer[SEQ_CLOCKING] & CLOCK_SCREEN_OFF)

    def _is_blank(self) -> bool:
        return self._is_off() or self.is_graphics()

    def _text_memory(self) -> bytes:
        mono = self.graphics[GFX_MISC] & GFX_MISC_MAP == GFX_MAP_MONO
        return self._look(MONO_TEXT if mono else TEXT, TEXT_SIZE)

    def _start(self) -> int:
        """Character of text memory at the top left."""
        return self.crtc[CRTC_START_HIGH] << 8 | self.crtc[CRTC_START_LOW]

    def _pitch(self) -> int:
        """Characters of text memory from a row to the next."""
        return 2 * self.crtc[CRTC_PITCH]

    def _cursor(self) -> Cursor | None:
        lines = (self.crtc[CRTC_MAX_LINE] & CURSOR_LINE) + 1
        top = self.crtc[CRTC_CURSOR_START] & CURSOR_LINE
        bottom = min(self.crtc[CRTC_CURSOR_END] & CURSOR_LINE, lines - 1)
        place = self.crtc[CRTC_CURSOR_HIGH] << 8 | self.crtc[CRTC_CURSOR_LOW]
        row, column = divmod((place - self._start()) % CHARACTERS, self._pitch() or CHARACTERS)
        hidden = self.crtc[CRTC_CURSOR_START] & CURSOR_OFF or top > bottom
        if hidden or row >= ROWS or column >= COLUMNS:
            return None
        return Cursor(row, column, top * CELL_LINES // lines, ((bottom + 1) * CELL_LINES - 1) // lines)

    def dac_colours(self) -> tuple[Rgb, ...]:
        """The 256 colours of a picture of 8 bits a pixel."""
        parts = [value << 2 | value >> 4 for value in self.dac]
        return tuple((parts[n], parts[n + 1], parts[n + 2]) for n in range(0, len(parts), 3))

    def _palette(self) -> tuple[Rgb, ...]:
        """The colours of the 16 values that an attribute can have."""
        colours = []
        select = self.attribute[ATTR_COLOUR_SELECT]
        for index in range(16):
            entry = self.attribute[index & self.attribute[ATTR_PLANES]] | (select & 0x0C) << 4
            if self.attribute[ATTR_MODE] & ATTR_MODE_P54:
                entry = entry & 0x0F | select << 4
            first = 3 * (entry & self.dac_mask)
            red, green, blue = (value << 2 | value >> 4 for value in self.dac[first : first + 3])
            colours.append((red, green, blue))
        return tuple(colours)


def _cell_kind(attribute: int, blinking: bool) -> tuple[int, int, bool]:
    """Foreground, background, and whether the character blinks."""
    background = attribute >> 4
    return (attribute & 0x0F, background & 7, background > 7) if blinking else (attribute & 0x0F, background, False)
