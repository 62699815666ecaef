"""Which instructions may raise floating-point exceptions, and which wait for pending ones.

SDM vol. 1, 8.3.1 to 8.3.11 (x87), 8.6 (waiting instructions), 11.5.1 (SSE); vol. 2, appendix A.
"""

from __future__ import annotations

import numpy as np

from emu.cpu.decode import MAP_0F, P_DATA, P_REP, P_REPNE
from emu.engine.native import inlined

# kinds of x87 instructions
NOT_WAITING, WAITING, ARITHMETIC, STORE = 0, 1, 2, 3

_SSE_ARITHMETIC = np.zeros(0x400, np.uint8)
_SSE_ARITHMETIC[[0x12A, 0x12C, 0x12D, 0x12E, 0x12F, 0x151, *range(0x158, 0x160), 0x17C, 0x17D, 0x1C2, 0x1D0, 0x1E6]] = 1
_SSE_ARITHMETIC[[0x308, 0x309, 0x30A, 0x30B, 0x340, 0x341]] = 1

# by opcode - D8 and the reg field of a ModRM byte that names memory
_IN_MEMORY = np.full((8, 8), ARITHMETIC, np.uint8)
_IN_MEMORY[1, [2, 3]] = _IN_MEMORY[3, [1, 2, 3]] = _IN_MEMORY[5, [1, 2, 3]] = _IN_MEMORY[7, [1, 2, 3, 7]] = STORE
_IN_MEMORY[1, [4, 5]] = _IN_MEMORY[5, 4] = WAITING  # FLDENV FLDCW, FRSTOR
_IN_MEMORY[1, [6, 7]] = _IN_MEMORY[5, [6, 7]] = NOT_WAITING  # FNSTENV FNSTCW, FNSAVE FNSTSW


@inlined
def is_sse_arithmetic(opcode: int) -> bool:
    """Whether an instruction may raise SIMD floating-point exceptions."""
    return MAP_0F <= opcode < 0x400 and _SSE_ARITHMETIC[opcode] != 0


@inlined
def is_mmx(opcode: int, prefixes: int) -> bool:
    """Whether an instruction has an operand among the MMX registers."""
    if opcode == 0x12A or opcode == 0x12C or opcode == 0x12D:
        return not prefixes & (P_REP | P_REPNE)
    if opcode == 0x1D6:
        return prefixes & (P_REP | P_REPNE) != 0
    if prefixes & (P_DATA | P_REP | P_REPNE):
        return False
    if 0x160 <= opcode <= 0x17F or 0x1D1 <= opcode <= 0x1FE:
        return True
    return opcode == 0x1C4 or opcode == 0x1C5 or is_ssse3(opcode)


@inlined
def is_ssse3(opcode: int) -> bool:
    """PSHUFB to PMULHRSW, PABSB to PABSD; PALIGNR: on MMX or SSE registers."""
    return 0x200 <= opcode <= 0x20B or 0x21C <= opcode <= 0x21E or opcode == 0x30F


@inlined
def x87_kind(opcode: int, modrm: int) -> int:
    """The kind of an instruction from D8 to DF."""
    if modrm >> 6 != 3:
        return int(_IN_MEMORY[opcode - 0xD8, modrm >> 3 & 7])
    if opcode == 0xDB and 0xE0 <= modrm <= 0xE4 or opcode == 0xDF and modrm == 0xE0:  # FNCLEX FNINIT; FNSTSW AX
        return NOT_WAITING
    return ARITHMETIC


@inlined
def loads_masks(opcode: int, modrm: int) -> bool:
    """Whether an instruction changes what is masked: FLDENV FLDCW FNSTENV FNINIT FRSTOR FNSAVE, LDMXCSR FXRSTOR."""
    extension = modrm >> 3 & 7
    if modrm >> 6 == 3:
        return opcode == 0xDB and modrm == 0xE3
    if opcode == 0xD9:
        return 4 <= extension <= 6
    if opcode == 0xDD:
        return extension == 4 or extension == 6
    return opcode == 0x1AE and (extension == 1 or extension == 2 or extension == 5)
