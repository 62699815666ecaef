"""Draws one instruction from the table of encodings."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.fuzz import layout
from tests.fuzz.opcodes import MAPS, selectors

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF,
         0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x0000800000000000, 0xFFFF7FFFFFFFFFFF)  # fmt: skip
_SEGMENT_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65"
_BIT_TESTS = (0xAB, 0xB3, 0xBA, 0xBB)
_SELECTORS = {"n": b"", "6": b"\x66", "3": b"\xf3", "2": b"\xf2"}


@dataclass(frozen=True)
class Instruction:
    """An instruction and its parts: prefixes (with REX), opcode with escape bytes, and what follows."""

    prefixes: bytes
    opcode: bytes
    rest: bytes
    ports: bool

    @property
    def code(self) -> bytes:
        return self.prefixes + self.opcode + self.rest

    @property
    def reg(self) -> int:
        """The reg field of the ModRM byte, if there is one."""
        return self.rest[0] >> 3 & 7 if self.rest else 0

    @property
    def in_memory(self) -> bool:
        """True when a ModRM byte, if there is one, names a memory operand."""
        return bool(self.rest) and self.rest[0] < 0xC0


def draw_instruction(draw: random.Random, bits: int, cpl: int) -> Instruction:
    """Any instruction that exists in this mode and does not take the machine away from the batch guest."""
    while True:
        escape, table = draw.choices(MAPS, (10, 8, 1, 1))[0]
        opcode = draw.choice(list(table))
        form = table[opcode]
        if not ("-" in form and bits == 64) and not ("!" in form and cpl == 0):
            break
    prefixes, operand, address = bytearray(), bits, bits
    chosen = selectors(escape, opcode)
    if chosen:
        prefixes += _SELECTORS[draw.choice(chosen)]
    else:
        prefixes += b"\x66" * (draw.random() < 0.25) + draw.choice(b"\xf2\xf3").to_bytes() * (draw.random() < 0.08)
    if 0x66 in prefixes:
        operand = 32 if bits == 16 else 16
    if draw.random() < 0.06:
        prefixes.append(0x67)
        address = 32 if bits != 32 else 16
    if draw.random() < 0.1:
        prefixes.append(draw.choice(_SEGMENT_PREFIXES))
    if draw.random() < (0.01 if chosen else 0.04):
        prefixes.append(0xF0)
    draw.shuffle(prefixes)
    wide = bits == 64 and draw.random() < 0.3
    if wide or bits == 64 and draw.random() < 0.3:
        prefixes.append(0x40 | wide << 3 | draw.randrange(8))
    rest = bytearray()
    if "M" in form:
        rest += _modrm(draw, form, bits, address)
        if not escape and opcode in (0xF6, 0xF7) and rest[0] & 0x38 < 0x10:
            form += "b" if opcode == 0xF6 else "z"
    z = 2 if operand == 16 and not wide else 4
    sizes = {"b": 1, "w": 2, "z": z, "v": 8 if wide else z, "A": z + 2, "O": address // 8}
    for letter in form:
        if letter in sizes:
            rest += _immediate(draw, sizes[letter])
        elif letter == "J":
            rest.append(draw.choice((0, 0x50, 0x7F)))
        elif letter == "K":
            distance = draw.choice((0, 0x50, 0x1000, 0x7FF0))
            rest += distance.to_bytes(2 if operand == 16 and bits != 64 else 4, "little")
    if escape == b"\x0f" and opcode in _BIT_TESTS and rest[0] >= 0xC0 and 0xF0 in prefixes:
        prefixes.remove(0xF0)  # #UD, but QEMU's translator aborts
    ports = not escape and opcode in (*range(0x6C, 0x70), *range(0xE4, 0xE8), *range(0xEC, 0xF0))
    return Instruction(bytes(prefixes), escape + bytes((opcode,)), bytes(rest), ports)


def place(draw: random.Random) -> int:
    """An offset into two pages, often near a page's end."""
    if draw.random() < 0.4:
        return draw.choice((0x1000, 0x1000, 0x2000)) - draw.randrange(1, 20)
    return draw.randrange(0x20, 0x1FE0) & ~draw.choice((0, 15, 15))


def _immediate(draw: random.Random, size: int) -> bytes:
    if size >= 4 and draw.random() < 0.5:
        return (layout.WINDOW_GVA + layout.DATA + place(draw)).to_bytes(size, "little")
    if size == 2 and draw.random() < 0.4:
        return (layout.DATA + place(draw)).to_bytes(2, "little")
    return (draw.choice(EDGES) & (1 << 8 * size) - 1).to_bytes(size, "little")


def _modrm(draw: random.Random, form: str, bits: int, address: int) -> bytes:
    members = [int(digit) for digit in form if digit.isdigit()] or list(range(8))
    reg, rm = draw.choice(members), draw.randrange(8)
    mod = 3 if "r" in form else draw.choice((0, 1, 2) if "m" in form else (0, 1, 2, 3, 3))
    parts = bytearray((mod << 6 | reg << 3 | rm,))
    if mod == 3:
        return bytes(parts)
    if address == 16:
        size = (2 if rm == 6 else 0, 1, 2)[mod]
        far = (layout.DATA + place(draw)) & 0xFFFF
    else:
        size = (4 if rm == 5 else 0, 1, 4)[mod]
        far = layout.WINDOW_GVA + layout.DATA + place(draw)
        if rm == 4:
            index = draw.choice((4, 4, 1, draw.randrange(8)))
            base = draw.randrange(8)
            parts.append(draw.randrange(4) << 6 | index << 3 | base)
            if base == 5 and mod == 0:
                size = 4
    if size == 1:
        parts.append(draw.choice((0, 0, 1, 8, 0x10, 0xF8, 0xFF)))
    elif size:
        if bits == 64 and mod == 0 and rm == 5:
            far = draw.choice((0x5000, 0x5FF8, 0x5FFD, 0x4F00))  # from RIP
        elif mod == 2:
            far = draw.choice((0, 0, 1, 8, 0x20))
        parts += far.to_bytes(size, "little")
    return bytes(parts)
