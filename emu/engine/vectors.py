"""What the vectors of exceptions and the kinds of events mean for their delivery (SDM vol. 3A, 6.3 to 6.5 and 6.15)."""

from __future__ import annotations

from emu.engine.native import inlined

# kinds of events
EXCEPTION, SOFTWARE, HARDWARE = 0, 1, 2

VECTOR_DB, VECTOR_BP, VECTOR_OF, VECTOR_UD = 1, 3, 4, 6
VECTOR_DF, VECTOR_TS, VECTOR_NP, VECTOR_SS, VECTOR_GP, VECTOR_PF = 8, 10, 11, 12, 13, 14
VECTOR_MF, VECTOR_AC, VECTOR_XM = 16, 17, 19

# push an error code: #DF #TS #NP #SS #GP #PF #AC (table 6-1)
_WITH_ERROR = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17
# fault-class exceptions; #DB is one only for instruction breakpoints, which push RF as it is (SDM vol. 3B, 17.3.1.1)
_FAULTS = 1 << 0 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 16 | 1 << 19 | (_WITH_ERROR & ~(1 << 8))
# contributory exceptions: #DE #TS #NP #SS #GP (table 6-4)
_CONTRIBUTORY = 1 << 0 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13


@inlined
def has_error_code(vector: int, kind: int) -> bool:
    return kind == EXCEPTION and vector < 32 and _WITH_ERROR >> vector & 1 != 0


@inlined
def is_fault(vector: int, kind: int) -> bool:
    return kind == EXCEPTION and vector < 32 and _FAULTS >> vector & 1 != 0


@inlined
def is_contributory(vector: int) -> bool:
    return vector < 32 and _CONTRIBUTORY >> vector & 1 != 0


@inlined
def makes_double_fault(prior: int, vector: int) -> bool:
    """Whether exception ``vector``, met while exception ``prior`` was delivered, is a double fault (table 6-5)."""
    if is_contributory(prior):
        return is_contributory(vector)
    return prior == VECTOR_PF and (is_contributory(vector) or vector == VECTOR_PF)
