"""Instructions that read their operand in memory in order to write it.

The processor asks for the right to write when it reads, so that a page fault of such an instruction is one of a write
(W/R in the error code, SDM vol. 3A, 4.7), whatever right is missing.  The engine makes a load and then a store.
"""

from __future__ import annotations

from emu.engine.cpustate import HF_CS64, HFLAGS, RIP
from emu.engine.miss import code_byte, missing_block
from emu.engine.native import inlined, load32, load64, outlined
from emu.engine.state import Cpu, cpu_record

_LONGEST = 15  # bytes of an instruction


@inlined
def _is_prefix(byte: int, long_mode: bool) -> bool:
    if byte == 0x66 or byte == 0x67 or byte == 0xF0 or byte == 0xF2 or byte == 0xF3 or byte == 0x64 or byte == 0x65:
        return True
    return byte & 0xE7 == 0x26 or (long_mode and byte & 0xF0 == 0x40)


@inlined
def _modifies(cpu: Cpu, block: int, place: int, opcode: int) -> bool:
    """Whether a one-byte opcode writes what it has read; its ModRM byte lies at ``place``."""
    if opcode < 0x38:
        return opcode & 7 < 2  # ADD OR ADC SBB AND SUB XOR
    operation = code_byte(cpu, block, place) >> 3 & 7
    if 0x80 <= opcode <= 0x83:
        return operation != 7  # the same, immediate; not CMP
    if opcode == 0xF6 or opcode == 0xF7:
        return operation == 2 or operation == 3  # NOT NEG
    if opcode == 0xFE or opcode == 0xFF:
        return operation < 2  # INC DEC
    # XCHG; rotations and shifts
    return opcode & 0xFE == 0x86 or opcode & 0xFE == 0xC0 or 0xD0 <= opcode <= 0xD3


@inlined
def _modifies_0f(cpu: Cpu, block: int, place: int, opcode: int) -> bool:
    """The same for an opcode behind 0F."""
    if opcode == 0xBA:
        return code_byte(cpu, block, place) >> 3 & 7 > 4  # BTS BTR BTC, immediate
    if opcode == 0xC7:
        return code_byte(cpu, block, place) >> 3 & 7 == 1  # CMPXCHG8B
    # SHLD SHRD; BTS BTR BTC; CMPXCHG; XADD
    shift = opcode & 0xF6 == 0xA4
    bit = opcode == 0xAB or opcode == 0xB3 or opcode == 0xBB
    return shift or bit or opcode & 0xFE == 0xB0 or opcode & 0xFE == 0xC0


@outlined("qq")
def is_read_to_write(cpu_at: int) -> int:
    """1 when the instruction at RIP writes the operand in memory that it reads, else 0."""
    cpu = cpu_record(cpu_at)
    block = missing_block(cpu_at, load64(cpu.env + RIP))
    if block == 0:
        return 0
    long_mode = load32(cpu.env + HFLAGS) & HF_CS64 != 0
    place = 0
    byte = code_byte(cpu, block, 0)
    while _is_prefix(byte, long_mode) and place < _LONGEST:
        place += 1
        byte = code_byte(cpu, block, place)
    if byte == 0x0F:
        found = _modifies_0f(cpu, block, place + 2, code_byte(cpu, block, place + 1))
    else:
        found = _modifies(cpu, block, place + 1, byte)
    return 1 if found else 0
