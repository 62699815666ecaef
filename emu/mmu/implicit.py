"""Implicit supervisor accesses: what the processor itself reads and writes while user code runs.

At CPL 3 a segment load, far transfer, IRET or I/O permission check reads the GDT, LDT or TSS with supervisor rights,
whatever the U/S bit of their pages says (SDM vol. 3A, 4.6).  The engine does not tell such an access from the
program's own, but it tells the instruction; so an access is implicit when it goes to one of these tables and the
instruction is one that uses them.  The engine keeps the entry in its supervisor TLB, which the program's own accesses
do not consult; should the instruction's own operand lie on the same page, the entry lives until the block ends only.
"""

from __future__ import annotations

from emu.addr import READ
from emu.engine import cpustate
from emu.engine.cpustate import BASE, GDTR, HF_CS64, HFLAGS, LDTR, LIMIT, RIP, TR
from emu.engine.native import inlined, load8, load32, load64, outlined
from emu.engine.state import Cpu, cpu_record
from emu.mmu.walk import OK, host_address, walk


@inlined
def _touches(cpu: Cpu, table: int, page: int) -> bool:
    """Whether the descriptor table or TSS in segment ``table`` overlaps the page at ``page``."""
    base = load64(cpu.env + table + BASE)
    if not load32(cpu.env + HFLAGS) & HF_CS64:
        base &= 0xFFFF_FFFF
    return page <= base + load32(cpu.env + table + LIMIT) and base < page + 4096


@outlined("qqq")
def _code_byte(cpu_at: int, gva: int) -> int:
    """A byte of the running instruction, -1 when it cannot be read; changes the results of the last walk."""
    cpu = cpu_record(cpu_at)
    if walk(cpu, gva, READ, True) != OK:  # only programs at CPL 3 are asked about, and SMAP refuses others
        return -1
    host = host_address(cpu, cpu.walk_gpa, 1)
    return -1 if host == 0 else load8(host)


@inlined
def _uses_descriptors(cpu: Cpu) -> bool:
    """Whether the instruction at RIP reads descriptor tables or the TSS."""
    long_mode = load32(cpu.env + HFLAGS) & HF_CS64 != 0
    gva = load64(cpu.env + RIP)
    if not long_mode:
        gva = (gva + load64(cpu.env + cpustate.CS + BASE)) & 0xFFFF_FFFF
    for _ in range(14):
        byte = _code_byte(cpu.at, gva)
        gva += 1
        prefix = byte == 0x66 or byte == 0x67 or byte == 0xF0 or byte == 0xF2 or byte == 0xF3
        prefix = prefix or byte == 0x2E or byte == 0x36 or byte == 0x3E or byte == 0x26
        prefix = prefix or byte == 0x64 or byte == 0x65 or (long_mode and byte & 0xF0 == 0x40)
        if not prefix:
            break
    if byte == 0x0F:
        byte = _code_byte(cpu.at, gva)
        # LAR LSL, VERR VERW, LSS LFS LGS, POP FS GS
        return byte == 2 or byte == 3 or byte == 0 or (0xB2 <= byte <= 0xB5) or byte == 0xA1 or byte == 0xA9
    if byte == 0x8E or byte == 0x07 or byte == 0x17 or byte == 0x1F:  # MOV, POP to a segment register
        return True
    if byte == 0xC4 or byte == 0xC5 or byte == 0xFF:  # LES LDS, far CALL and JMP through memory
        return True
    if byte == 0x9A or byte == 0xEA or byte == 0xCA or byte == 0xCB or byte == 0xCF:  # far CALL JMP RET, IRET
        return True
    # INS OUTS, IN OUT
    return 0x6C <= byte <= 0x6F or 0xE4 <= byte <= 0xE7 or 0xEC <= byte <= 0xEF


@outlined("qqq")
def is_implicit_supervisor_access(cpu_at: int, gva: int) -> int:
    """1 when the user-mode access to the page at ``gva`` that just faulted is the processor's own, else 0."""
    cpu = cpu_record(cpu_at)
    page = gva if load32(cpu.env + HFLAGS) & HF_CS64 else gva & 0xFFFF_FFFF
    error = cpu.miss_error
    found = _touches(cpu, GDTR, page) or _touches(cpu, LDTR, page) or _touches(cpu, TR, page)
    result = found and _uses_descriptors(cpu)
    cpu.miss_error = error
    return 1 if result else 0
