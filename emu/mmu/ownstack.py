"""Far transfers at CPL 3: which of the engine's accesses are the program's own.

The engine makes all accesses of IRET, far RET and far CALL with supervisor rights.  That is right for descriptor tables
and the TSS, which are implicit supervisor accesses (SDM vol. 3A, 4.6), and for the stack of an inner level.  What they
pop from or push to the program's own stack is the program's access: there the page must be a user's, and SMAP plays no
part.
"""

from __future__ import annotations

from emu.addr import READ
from emu.engine.cpustate import BASE, FLAGS, GDTR, HF_CS64, HFLAGS, LDTR, LIMIT, RSP, SS, TR
from emu.engine.native import inlined, load32, load64, outlined
from emu.engine.state import Cpu, cpu_record

_POPPED = 128  # bytes above the stack pointer at most: 31 parameters of a call gate
_PUSHED = 16  # bytes below it at most: CS and RIP
_BIG = 1 << 22  # B, in a segment's flags


@inlined
def _lies_in(cpu: Cpu, gva: int, table: int, mask: int) -> bool:
    return (gva - load64(cpu.env + table + BASE)) & mask <= load32(cpu.env + table + LIMIT)


@outlined("qqqq")
def is_on_own_stack(cpu_at: int, gva: int, access: int) -> int:
    """1 when an access at ``gva`` that the engine makes with supervisor rights at CPL 3 is the program's own."""
    cpu = cpu_record(cpu_at)
    sp = load64(cpu.env + RSP)
    mask = 0xFFFF_FFFF
    if load32(cpu.env + HFLAGS) & HF_CS64:
        mask = (1 << 62) - 1  # distances are what counts
    else:
        sp &= 0xFFFF_FFFF if load32(cpu.env + SS + FLAGS) & _BIG else 0xFFFF
        sp += load64(cpu.env + SS + BASE)
    if _lies_in(cpu, gva, GDTR, mask) or _lies_in(cpu, gva, LDTR, mask) or _lies_in(cpu, gva, TR, mask):
        return 0
    if access == READ:
        return 1 if (gva - sp) & mask < _POPPED else 0
    return 1 if (sp - 1 - gva) & mask < _PUSHED else 0
