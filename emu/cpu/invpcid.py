"""INVPCID, which the engine does not know (SDM vol. 2A, INVPCID).

The TLB knows no PCIDs, so every type drops all of it: more than is asked for, which is allowed (vol. 3A, 4.10.4.1).
"""

from __future__ import annotations

from emu.cpu.features import FEATURES
from emu.cpu.guestmem import fail, load_code_byte, load_operand
from emu.engine import cpustate
from emu.engine.cpustate import (
    BASE,
    CR0,
    CR0_PE,
    CR4,
    CR4_PCIDE,
    DS,
    EFLAGS,
    FLAG_VM,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_INHIBIT_IRQ,
    HFLAGS,
    RIP,
    SEGMENT_SIZE,
    SEGMENTS,
    SS,
)
from emu.engine.engine import flush_tlb
from emu.engine.identity import word_at
from emu.engine.native import inlined, load32, load64, outlined, store32, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.vectors import VECTOR_GP, VECTOR_SS
from emu.mmu.walk import FAULT, NEED, OK, is_canonical_base

NOT_INVPCID = -1

_WORD, _BIT = word_at(FEATURES["invpcid"][0]), FEATURES["invpcid"][1]
_MOST_PREFIXES = 10  # of an instruction of at most 15 bytes, whose opcode and ModRM take five
_PCID = 0xFFF
_ONE_ADDRESS, _ONE_CONTEXT, _LAST_TYPE = 0, 1, 3
_RBX, _RSP, _RBP, _RSI, _RDI = 3, 4, 5, 6, 7
_REX_R, _REX_X, _REX_B = 4, 2, 1


@inlined
def _register(env: int, number: int) -> int:
    return load64(env + 8 * number)


@inlined
def _signed_byte(value: int) -> int:
    return value - 256 if value & 0x80 else value


@inlined
def _displacement(cpu: Cpu, rip: int, size: int) -> int:
    """The displacement of ``size`` bytes (0, 1, 2 or 4) at ``rip``, sign-extended."""
    value = 0
    for index in range(size):
        value |= (load_code_byte(cpu, rip + index) & 0xFF) << (8 * index)
    if size != 0 and value >> (8 * size - 1):
        value -= 1 << (8 * size)
    return value


@outlined("qqqqqqq")
def _address(cpu_at: int, rip: int, modrm: int, rex: int, width: int, segment: int) -> int:
    """The linear address of a memory operand; ``insn_length`` are the bytes behind ModRM, ``insn_segment`` the segment.

    Args:
        rip: of the byte behind ModRM.
        width: of addresses, 16, 32 or 64.
        segment: offset of the segment register that a prefix asks for, 0 for none.
    """
    cpu = cpu_record(cpu_at)
    env = cpu.env
    mod, rm = modrm >> 6, modrm & 7
    stack = False  # the default segment is SS
    if width == 16:
        size = 2 if mod == 2 or (mod == 0 and rm == 6) else mod
        offset = _displacement(cpu, rip, size)
        if rm < 2 or rm == 7:
            offset += _register(env, _RBX)
        elif rm < 4 or (rm == 6 and mod != 0):
            offset += _register(env, _RBP)
            stack = True
        if rm == 0 or rm == 2 or rm == 4:
            offset += _register(env, _RSI)
        elif rm == 1 or rm == 3 or rm == 5:
            offset += _register(env, _RDI)
        offset &= 0xFFFF
    else:
        size = 1 if mod == 1 else 4 if mod == 2 else 0
        offset = 0
        at = rip
        if rm == 4:
            sib = load_code_byte(cpu, rip)
            at += 1
            base, index = sib & 7, (sib >> 3 & 7) | (8 if rex & _REX_X else 0)
            if base == 5 and mod == 0:
                size = 4
            else:
                offset = _register(env, base | (8 if rex & _REX_B else 0))
                stack = (base == _RSP or base == _RBP) and not rex & _REX_B
            if index != 4:
                offset += _register(env, index) << (sib >> 6)
        elif rm == 5 and mod == 0:
            size = 4
        else:
            offset = _register(env, rm | (8 if rex & _REX_B else 0))
            stack = rm == _RBP and not rex & _REX_B
        offset += _displacement(cpu, at, size)
        size += at - rip
        if rm == 5 and mod == 0 and load32(env + HFLAGS) & HF_CS64:
            offset += rip + size  # relative to the next instruction
        if width == 32:
            offset &= 0xFFFF_FFFF
    if segment == 0:
        segment = SS if stack else DS
    cpu.insn_length, cpu.insn_segment = size, segment
    if load32(env + HFLAGS) & HF_CS64:
        return offset + load64(env + segment + BASE) if segment >= cpustate.FS else offset
    return (offset + load64(env + segment + BASE)) & 0xFFFF_FFFF


