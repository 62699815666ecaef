"""Screens as text, for a terminal, and as a PNG that is decoded again."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import pytest

from emu.devices.vga import CP437, Cell, Cursor, Rgb, Screen, Vga
from emu.observe.screen import STANDARD_PALETTE, as_ansi, as_png, as_text

BLANK = Cell(" ", 7, 0)


def screen_of(
    cells: dict[tuple[int, int], Cell], cursor: Cursor | None = None, palette: tuple[Rgb, ...] = STANDARD_PALETTE
) -> Screen:
    rows = tuple(tuple(cells.get((row, column), BLANK) for column in range(80)) for row in range(25))
    return Screen(rows, cursor, palette)


def line_of(text: str, row: int = 0, colours: tuple[int, int] = (7, 0)) -> dict[tuple[int, int], Cell]:
    return {(row, column): Cell(character, *colours) for column, character in enumerate(text)}


class NoMemory:
    def read(self, gpa: int, size: int) -> bytes:
        return bytes(size)

    def write(self, gpa: int, data: bytes) -> None:
        raise AssertionError


def test_the_standard_palette_is_that_of_mode_3() -> None:
    assert STANDARD_PALETTE == Vga(lambda gpa, size: bytes(size), lambda: 0).screen().palette


# ---- text ----


def test_text_is_25_lines_without_spaces_at_their_ends() -> None:
    lines = as_text(screen_of(line_of("  a ╔ ") | line_of("z", 24))).split("\n")
    assert lines == ["  a ╔", *[""] * 23, "z", ""]


def test_ansi_without_its_sequences_is_the_text() -> None:
    ansi = as_ansi(screen_of(line_of("hello") | line_of("x", 3, (14, 1)), Cursor(4, 1, 13, 14)))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", ansi).split("\n")
    assert [len(line) for line in plain] == [80] * 25 + [0]
    assert [line.rstrip() for line in plain[:5]] == ["hello", "", "", "x", ""]


def test_ansi_colours() -> None:
    cells = {(0, 0): Cell("a", 4, 1), (0, 1): Cell("b", 4, 1), (0, 2): Cell("c", 9, 14), (0, 3): Cell("d", 7, 0, True)}
    first = as_ansi(screen_of(cells)).split("\n")[0]
    red_on_blue, bright = "\x1b[0;31;44mab", "\x1b[0;94;103mc"
    assert first == red_on_blue + bright + "\x1b[0;37;40;5md" + "\x1b[0;37;40m" + " " * 76 + "\x1b[0m"


def test_ansi_shows_the_cursor_reversed() -> None:
    lines = as_ansi(screen_of(line_of("ab", 2), Cursor(2, 1, 13, 14))).split("\n")
    assert lines[2].startswith("\x1b[0;37;40ma\x1b[0;37;40;7mb\x1b[0;37;40m ")
    assert not any(";7m" in line for number, line in enumerate(lines) if number != 2)


def test_ansi_of_a_palette_that_the_guest_changed() -> None:
    palette = (*STANDARD_PALETTE[:7], (1, 2, 3), *STANDARD_PALETTE[8:])
    assert as_ansi(screen_of({}, palette=palette)).startswith("\x1b[0;38;2;1;2;3;40m ")


# ---- pictures ----

Dots = dict[tuple[int, int], Rgb]  # of a cell, by x and y


def cells_of(png: bytes, places: Iterable[tuple[int, int]]) -> list[Dots]:
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (640, 400))
    pixels = image.convert("RGB").load()
    return [
        {(x, y): pixels[8 * column + x, 16 * row + y] for x in range(8) for y in range(16)} for row, column in places
    ]


def shape_of(dots: Dots, colour: Rgb) -> frozenset[tuple[int, int]]:
    return frozenset(place for place, value in dots.items() if value == colour)


@pytest.fixture(scope="module")
def shapes() -> dict[str, frozenset[tuple[int, int]]]:
    """The dots of all characters, white on black."""
    pytest.importorskip("PIL")
    cells = {(code // 64, code % 64): Cell(character, 15, 0) for code, character in enumerate(CP437)}
    drawn = cells_of(as_png(screen_of(cells)), cells)
    return {cells[place].character: shape_of(dots, (255, 255, 255)) for place, dots in zip(cells, drawn, strict=True)}


def test_every_cell_has_its_two_colours_and_nothing_else() -> None:
    pytest.importorskip("PIL")
    places = [(row, column) for row in range(25) for column in range(80)]
    screen = screen_of({place: Cell("A", place[1] % 16, place[0] % 16) for place in places if sum(place) % 3})
    for (row, column), dots in zip(places, cells_of(as_png(screen), places), strict=True):
        cell = screen.rows[row][column]
        colours = {STANDARD_PALETTE[cell.background]}
        if cell.character != " ":
            colours.add(STANDARD_PALETTE[cell.foreground])
        assert set(dots.values()) == colours, (row, column)


def test_all_characters_differ(shapes: dict[str, frozenset[tuple[int, int]]]) -> None:
    assert {character for character, dots in shapes.items() if not dots} == {" ", "\xa0"}
    assert len(set(shapes.values())) == len(shapes) - 1, "the two spaces alone look the same"


def test_letters_keep_to_their_cells(shapes: dict[str, frozenset[tuple[int, int]]]) -> None:
    for character in map(chr, range(33, 127)):
        assert all(1 <= x <= 6 and 3 <= y <= 13 for x, y in shapes[character]), character


def test_blocks_and_shades(shapes: dict[str, frozenset[tuple[int, int]]]) -> None:
    assert len(shapes["█"]) == 128
    assert shapes["▄"] == shapes["█"] - shapes["▀"] == {(x, y) for x in range(8) for y in range(8, 16)}
    assert shapes["▐"] == shapes["█"] - shapes["▌"] == {(x, y) for x in range(4, 8) for y in range(16)}
    assert [len(shapes[shade]) for shade in "░▒▓"] == [32, 64, 96]
    assert shapes["◘"] == shapes["█"] - shapes["•"]


SINGLE_X, DOUBLE_X = {3, 4}, {1, 2, 5, 6}
SINGLE_Y, DOUBLE_Y = {7, 8}, {5, 6, 9, 10}


@pytest.mark.parametrize(
    ("characters", "top", "bottom", "left", "right"),
    [
        ("│║─═", "║│", "║│", "─═", "─═"),
        ("┌┐└┘├┤┬┴┼", "└┘├┤┴┼", "┌┐├┤┬┼", "┐┘┤┬┴┼", "┌└├┬┴┼"),
        ("╔╗╚╝╠╣╦╩╬", "╚╝╠╣╩╬", "╔╗╠╣╦╬", "╗╝╣╦╩╬", "╔╚╠╦╩╬"),
        ("╒╕╘╛╞╡╤╧╪", "╘╛╞╡╧╪", "╒╕╞╡╤╪", "╕╛╡╤╧╪", "╒╘╞╤╧╪"),
        ("╓╖╙╜╟╢╥╨╫", "╙╜╟╢╨╫", "╓╖╟╢╥╫", "╖╜╢╥╨╫", "╓╙╟╥╨╫"),
    ],
)
def test_lines_meet_those_of_the_next_cell(
    shapes: dict[str, frozenset[tuple[int, int]]], characters: str, top: str, bottom: str, left: str, right: str
) -> None:
    for character in characters:
        dots = shapes[character]
        double_x = character in "║╔╗╚╝╠╣╦╩╬╓╖╙╜╟╢╥╨╫"
        double_y = character in "═╔╗╚╝╠╣╦╩╬╒╕╘╛╞╡╤╧╪"
        xs, ys = DOUBLE_X if double_x else SINGLE_X, DOUBLE_Y if double_y else SINGLE_Y
        assert {x for x, y in dots if y == 0} == (xs if character in top else set()), character
        assert {x for x, y in dots if y == 15} == (xs if character in bottom else set()), character
        assert {y for x, y in dots if x == 0} == (ys if character in left else set()), character
        assert {y for x, y in dots if x == 7} == (ys if character in right else set()), character


CORNER = """
........ ........ ........ ........
........ ........ ........ ........
........ ........ ........ ........
........ ........ ........ ........
........ ........ ........ ........
.####### ...##### ######## ........
.####### ...##### ######## ........
.##..... ...##... ........ ########
.##..... ...##... ........ ########
.##..### ...##### ######## .##..##.
.##..### ...##### ######## .##..##.
.##..##. ...##... ...##... .##..##.
.##..##. ...##... ...##... .##..##.
.##..##. ...##... ...##... .##..##.
.##..##. ...##... ...##... .##..##.
.##..##. ...##... ...##... .##..##.
"""


def test_double_lines_turn_and_end(shapes: dict[str, frozenset[tuple[int, int]]]) -> None:
    rows = [line.split() for line in CORNER.split("\n") if line]
    for number, character in enumerate("╔╒╤╥"):
        drawn = ["".join(".#"[(x, y) in shapes[character]] for x in range(8)) for y in range(16)]
        assert drawn == [row[number] for row in rows], character


def test_cursor_is_drawn_in_the_colour_of_its_cell() -> None:
    pytest.importorskip("PIL")
    screen = screen_of({(24, 79): Cell(" ", 12, 1)}, Cursor(24, 79, 13, 14))
    (dots,) = cells_of(as_png(screen), [(24, 79)])
    assert shape_of(dots, STANDARD_PALETTE[12]) == {(x, y) for x in range(8) for y in (13, 14)}
    assert set(dots.values()) == {STANDARD_PALETTE[12], STANDARD_PALETTE[1]}


def test_pictures_are_the_same_every_time() -> None:
    pytest.importorskip("PIL")
    screen = screen_of(line_of("same"), Cursor(0, 4, 0, 15))
    assert as_png(screen) == as_png(screen)
    assert as_png(screen) != as_png(screen_of(line_of("same")))
