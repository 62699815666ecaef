"""x87 loads and stores of 32 and 64 bits make a signalling NaN quiet, and note an invalid operation.

SDM vol. 1, 4.8.3.4 and table 4-7; vol. 2A, FLD and FST.  The engine notes the invalid operation alone.
"""

from __future__ import annotations

from emu.cpu.floatflags import X87_ENVIRONMENT
from emu.engine.helpers import (
    original_fldl_ft0,
    original_fldl_st0,
    original_flds_ft0,
    original_flds_st0,
    original_fstl_st0,
    original_fsts_st0,
)
from emu.engine.native import callback, inlined, load8, load16, load32, load64, store8, store64

# in the CPU state
_TOP, _REGISTERS, _REGISTER_SIZE = 604, 624, 16
_FLAGS = X87_ENVIRONMENT + 2

_INVALID = 1
_EXPONENT_32, _FRACTION_32, _QUIET_32 = 0x7F80_0000, 0x007F_FFFF, 1 << 22
_EXPONENT_64, _FRACTION_64, _QUIET_64 = 0x7FF0_0000_0000_0000, (1 << 52) - 1, 1 << 51
_FRACTION_80, _QUIET_80 = (1 << 62) - 1, 1 << 62


@inlined
def _quiet_32(env: int, value: int) -> int:
    if value & _EXPONENT_32 == _EXPONENT_32 and value & _FRACTION_32 and not value & _QUIET_32:
        store8(env + _FLAGS, load8(env + _FLAGS) | _INVALID)
        return value | _QUIET_32
    return value


@inlined
def _quiet_64(env: int, value: int) -> int:
    if value & _EXPONENT_64 == _EXPONENT_64 and value & _FRACTION_64 and not value & _QUIET_64:
        store8(env + _FLAGS, load8(env + _FLAGS) | _INVALID)
        return value | _QUIET_64
    return value


@callback("vqi")
def on_flds_st0(env: int, value: int) -> None:
    """The engine's helper for FLD of 32 bits."""
    original_flds_st0(env, _quiet_32(env, value))


@callback("vqq")
def on_fldl_st0(env: int, value: int) -> None:
    """The engine's helper for FLD of 64 bits."""
    original_fldl_st0(env, _quiet_64(env, value))


@callback("vqi")
def on_flds_ft0(env: int, value: int) -> None:
    """The engine's helper for an operand of 32 bits in memory."""
    original_flds_ft0(env, _quiet_32(env, value))


@callback("vqq")
def on_fldl_ft0(env: int, value: int) -> None:
    """The engine's helper for an operand of 64 bits in memory."""
    original_fldl_ft0(env, _quiet_64(env, value))


@inlined
def _fraction_at(env: int) -> int:
    """Where the significand of ST(0) is."""
    return env + _REGISTERS + (load32(env + _TOP) & 7) * _REGISTER_SIZE


@inlined
def _is_signalling(at: int) -> bool:
    fraction = load64(at)
    if load16(at + 8) & 0x7FFF != 0x7FFF or fraction >= 0:
        return False
    return not fraction & _QUIET_80 and fraction & _FRACTION_80 != 0


@callback("iq")
def on_fsts_st0(env: int) -> int:
    """The engine's helper for FST of 32 bits."""
    at = _fraction_at(env)
    if not _is_signalling(at):
        return original_fsts_st0(env)
    before = load64(at)
    store64(at, before | _QUIET_80)
    value = original_fsts_st0(env)
    store64(at, before)
    store8(env + _FLAGS, load8(env + _FLAGS) | _INVALID)
    return value


@callback("qq")
def on_fstl_st0(env: int) -> int:
    """The engine's helper for FST of 64 bits."""
    at = _fraction_at(env)
    if not _is_signalling(at):
        return original_fstl_st0(env)
    before = load64(at)
    store64(at, before | _QUIET_80)
    value = original_fstl_st0(env)
    store64(at, before)
    store8(env + _FLAGS, load8(env + _FLAGS) | _INVALID)
    return value


HELPERS = {
    "flds_ST0": on_flds_st0, "fldl_ST0": on_fldl_st0, "flds_FT0": on_flds_ft0, "fldl_FT0": on_fldl_ft0,
    "fsts_ST0": on_fsts_st0, "fstl_ST0": on_fstl_st0,
}  # fmt: skip
"""The engine's helpers, and what takes their places."""
