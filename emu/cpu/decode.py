"""Just enough of an instruction decoder: prefixes, opcode, ModRM, length, and where LOCK or alignment matter.

SDM vol. 2A, chapter 2 and appendix A.  The result is in the processor's record (``insn_*``):

* ``insn_prefixes``: ``P_*`` bits; a segment override as 1 + its number from bit 8 on,
* ``insn_rex``: the REX prefix that counts, or the same bits from a VEX prefix,
* ``insn_opcode``: map << 8 | opcode, with the maps ONE_BYTE, 0F, 0F38, 0F3A as 0 to 3,
* ``insn_modrm``: the ModRM byte, once :func:`read_modrm` was called,
* ``insn_at``: gva of what follows; ``insn_flags``: HFLAGS that it was decoded under.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.cpu.guestmem import load_linear_code_byte
from emu.engine.cpustate import BASE, HF_CS32, HF_CS64, HF_PE, HF_VM, RIP, SEGMENT_SIZE, SEGMENTS
from emu.engine.native import inlined, load64, outlined
from emu.engine.state import Cpu, cpu_record
from emu.engine.translator import code_byte

P_DATA, P_ADDRESS, P_LOCK, P_REPNE, P_REP, P_VEX = 1, 2, 4, 8, 16, 32
P_SEGMENT = 8  # shift

REX_B, REX_X, REX_R, REX_W = 1, 2, 4, 8

MAP_0F, MAP_38, MAP_3A = 0x100, 0x200, 0x300

TRANSLATOR, MEMORY = 0, 1  # where code is read: as the translator fetches it, or without any effect

_LONGEST = 15


@inlined
def code_byte_at(cpu: Cpu, gva: int, source: int) -> int:
    """A byte of code; -1 when it cannot be read from MEMORY."""
    if source == TRANSLATOR:
        return code_byte(cpu, gva)
    return load_linear_code_byte(cpu, gva)


@inlined
def _segment_prefix(byte: int) -> int:
    """1 + the number (ES CS SS DS FS GS) of the segment that a prefix selects, or 0."""
    if byte == 0x26 or byte == 0x2E or byte == 0x36 or byte == 0x3E:
        return (byte >> 3 & 3) + 1
    if byte == 0x64 or byte == 0x65:
        return byte - 0x64 + 5
    return 0


@inlined
def _vex_applies(flags: int, second: int) -> bool:
    """Whether C4 or C5 begins a VEX prefix rather than LES or LDS, by the byte behind it (SDM vol. 2A, 2.3)."""
    if flags & HF_CS64:
        return True
    return flags & HF_CS32 != 0 and flags & HF_PE != 0 and flags & HF_VM == 0 and second & 0xC0 == 0xC0


@outlined("vqqqq")
def decode(cpu_at: int, gva: int, flags: int, source: int) -> None:
    """Decode prefixes and opcode of the instruction at ``gva``.

    Args:
        flags: HFLAGS, with VM.
        source: TRANSLATOR or MEMORY; from MEMORY an unreadable byte makes ``insn_opcode`` -1.
    """
    cpu = cpu_record(cpu_at)
    prefixes = rex = 0
    byte = 0
    for _ in range(_LONGEST):
        byte = code_byte_at(cpu, gva, source)
        gva += 1
        segment = 0
        if byte == 0x66:
            prefixes |= P_DATA
        elif byte == 0x67:
            prefixes |= P_ADDRESS
        elif byte == 0xF0:
            prefixes |= P_LOCK
        elif byte == 0xF2:
            prefixes = prefixes & ~P_REP | P_REPNE
        elif byte == 0xF3:
            prefixes = prefixes & ~P_REPNE | P_REP
        elif byte & 0xF0 == 0x40 and flags & HF_CS64:
            rex = byte
            continue
        else:
            segment = _segment_prefix(byte)
            if not segment:
                break
            prefixes = (prefixes & 0xFF) | segment << P_SEGMENT
        rex = 0  # REX counts only directly before the opcode
    opcode = byte
    if byte == 0x0F:
        opcode = code_byte_at(cpu, gva, source)
        gva += 1
        if opcode == 0x38 or opcode == 0x3A:
            table = MAP_38 if opcode == 0x38 else MAP_3A
            opcode = code_byte_at(cpu, gva, source)
            gva += 1
        else:
            table = MAP_0F
        opcode = opcode if opcode < 0 else table | opcode
    elif byte == 0xC4 or byte == 0xC5:
        second = code_byte_at(cpu, gva, source)
        if second >= 0 and _vex_applies(flags, second):
            third = second
            table = MAP_0F
            gva += 1
            rex = REX_R if not second & 0x80 else 0
            if byte == 0xC4:
                rex |= (REX_X if not second & 0x40 else 0) | (REX_B if not second & 0x20 else 0)
                table = (second & 0x1F) << 8
                third = code_byte_at(cpu, gva, source)
                gva += 1
                rex |= third >> 4 & REX_W
            pp = third & 3
            prefixes |= P_VEX | (P_DATA if pp == 1 else P_REP if pp == 2 else P_REPNE if pp == 3 else 0)
            opcode = table | code_byte_at(cpu, gva, source)
            gva += 1
    cpu.insn_flags = flags
    cpu.insn_prefixes = prefixes
    cpu.insn_rex = rex
    cpu.insn_opcode = opcode
    cpu.insn_at = gva
    cpu.insn_modrm = 0


@inlined
def read_modrm(cpu: Cpu, source: int) -> int:
    """The ModRM byte of the instruction that was decoded last, which has one."""
    cpu.insn_modrm = code_byte_at(cpu, cpu.insn_at, source)
    cpu.insn_at += 1
    return cpu.insn_modrm


# --- what is where in the opcode maps ------------------------------------------------------------------------------


def _bits(*pieces: int | tuple[int, int]) -> set[int]:
    """Opcodes, single or as (first, last)."""
    found: set[int] = set()
    for piece in pieces:
        found |= set(range(piece[0], piece[1] + 1)) if isinstance(piece, tuple) else {piece}
    return found


def _table(opcodes: set[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    table = np.zeros(0x400, np.uint8)
    table[sorted(opcodes)] = 1
    return table


_ARITHMETIC = {row + column for row in range(0, 0x40, 8) for column in range(4)}
_MODRM = _table(
    _ARITHMETIC
    | _bits(0x62, 0x63, 0x69, 0x6B, (0x80, 0x8F), 0xC0, 0xC1, (0xC4, 0xC7), (0xD0, 0xD3), (0xD8, 0xDF))
    | _bits(0xF6, 0xF7, 0xFE, 0xFF, (0x200, 0x3FF))
    | _bits((0x100, 0x1FF)) - _bits(
        (0x105, 0x109), 0x10B, 0x10E, (0x130, 0x137), 0x177, (0x180, 0x18F), (0x1A0, 0x1A2), (0x1A8, 0x1AA),
        (0x1C8, 0x1CF),
    )
)  # fmt: skip

# size of the immediate operand: bytes, or one of the following
_OPERAND, _OPERAND_64, _NEAR, _FAR, _MOFFS, _TEST_8, _TEST = 16, 17, 18, 19, 20, 21, 22
_IMMEDIATE = np.zeros(0x400, np.uint8)
for _opcodes, _kind in (
    (_bits(0x6A, 0x6B, (0x70, 0x7F), 0x80, 0x82, 0x83, 0xA8, (0xB0, 0xB7), 0xC0, 0xC1, 0xC6, 0xCD, 0xD4, 0xD5), 1),
    (_bits((0xE0, 0xE7), 0xEB, *range(4, 0x40, 8), (0x170, 0x173), 0x1A4, 0x1AC, 0x1BA, 0x1C2), 1),
    (_bits((0x1C4, 0x1C6), 0x10F, (0x300, 0x3FF)), 1),
    (_bits(0xC2, 0xCA), 2),
    (_bits(0xC8), 3),
    (_bits(0x68, 0x69, 0x81, 0xA9, 0xC7, *range(5, 0x40, 8)), _OPERAND),
    (_bits((0xB8, 0xBF)), _OPERAND_64),
    (_bits(0xE8, 0xE9, (0x180, 0x18F)), _NEAR),
    (_bits(0x9A, 0xEA), _FAR),
    (_bits((0xA0, 0xA3)), _MOFFS),
    (_bits(0xF6), _TEST_8),
    (_bits(0xF7), _TEST),
):
    _IMMEDIATE[sorted(_opcodes)] = _kind

# LOCK may stand before these, if their destination is memory (SDM vol. 2A, LOCK); groups are looked at by ModRM
_LOCKABLE = _table(
    {opcode for opcode in _ARITHMETIC if opcode & 7 < 2 and opcode < 0x38}
    | _bits((0x80, 0x83), 0x86, 0x87, 0xF6, 0xF7, 0xFE, 0xFF)
    | _bits(0x1AB, 0x1B3, 0x1BB, 0x1BA, 0x1B0, 0x1B1, 0x1C0, 0x1C1, 0x1C7)
)

# SSE instructions with a 128-bit operand that must be aligned (SDM vol. 2A, 2.4: exception types 1, 2 and 4), by the
# prefix that is part of the opcode: none, 66, F3, F2
_ALIGNED = np.stack(
    [
        _table(_bits(0x114, 0x115, 0x128, 0x129, 0x12B, (0x151, 0x159), (0x15B, 0x15F), 0x1C2, 0x1C6)
               | _bits((0x2C8, 0x2CD), 0x3CC)),
        _table(_bits(0x114, 0x115, 0x128, 0x129, 0x12B, 0x12D, 0x12C, 0x151, (0x154, 0x16D), 0x16F, 0x170)
               | _bits((0x174, 0x176), 0x17C, 0x17D, 0x17F, 0x1C2, 0x1C6, (0x1D0, 0x1D5), (0x1D8, 0x1EF))
               | _bits((0x1F1, 0x1F6), (0x1F8, 0x1FE), (0x200, 0x20B), 0x210, 0x214, 0x215, 0x217, (0x21C, 0x21E))
               | _bits((0x228, 0x22B), (0x237, 0x241), (0x2DB, 0x2DF), 0x308, 0x309, (0x30C, 0x30F))
               | _bits((0x340, 0x342), 0x344, 0x3DF)),
        _table(_bits(0x112, 0x116, 0x15B, 0x170)),
        _table(_bits(0x170, 0x17C, 0x17D, 0x1D0, 0x1E6)),
    ]
)  # fmt: skip


@inlined
def has_modrm(opcode: int) -> bool:
    return opcode < 0x400 and _MODRM[opcode] != 0


@inlined
def may_be_locked(opcode: int, modrm: int) -> bool:
    """Whether LOCK may stand before an instruction."""
    if opcode >= 0x400 or not _LOCKABLE[opcode] or modrm >> 6 == 3:
        return False
    extension = modrm >> 3 & 7
    if opcode & ~3 == 0x80:
        return extension != 7
    if opcode & ~1 == 0xF6:
        return extension == 2 or extension == 3
    if opcode & ~1 == 0xFE:
        return extension < 2
    if opcode == 0x1BA:
        return extension > 4
    return opcode != 0x1C7 or extension == 1


@inlined
def wants_alignment(opcode: int, prefixes: int) -> bool:
    """Whether the memory operand of an SSE instruction, if it has one, must be aligned to 16 bytes."""
    if opcode < MAP_0F or opcode >= 0x400 or prefixes & P_VEX:
        return False
    row = 3 if prefixes & P_REPNE else 2 if prefixes & P_REP else prefixes & P_DATA
    return _ALIGNED[row, opcode] != 0


@inlined
def memory_size(cpu: Cpu, source: int) -> int:
    """Bytes behind ModRM that belong to a memory operand: SIB and displacement."""
    mod, rm, flags = cpu.insn_modrm >> 6, cpu.insn_modrm & 7, cpu.insn_flags
    if mod == 3:
        return 0
    wide = flags & HF_CS64 != 0 or (flags & HF_CS32 != 0) != (cpu.insn_prefixes & P_ADDRESS != 0)
    if not wide:
        return 2 if mod == 2 or (mod == 0 and rm == 6) else mod
    size = 1 if mod == 1 else 4 if mod == 2 or (mod == 0 and rm == 5) else 0
    if rm == 4:
        if mod == 0 and code_byte_at(cpu, cpu.insn_at, source) & 7 == 5:
            size = 4
        size += 1
    return size


@inlined
def _immediate_size(cpu: Cpu) -> int:
    """Bytes of the immediate operand, or of the address in the instruction."""
    kind, flags = int(_IMMEDIATE[cpu.insn_opcode]), cpu.insn_flags
    if kind < 16:
        return kind
    long_mode = flags & HF_CS64 != 0
    word = not cpu.insn_rex & REX_W and ((cpu.insn_prefixes & P_DATA != 0) == (flags & HF_CS32 != 0))
    operand = 2 if word else 4
    if kind == _OPERAND:
        return operand
    if kind == _OPERAND_64:
        return 8 if cpu.insn_rex & REX_W else operand
    if kind == _NEAR:
        return 4 if long_mode else operand
    if kind == _FAR:
        return operand + 2
    if kind == _MOFFS:
        if long_mode:
            return 4 if cpu.insn_prefixes & P_ADDRESS else 8
        return 4 if (flags & HF_CS32 != 0) != (cpu.insn_prefixes & P_ADDRESS != 0) else 2
    if cpu.insn_modrm >> 3 & 7 > 1:
        return 0
    return 1 if kind == _TEST_8 else operand


@outlined("qqqqq")
def decode_whole(cpu_at: int, gva: int, flags: int, source: int) -> int:
    """As :func:`decode`, with ModRM; ``insn_at`` is left at what follows ModRM.

    Returns:
        The instruction's length in bytes; 0 when it cannot be read.
    """
    cpu = cpu_record(cpu_at)
    decode(cpu_at, gva, flags, source)
    if not 0 <= cpu.insn_opcode < 0x400:
        return 0
    if has_modrm(cpu.insn_opcode) and read_modrm(cpu, source) < 0:
        return 0
    size = memory_size(cpu, source) if has_modrm(cpu.insn_opcode) else 0
    return cpu.insn_at - gva + size + _immediate_size(cpu)


# --- the operand --------------------------------------------------------------------------------------------------


@inlined
def register(cpu: Cpu, number: int) -> int:
    return load64(cpu.env + 8 * number)


@inlined
def rm_register(cpu: Cpu) -> int:
    """The number of the general register that ModRM.rm names."""
    return cpu.insn_modrm & 7 | (cpu.insn_rex & REX_B) << 3


@inlined
def reg_field(cpu: Cpu) -> int:
    """ModRM.reg with REX.R."""
    return cpu.insn_modrm >> 3 & 7 | (cpu.insn_rex & REX_R) << 1


@inlined
def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


@inlined
def _code_value(cpu: Cpu, gva: int, size: int) -> int:
    """``size`` bytes of code, sign-extended."""
    value = 0
    for index in range(size):
        value |= (code_byte_at(cpu, gva + index, MEMORY) & 0xFF) << (8 * index)
    return _signed(value, 8 * size) if size else 0


@inlined
def _offset_16(cpu: Cpu) -> int:
    """The offset of a memory operand with 16-bit addressing; ``insn_stack`` is whether BP is its base."""
    mod, rm = cpu.insn_modrm >> 6, cpu.insn_modrm & 7
    bx, bp, si, di = register(cpu, 3), register(cpu, 5), register(cpu, 6), register(cpu, 7)
    size = 2 if mod == 2 or (mod == 0 and rm == 6) else mod
    offset = _code_value(cpu, cpu.insn_at, size)
    cpu.insn_stack = 1 if rm == 2 or rm == 3 or (rm == 6 and mod != 0) else 0
    if rm == 6:
        offset += bp if mod != 0 else 0
    elif rm < 4:
        offset += (bp if rm & 2 else bx) + (di if rm & 1 else si)
    else:
        offset += si if rm == 4 else di if rm == 5 else bx
    return offset & 0xFFFF


@inlined
def _offset_32(cpu: Cpu, length: int) -> int:
    """The offset of a memory operand with 32- or 64-bit addressing; ``insn_stack`` is whether rSP or rBP is its base.

    Args:
        length: of the instruction, for addresses relative to RIP.
    """
    mod, rm = cpu.insn_modrm >> 6, cpu.insn_modrm & 7
    at = cpu.insn_at
    offset = 0
    base = rm
    extended = (cpu.insn_rex & REX_B) << 3
    if rm == 4:
        sib = code_byte_at(cpu, at, MEMORY)
        at += 1
        base = sib & 7
        index = sib >> 3 & 7 | (cpu.insn_rex & REX_X) << 2
        if index != 4:
            offset = register(cpu, index) << (sib >> 6 & 3)
    size = 1 if mod == 1 else 4 if mod == 2 or (mod == 0 and base == 5) else 0
    offset += _code_value(cpu, at, size)
    cpu.insn_stack = 0
    if mod == 0 and base == 5:
        if rm == 5 and cpu.insn_flags & HF_CS64:
            offset += load64(cpu.env + RIP) + length
        return offset
    cpu.insn_stack = 1 if not extended and (base == 4 or base == 5) else 0
    return offset + register(cpu, base | extended)


@outlined("qqq")
def operand_address(cpu_at: int, length: int) -> int:
    """The gva of the memory operand of the instruction that :func:`decode_whole` has decoded; ``length`` is its result.

    ``insn_stack`` tells whether the stack segment is its default.
    """
    cpu = cpu_record(cpu_at)
    flags = cpu.insn_flags
    wide = flags & HF_CS64 != 0 or (flags & HF_CS32 != 0) != (cpu.insn_prefixes & P_ADDRESS != 0)
    if not wide:
        offset = _offset_16(cpu)
    else:
        offset = _offset_32(cpu, length)
        if not flags & HF_CS64 or cpu.insn_prefixes & P_ADDRESS:
            offset &= 0xFFFF_FFFF
    segment = cpu.insn_prefixes >> P_SEGMENT
    if segment:
        segment -= 1
        if not (flags & HF_CS64 and segment < 4):
            cpu.insn_stack = 1 if segment == 2 else 0
    else:
        segment = 2 if cpu.insn_stack else 3
    if flags & HF_CS64:
        return offset + load64(cpu.env + SEGMENTS + segment * SEGMENT_SIZE + BASE) if segment >= 4 else offset
    return (offset + load64(cpu.env + SEGMENTS + segment * SEGMENT_SIZE + BASE)) & 0xFFFF_FFFF
