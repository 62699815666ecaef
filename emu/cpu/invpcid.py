"""INVPCID, which the engine does not know (SDM vol. 2A, INVPCID).

The TLB knows no PCIDs, so every type drops all of it: more than is asked for, which is allowed (vol. 3A, 4.10.4.1).
"""

from __future__ import annotations

from emu.cpu.branchfaults import decode_running
from emu.cpu.decode import MAP_38, P_DATA, P_LOCK, P_REP, P_REPNE, P_VEX, REX_R, operand_address
from emu.cpu.features import FEATURES
from emu.cpu.guestmem import fail, load_operand
from emu.engine.cpustate import (
    CR0,
    CR0_PE,
    CR4,
    CR4_PCIDE,
    EFLAGS,
    FLAG_VM,
    HF_CPL,
    HF_CS64,
    HF_INHIBIT_IRQ,
    HFLAGS,
    RIP,
)
from emu.engine.engine import flush_tlb
from emu.engine.identity import word_at
from emu.engine.native import load32, load64, outlined, store32, store64
from emu.engine.state import cpu_record
from emu.engine.vectors import VECTOR_GP, VECTOR_SS
from emu.mmu.walk import FAULT, NEED, OK, is_canonical_base

NOT_INVPCID = -1

_WORD, _BIT = word_at(FEATURES["invpcid"][0]), FEATURES["invpcid"][1]
_OTHER_PREFIXES = P_LOCK | P_REP | P_REPNE | P_VEX
_PCID = 0xFFF
_ONE_ADDRESS, _ONE_CONTEXT, _LAST_TYPE = 0, 1, 3


@outlined("qqqq")
def _invalidate(cpu_at: int, kind: int, gva: int) -> int:
    """Carry it out: type ``kind``, descriptor at ``gva``."""
    cpu = cpu_record(cpu_at)
    env = cpu.env
    if load32(env + HFLAGS) & HF_CPL or (load64(env + EFLAGS) & FLAG_VM and load64(env + CR0) & CR0_PE):
        return fail(cpu, VECTOR_GP, 0)
    status = load_operand(cpu, gva, 8)
    pcid = cpu.sys_value
    if status == OK:
        status = load_operand(cpu, gva + 8, 8)
    if status == FAULT and cpu.fault_vector == VECTOR_GP and cpu.insn_stack:
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
    if not load32(env + _WORD) & _BIT:
        return NOT_INVPCID
    length = decode_running(cpu)
    prefixes, modrm = cpu.insn_prefixes, cpu.insn_modrm
    if length == 0 or cpu.insn_opcode != MAP_38 | 0x82 or modrm >> 6 == 3:
        return NOT_INVPCID
    if not prefixes & P_DATA or prefixes & _OTHER_PREFIXES:
        return NOT_INVPCID
    kind = load64(env + 8 * (modrm >> 3 & 7 | (cpu.insn_rex & REX_R) << 1))
    if not load32(env + HFLAGS) & HF_CS64:
        kind &= 0xFFFF_FFFF
    status = _invalidate(cpu_at, kind, operand_address(cpu_at, length))
    if status == OK:
        store64(env + RIP, load64(env + RIP) + length)
        store32(env + HFLAGS, load32(env + HFLAGS) & ~HF_INHIBIT_IRQ)
        cpu.vtime += length
    return NEED if status == NEED else OK if status == OK else FAULT
