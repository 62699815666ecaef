"""Directives that make many bytes out of a few words: what they may ask for.

Keystone takes any number, negative ones too, and tries to make that many bytes.  Of a size that is no constant it makes
nothing, silently, or never returns.  So only plain numbers within limits get there.

    .space SIZE, value      also .skip and .zero             .align POWER-OF-TWO, value, most    also .balign
    .fill COUNT, size, value                                 .p2align EXPONENT, value, most
    .org GPA, value         or .org LABEL + SIZE, value
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from emu.asm.expressions import evaluate, split_outside_strings
from emu.asm.source import Line

IMAGE_LIMIT = 16 << 20  # bytes that a program may become
ORG_BASE_LIMIT = 1 << 20  # a flat image lies below 1 MiB, so an .org by address may exceed IMAGE_LIMIT by that
_LARGEST_UNIT = 8  # bytes of a .fill

_SPACES = (".space", ".skip", ".zero")
_ALIGNMENTS = (".align", ".balign", ".p2align")
DIRECTIVES = (*_SPACES, ".fill", *_ALIGNMENTS, ".org")
_BROKEN = (".balignw", ".balignl", ".p2alignw", ".p2alignl", ".bundle_align_mode")  # Keystone drops what follows them
_LABEL_AND_SIZE = re.compile(r"([.\w$]+)\s*(?:\+(.*))?", re.S)


class Sizes:
    """Adds up what the directives of one program ask for."""

    def __init__(self) -> None:
        self._total = 0

    def check(self, line: Line, constants: Mapping[str, int]) -> None:
        """Look at one statement.

        Raises:
            AssemblyError: its size is no constant, makes no sense, or makes the program larger than IMAGE_LIMIT.
        """
        word, _, rest = line.text.partition(" ")
        word = word.lower()
        if word in _BROKEN:
            raise line.error(f"{word} is not there; use .balign")
        if word == ".incbin":
            self._total += Path(rest.strip().strip('"')).stat().st_size
        elif word in DIRECTIVES:
            operands = [part.strip() for part in split_outside_strings(rest, ",", nesting=True)]
            if word == ".org":
                operands[0] = _behind_label(operands[0], constants)
            if word in _ALIGNMENTS and operands[1:2] == [""]:  # only a third one: no value given
                operands[1] = "0"
            values = [_value(line, operand, constants) for operand in operands]
            self._total += _bytes(line, word, values)
        if self._total > IMAGE_LIMIT + (ORG_BASE_LIMIT if word == ".org" else 0):
            raise line.error(f"the program becomes larger than {IMAGE_LIMIT >> 20}M")


def _behind_label(expression: str, constants: Mapping[str, int]) -> str:
    """The SIZE of LABEL + SIZE; any other expression as it is."""
    found = _LABEL_AND_SIZE.fullmatch(expression)
    if found is None or found[1] in constants or found[1][0].isdigit():
        return expression
    return found[2] or "0"


def _value(line: Line, expression: str, constants: Mapping[str, int]) -> int:
    try:
        return evaluate(expression, constants)
    except ValueError:
        raise line.error("a constant was expected here; .org LABEL + SIZE fills up to an address") from None


def _bytes(line: Line, word: str, values: list[int]) -> int:
    """How many bytes a directive makes at most."""
    size = values[0]
    if word in _ALIGNMENTS:
        alignment = 1 << min(size, 64) if word == ".p2align" and size >= 0 else size
        if alignment <= 0 or alignment & (alignment - 1) or alignment > IMAGE_LIMIT:
            wanted = "an exponent from 0 to 24" if word == ".p2align" else f"a power of two up to {IMAGE_LIMIT}"
            raise line.error(f"{wanted} was expected")
        return alignment
    if size < 0:
        raise line.error("a size of 0 or more was expected")
    unit = values[1] if word == ".fill" and len(values) > 1 else 1
    if not 1 <= unit <= _LARGEST_UNIT:
        raise line.error(f"units of 1 to {_LARGEST_UNIT} bytes were expected")
    return size * unit
