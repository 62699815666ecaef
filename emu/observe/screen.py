"""A text screen as plain text, as coloured text for a terminal, and as a picture."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from emu.devices.vga import CELL_LINES, COLUMNS, ROWS, Cell, Rgb, Screen

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CELL_DOTS = 8  # width of a character in a picture; it is CELL_LINES high

# A terminal's colours have bit 0 red and bit 2 blue, the other way round than a VGA's.
TERMINAL_COLOURS = (0, 4, 2, 6, 1, 5, 3, 7)
DIM, BRIGHT = (0x00, 0xAA), (0x55, 0xFF)  # off and on in the palette after mode 3 was set


def as_text(screen: Screen) -> str:
    """The characters: a line a row, without the spaces at its end."""
    return "".join("".join(cell.character for cell in row).rstrip() + "\n" for row in screen.rows)


# ---- for a terminal ----


def as_ansi(screen: Screen) -> str:
    """The same in colour, with the escape sequences of ECMA-48; all 80 columns, and the cursor in reverse video."""
    lines = []
    for number, row in enumerate(screen.rows):
        line, style = "", ""
        for column, cell in enumerate(row):
            at_cursor = screen.cursor is not None and screen.cursor[:2] == (number, column)
            wanted = _style(cell, at_cursor, screen.palette)
            line += cell.character if wanted == style else wanted + cell.character
            style = wanted
        lines.append(line + "\x1b[0m\n")
    return "".join(lines)


def _style(cell: Cell, reverse: bool, palette: tuple[Rgb, ...]) -> str:
    """Escape sequence that selects all attributes of a cell, whatever was selected before."""
    codes = [0, *_colour(cell.foreground, 30, palette), *_colour(cell.background, 40, palette)]
    codes += [5] * cell.blink + [7] * reverse
    return f"\x1b[{';'.join(map(str, codes))}m"


def _colour(index: int, base: int, palette: tuple[Rgb, ...]) -> tuple[int, ...]:
    """Codes of a colour, ``base`` 30 for the foreground, 40 for the background: one of the terminal's own 16, which its
    user may have chosen, unless the guest has made another colour of it."""
    if palette[index] == STANDARD_PALETTE[index]:
        return (base + TERMINAL_COLOURS[index & 7] + 60 * (index >> 3),)
    return (base + 8, 2, *palette[index])


def _standard(index: int) -> Rgb:
    off, on = BRIGHT if index & 8 else DIM
    if index == 6:
        return on, 0x55, off  # brown, not dark yellow
    return on if index & 4 else off, on if index & 2 else off, on if index & 1 else off


STANDARD_PALETTE = tuple(map(_standard, range(16)))


# ---- as a picture ----
#
# Letters are from the one font in Pillow with cells of one width, 6 x 11 dots for Latin-1, whose dots do not depend on
# the version of a library. What else is in code page 437 is drawn here; lines and blocks reach the edges of the cell.

LETTERS_AT = (1, 3)  # where those cells are in ours
GLYPHS_AT = 4  # scan line of the first row of GLYPHS

# Lines: weight (0 none, 1 single, 2 double) of the arms up, down, left, right.
ARMS = {
    "│": "1100", "┤": "1110", "╡": "1120", "╢": "2210", "╖": "0210", "╕": "0120", "╣": "2220", "║": "2200",
    "╗": "0220", "╝": "2020", "╜": "2010", "╛": "1020", "┐": "0110", "└": "1001", "┴": "1011", "┬": "0111",
    "├": "1101", "─": "0011", "┼": "1111", "╞": "1102", "╟": "2201", "╚": "2002", "╔": "0202", "╩": "2022",
    "╦": "0222", "╠": "2202", "═": "0022", "╬": "2222", "╧": "1022", "╨": "2011", "╤": "0122", "╥": "0211",
    "╙": "2001", "╘": "1002", "╒": "0102", "╓": "0201", "╫": "2211", "╪": "1122", "┘": "1010", "┌": "0101",
}  # fmt: skip
SPREAD = (0, 1, 3)  # dots from the middle to the outer edge of a line, by weight; a double line is two dots hollow

# Rectangles: left, top, right, bottom, all inclusive.
SHAPES = {
    "█": ((0, 0, 7, 15),), "▄": ((0, 8, 7, 15),), "▀": ((0, 0, 7, 7),), "▌": ((0, 0, 3, 15),), "▐": ((4, 0, 7, 15),),
    "⌠": ((3, 3, 4, 15), (4, 2, 6, 3), (6, 4, 7, 4)), "⌡": ((3, 0, 4, 12), (1, 12, 3, 13), (0, 11, 1, 11)),
}  # fmt: skip
SHADES = {"░": ("88", "22"), "▒": ("AA", "55"), "▓": ("77", "DD")}  # dots of even and odd scan lines
INVERSE = {"◘": "•", "◙": "○"}
GLYPHS = {  # ten rows of eight dots, the upper eight above the base line
    "☺": "3c425a425a66423c0000", "☻": "3c7e5a7e5a667e3c0000", "♥": "006cfefefe7c38100000", "♦": "10387cfefe7c38100000",
    "♣": "30787830dcfcdc780000", "♠": "10387cfefe6c107c0000", "•": "0000183c3c1800000000", "○": "00003c6642663c000000",
    "♂": "1e060a38444444380000", "♀": "3c4242423c187e181800", "♪": "181c16121070f0600000", "♫": "3e223e22222266660000",
    "☼": "105438c6385410000000", "►": "4060787e7e7860400000", "◄": "040c3cfcfc3c0c040000", "↕": "10385410105438100000",
    "‼": "6c6c6c6c6c006c6c0000", "▬": "000000007e7e7e000000", "↨": "10385410105438107c00", "↑": "10385410101010100000",
    "↓": "10101010105438100000", "→": "000804fe040800000000", "←": "002040fe402000000000", "∟": "0000404040407e000000",
    "↔": "00002844fe4428000000", "▲": "001038387c7cfefe0000", "▼": "00fefe7c7c3838100000", "⌂": "0010386cc6c6c6fe0000",
    "₧": "e09094ee848484860000", "ƒ": "1c36303078303030d870", "⌐": "0000007e404000000000", "α": "000076dcc8c8dc760000",
    "Γ": "fe666060606060f00000", "π": "0000fe44444444cc0000", "Σ": "fec26030183062fe0000", "σ": "00003e6cc6c6c67c0000",
    "τ": "00007e901010180c0000", "Φ": "38107cd6d67c10380000", "Θ": "386cc6c6fec66c380000", "Ω": "386cc6c6c66c6cee0000",
    "δ": "3c6030183c66663c0000", "∞": "0000006c92926c000000", "φ": "0010107cd6d6d67c1010", "ε": "00003c603860603c0000",
    "∩": "00386cc6c6c6c6c60000", "≡": "007e00007e00007e0000", "≥": "6018061860007e000000", "≤": "0c30c0300c007e000000",
    "≈": "0000729c00729c000000", "∙": "00000018180000000000", "√": "0e080808c86838180000", "ⁿ": "586c6c6c000000000000",
    "■": "00007e7e7e7e7e7e0000",
}  # fmt: skip


def as_png(screen: Screen) -> bytes:
    """A PNG file of 640 x 400 dots, 8 x 16 a character, with 16 colours. The same screen gives the same picture.

    Raises ImportError when Pillow is not installed.
    """
    from PIL import Image

    picture = Image.new("P", (COLUMNS * CELL_DOTS, ROWS * CELL_LINES))
    picture.putpalette([value for colour in screen.palette for value in colour])
    masks: dict[str, Picture] = {}
    for number, row in enumerate(screen.rows):
        for column, cell in enumerate(row):
            x, y = column * CELL_DOTS, number * CELL_LINES
            picture.paste(cell.background, (x, y, x + CELL_DOTS, y + CELL_LINES))
            if cell.character not in masks:
                masks[cell.character] = _mask(cell.character)
            picture.paste(cell.foreground, (x, y), masks[cell.character])
    if screen.cursor is not None:
        number, column, top, bottom = screen.cursor
        x, y = column * CELL_DOTS, number * CELL_LINES
        colour = screen.rows[number][column].foreground
        picture.paste(colour, (x, y + top, x + CELL_DOTS, y + bottom + 1))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _mask(character: str) -> Picture:
    """The dots of a character."""
    from PIL import Image, ImageChops, ImageDraw, ImageFont

    size = (CELL_DOTS, CELL_LINES)
    if character in INVERSE:
        return ImageChops.invert(_mask(INVERSE[character]))
    if character in GLYPHS:
        return Image.frombytes("1", size, bytes(GLYPHS_AT) + bytes.fromhex(GLYPHS[character]) + bytes(2))
    if character in SHADES:
        return Image.frombytes("1", size, bytes.fromhex("".join(SHADES[character]) * (CELL_LINES // 2)))
    mask = Image.new("1", size)
    draw = ImageDraw.Draw(mask)
    if character in ARMS:
        _draw_arms(draw.rectangle, *map(int, ARMS[character]))
    elif character in SHAPES:
        for left, top, right, bottom in SHAPES[character]:
            draw.rectangle((left, top, right, bottom), 1)
    elif character != "\xa0":  # a space, which the font has a mark for
        draw.text(LETTERS_AT, character, 1, ImageFont.load_default_imagefont())
    return mask


def _draw_arms(rectangle: Callable[[tuple[int, int, int, int], int], None], *arms: int) -> None:
    """Draw lines: double ones as bands first, then their hollows, and over these the single ones."""
    up, down, left, right = arms
    strokes = [
        (stage, (CELL_DOTS // 2 - half, first, CELL_DOTS // 2 + half - 1, last))
        for stage, half, first, last in _strokes(up, down, left, right, CELL_LINES)
    ] + [
        (stage, (first, CELL_LINES // 2 - half, last, CELL_LINES // 2 + half - 1))
        for stage, half, first, last in _strokes(left, right, up, down, CELL_DOTS)
    ]
    for stage, box in sorted(strokes):
        rectangle(box, stage != HOLLOW)


BAND, HOLLOW, SINGLE = range(3)  # stages


def _strokes(low: int, high: int, side: int, other_side: int, length: int) -> list[tuple[int, int, int, int]]:
    """What the two arms of one direction are drawn of, in a cell of ``length`` dots along it: stage, half the width,
    first and last dot. ``side`` and ``other_side`` are the arms across."""
    across = max(side, other_side)
    strokes = []
    for weight, opposite, at_end in ((low, high, False), (high, low, True)):
        if weight == 2:
            # An outer line of a corner reaches the outer line across, an inner one the inner line.
            parts = [(BAND, SPREAD[2], SPREAD[across]), (HOLLOW, 1, min(across, 1))]
        elif weight == 1:
            # A line that ends on one across touches it, but goes on to its far side in a corner.
            ends = side and other_side and not opposite
            parts = [(SINGLE, 1, -SPREAD[across] if ends else 0 if opposite else SPREAD[across])]
        else:
            parts = []
        for stage, half, beyond in parts:  # dots beyond the middle
            middle = length // 2
            span = (middle - beyond, length - 1) if at_end else (0, middle + beyond - 1)
            strokes.append((stage, half, *span))
    return strokes
