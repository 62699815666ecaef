"""Where execution cannot go on: an address that is not canonical, or beyond the limit of the code segment.

A near branch to such an address faults itself, with nothing of it done (SDM vol. 2A, CALL, JMP; vol. 2B, RET).  The
engine has executed it when it misses the code at its target, so it is undone: the branch is the last instruction of
the block that was entered last.
"""

from __future__ import annotations

from emu.cpu.decode import MEMORY, P_DATA, code_byte_at, decode_whole, has_modrm, operand_address
from emu.cpu.segments import stack_mask
from emu.engine.cpustate import (
    BASE,
    CS,
    EFLAGS,
    FLAG_AC,
    FLAG_VM,
    FLAGS,
    HF_CS32,
    HF_CS64,
    HFLAGS,
    LIMIT,
    RCX,
    RIP,
    RSP,
    SS,
)
from emu.engine.native import inlined, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record
from emu.mmu.walk import is_canonical

BEYOND_LIMIT = 10  # miss_kind: the instruction at RIP lies, in part at least, beyond the limit of CS
WRAPPED = 11  # miss_kind: RIP has gone beyond 32 bits; execution goes on at its lower half

@inlined
def mode_flags(cpu: Cpu) -> int:
    """HFLAGS with VM and AC, as translated code has them."""
    return load32(cpu.env + HFLAGS) | load64(cpu.env + EFLAGS) & (FLAG_VM | FLAG_AC)


@inlined
def linear_rip(cpu: Cpu) -> int:
    """The gva of the instruction at RIP."""
    rip = load64(cpu.env + RIP)
    if load32(cpu.env + HFLAGS) & HF_CS64:
        return rip
    return (rip + load64(cpu.env + CS + BASE)) & 0xFFFF_FFFF


@inlined
def decode_running(cpu: Cpu) -> int:
    """Decode the instruction at RIP; returns its length, or 0."""
    return decode_whole(cpu.at, linear_rip(cpu), mode_flags(cpu), MEMORY)


@outlined("qq")
def last_instruction(cpu_at: int) -> int:
    """The gva of the last instruction of the block that was entered last, decoded; 0 when it cannot be told."""
    cpu = cpu_record(cpu_at)
    gva, end = cpu.block_gva, cpu.block_gva + cpu.block_size
    if cpu.block_size == 0:
        return 0
    while True:
        length = decode_whole(cpu_at, gva, mode_flags(cpu), MEMORY)
        if length == 0 or gva + length > end:
            return 0
        if gva + length == end:
            return gva
        gva += length


@inlined
def _slot(cpu: Cpu) -> int:
    """The size of a return address on the stack."""
    if cpu.insn_flags & HF_CS64:
        return 8
    return 4 if (cpu.insn_flags & HF_CS32 != 0) != (cpu.insn_prefixes & P_DATA != 0) else 2


@inlined
def _move_stack(cpu: Cpu, by: int) -> None:
    rsp = load64(cpu.env + RSP)
    mask = -1 if cpu.insn_flags & HF_CS64 else stack_mask(load32(cpu.env + SS + FLAGS))
    store64(cpu.env + RSP, rsp & ~mask | (rsp + by) & mask)


@outlined("vq")
def _undo(cpu_at: int) -> None:
    cpu = cpu_record(cpu_at)
    if cpu.block_size == 0 and cpu.miss_fetch:
        cpu.block_size = cpu.done_size
    at = last_instruction(cpu_at)
    if at == 0:
        return
    opcode, extension = cpu.insn_opcode, cpu.insn_modrm >> 3 & 7
    if opcode == 0xE8 or (opcode == 0xFF and extension == 2):
        _move_stack(cpu, _slot(cpu))
    elif opcode == 0xC3:
        _move_stack(cpu, -_slot(cpu))
    elif opcode == 0xC2:
        low, high = code_byte_at(cpu, cpu.insn_at, MEMORY), code_byte_at(cpu, cpu.insn_at + 1, MEMORY)
        _move_stack(cpu, -_slot(cpu) - (low | high << 8))
    elif 0xE0 <= opcode <= 0xE2:
        store64(cpu.env + RCX, load64(cpu.env + RCX) + 1)
    elif not (
        opcode == 0xE9 or opcode == 0xEB or opcode == 0xE3 or (opcode == 0xFF and extension == 4)
        or 0x70 <= opcode <= 0x7F or 0x180 <= opcode <= 0x18F
    ):  # fmt: skip
        return
    base = 0 if cpu.insn_flags & HF_CS64 else load64(cpu.env + CS + BASE)
    store64(cpu.env + RIP, at - base)


@inlined
def note_limit(cpu: Cpu) -> None:
    """An instruction could not be executed.  If RIP is beyond the limit of CS, it was not even fetched: that is why."""
    rip = load64(cpu.env + RIP)
    if rip > load32(cpu.env + CS + LIMIT) and rip >> 32 == 0 and not load32(cpu.env + HFLAGS) & HF_CS64:
        cpu.miss_kind = BEYOND_LIMIT


@inlined
def undo_branch(cpu: Cpu, beyond_limit: bool) -> None:
    """Code cannot be fetched at RIP: if a near branch has led there, RIP and the stack are as before it."""
    rip = load64(cpu.env + RIP)
    if rip > load32(cpu.env + CS + LIMIT) if beyond_limit else not is_canonical(cpu, rip):
        _undo(cpu.at)


@outlined("qq")
def touches_stack(cpu_at: int) -> int:
    """1 when the access that is not canonical, of the instruction at RIP, is one to the stack: that is #SS, not #GP."""
    cpu = cpu_record(cpu_at)
    length = decode_running(cpu)
    if length == 0:
        return 0
    opcode, extension = cpu.insn_opcode, cpu.insn_modrm >> 3 & 7
    rsp = load64(cpu.env + RSP)
    stack_bad = not is_canonical(cpu, rsp) or not is_canonical(cpu, rsp - 8)
    pushes = (
        0x50 <= opcode <= 0x5F or opcode == 0x68 or opcode == 0x6A or opcode == 0x8F or 0x9C <= opcode <= 0x9D
        or opcode == 0xC2 or opcode == 0xC3 or 0xC8 <= opcode <= 0xCB or opcode == 0xCF or opcode == 0xE8
        or opcode == 0x1A0 or opcode == 0x1A1 or opcode == 0x1A8 or opcode == 0x1A9
        or (opcode == 0xFF and (extension == 2 or extension == 3 or extension == 6))
    )  # fmt: skip
    if pushes and (stack_bad or opcode == 0xC9):
        return 1
    if cpu.insn_modrm >> 6 == 3 or not has_modrm(opcode):
        return 0
    operand_address(cpu_at, length)
    return 1 if cpu.insn_stack else 0
