"""Random cases: the state that a processor starts in, and one to three instructions.

The same seed gives the same cases, on every machine. Registers hold mostly pointers near the ends of the window's
pages, small numbers, and edges, so that most memory operands hit the window, and many of them a page's end.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

from tests.fuzz import layout
from tests.fuzz.instructions import EDGES, Instruction, draw_instruction, place

_MODES = {  # bits, CPL: CS, SS, and what DS, ES, FS and GS hold
    (64, 0): (0x08, 0x10, (0x10, 0x33, 0)),
    (64, 3): (0x3B, 0x33, (0x33, 0, 0x3B)),
    (32, 0): (0x18, 0x10, (0x10, 0x10, 0x10, 0x33, 0)),
    (32, 3): (0x2B, 0x33, (0x33, 0x33, 0x33, 0x4B, 0x53, 0x5B, 0)),
    (16, 0): (0x20, 0x90, (0x90, 0x90, 0x10)),
    (16, 3): (0x43, 0x8B, (0x8B, 0x8B, 0x33, 0x5B)),
}
_PRESENT, _WRITE, _USER, _ACCESSED, _DIRTY, _NO_EXECUTE = 1, 2, 4, 0x20, 0x40, 1 << 63
_RESERVED = 1 << 51  # beyond the physical addresses of both machines
_CR0 = (0x80010033,) * 8 + (0x80000033, 0x80050033, 0x80050033, 0x8001003B, 0x80010037, 0x80010031)
_CR4 = (0x620,) * 9 + (0x220, 0x20)


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        registers: the qwords named in layout.NAMES, page-table entries included.
        fx: number of the FXSAVE image.
        code_offset: of the first instruction in the window.
    """

    bits: int
    cpl: int
    registers: tuple[int, ...]
    cr0: int
    cr4: int
    fx: int
    program: tuple[Instruction, ...]
    code_offset: int

    @property
    def code(self) -> bytes:
        return b"".join(instruction.code for instruction in self.program)

    def record(self) -> bytes:
        """What the batch guest reads."""
        fx = layout.FX_TEMPLATES + 512 * self.fx
        rest = (self.cr0, self.cr4, fx, self.code_offset - layout.CODE, len(self.code), 0)
        numbers = struct.pack(f"<{layout.REGISTER_QWORDS + 6}Q", *self.registers, *rest)
        return numbers + self.code.ljust(layout.CODE_BYTES, b"\xcc")

    def __getitem__(self, name: str) -> int:
        return self.registers[layout.NAMES.index(name)]


def make_cases(seed: int, count: int) -> list[Case]:
    """The cases of a seed."""
    return [_case(random.Random(seed << 32 | number)) for number in range(count)]


def _case(draw: random.Random) -> Case:
    bits, cpl = draw.choice(list(_MODES))
    cs, ss, segments = _MODES[bits, cpl]
    mask = (1 << 64) - 1 if bits == 64 else (1 << 32) - 1
    window = 0 if bits == 16 else layout.WINDOW_GVA
    registers = [_value(draw, window) & mask for _ in range(16)]
    registers[4] = window + layout.STACK_PAGES + place(draw)
    if draw.random() < 0.7:
        registers[4] &= ~7
    if draw.random() < 0.6:
        registers[1] &= 0x1F  # a count for REP and shifts
    program = tuple(draw_instruction(draw, bits, cpl) for _ in range(draw.choice((1, 1, 1, 2, 3))))
    code = b"".join(instruction.code for instruction in program)
    ports = any(instruction.ports for instruction in program)
    offset = layout.CODE + draw.randrange(0x100, 0x200)
    if draw.random() < 0.2:
        offset = layout.CODE + 0x1000 - draw.randrange(0, len(code) + 2)
    flags = 2 | draw.choice((0, 0x8D5, draw.getrandbits(12) & 0x8D5))  # the arithmetic flags
    for chance, bit in (
        (0.1, 0x400),
        (0.05, 0x100),
        (0.0 if ports else 0.3, 0x3000),
        (0.02, 0x4000),
        (0.1, 0x40000),
        (0.02, 0x10000),
    ):
        if draw.random() < chance:
            flags |= bit
    if bits == 64:
        bases = [draw.choice((0, layout.WINDOW_GVA + layout.DATA)) for _ in range(2)]
    else:
        bases = []
    chosen = [draw.choice(segments) for _ in range(4)]
    more = [0xFFFF, 0xFFFF, 0x5A5A5A5A, 0xFFFF0FF0]  # vector, error code, CR2, DR6
    registers += [(0 if bits == 16 else layout.WINDOW_GVA) + offset, flags, cs, ss, *chosen, *more]
    registers += bases or [0, 0]
    registers += _page_table_entries(draw, cpl)
    controls = draw.choice(_CR0), draw.choice(_CR4)
    return Case(bits, cpl, tuple(registers), *controls, draw.randrange(4), program, offset)


def _value(draw: random.Random, window: int) -> int:
    kind = draw.random()
    if kind < 0.6:
        return window + layout.DATA + place(draw)
    if kind < 0.75:
        return draw.randrange(40)
    return draw.choice(EDGES) if kind < 0.9 else draw.getrandbits(64)


def _page_table_entries(draw: random.Random, cpl: int) -> list[int]:
    user = _USER if cpl == 3 or draw.random() < 0.3 else 0
    entries = []
    for page in range(layout.PAGES):
        entry = layout.WINDOW_GPA + 0x1000 * page | _PRESENT | _WRITE | user
        entry |= draw.choice((0, _ACCESSED, _ACCESSED | _DIRTY))
        if page >= 2 and draw.random() < 0.5:
            entry |= _NO_EXECUTE
        entries.append(entry)
    if draw.random() < 0.4:
        page = draw.choice((1, 2, 3, 3, 4, 5))
        change = draw.choice((_PRESENT, _WRITE, _USER, _PRESENT, _WRITE, _RESERVED, _NO_EXECUTE))
        entries[page] = entries[page] & ~change if change & 7 else entries[page] | change
    return entries