@inlined
def _segment_of_prefix(byte: int) -> int:
    """The offset of the segment register that a prefix selects, 0 for another byte."""
    if byte & 0xE7 == 0x26:
        return SEGMENTS + (byte >> 3 & 3) * SEGMENT_SIZE
    if byte == 0x64 or byte == 0x65:
        return SEGMENTS + (byte - 0x60) * SEGMENT_SIZE
    return 0


@outlined("qqqqq")
def _invalidate(cpu_at: int, kind: int, gva: int, in_ss: int) -> int:
    """Carry it out: type ``kind``, descriptor at ``gva``."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    if load32(env + HFLAGS) & HF_CPL or (load64(env + EFLAGS) & FLAG_VM and load64(env + CR0) & CR0_PE):
        return fail(cpu, VECTOR_GP, 0)
    status = load_operand(cpu, gva, 8)
    pcid = cpu.sys_value
    if status == OK:
        status = load_operand(cpu, gva + 8, 8)
    if status == FAULT and cpu.fault_vector == VECTOR_GP and in_ss:
        return fail(cpu, VECTOR_SS, 0)
    if status != OK:
        return status
    address = cpu.sys_value
    bad = kind < 0 or kind > _LAST_TYPE or pcid & ~_PCID != 0
    if kind == _ONE_ADDRESS and not is_canonical_base(cpu, address):
        bad = True
    if kind <= _ONE_CONTEXT and pcid != 0 and not load64(env + CR4) & CR4_PCIDE:
        bad = True
    if bad:
        return fail(cpu, VECTOR_GP, 0)
    flush_tlb(cpu)
    return OK


@outlined("qq")
def execute_invpcid(cpu_at: int) -> int:
    """Execute the instruction at RIP if it is INVPCID.

    Returns:
        NOT_INVPCID; OK, and RIP is behind it; FAULT with ``fault_vector``, ``fault_error`` and ``fault_gva``; NEED.
    """
    cpu = cpu_record(cpu_at)
    env = cpu.env
    start = load64(env + RIP)
    if not load32(env + _WORD) & _BIT:
        return NOT_INVPCID
    long_mode = load32(env + HFLAGS) & HF_CS64 != 0
    rip = start
    operand = address = False
    rex = segment = 0
    byte = 0
    for _ in range(_MOST_PREFIXES):
        byte = load_code_byte(cpu, rip)
        rip += 1
        if byte == 0x66:
            operand = True
        elif byte == 0x67:
            address = True
        elif long_mode and byte & 0xF0 == 0x40:
            rex = byte
            continue
        elif _segment_of_prefix(byte):
            segment = _segment_of_prefix(byte)
        else:
            break
        rex = 0
    if byte != 0x0F or not operand or load_code_byte(cpu, rip) != 0x38 or load_code_byte(cpu, rip + 1) != 0x82:
        return NOT_INVPCID
    modrm = load_code_byte(cpu, rip + 2)
    if modrm < 0 or modrm >> 6 == 3:
        return NOT_INVPCID
    if long_mode:
        width = 32 if address else 64
    else:
        width = 32 if (load32(env + HFLAGS) & HF_CS32 != 0) != address else 16
    gva = _address(cpu_at, rip + 3, modrm, rex, width, segment)
    length = rip + 3 + cpu.insn_length - start
    kind = _register(env, (modrm >> 3 & 7) | (8 if rex & _REX_R else 0))
    if not long_mode:
        kind &= 0xFFFF_FFFF
    status = _invalidate(cpu_at, kind, gva, 1 if cpu.insn_segment == SS else 0)
    if status == OK:
        store64(env + RIP, start + length)
        store32(env + HFLAGS, load32(env + HFLAGS) & ~HF_INHIBIT_IRQ)
        cpu.vtime += length
    return NEED if status == NEED else OK if status == OK else FAULT
