"""The exception flags of x87 and SSE (SDM vol. 1, 8.1.3, 8.5 and 10.2.3).

The engine computes them, in the flags of its two floating-point environments, and shows only some of them to the
guest.  Here they are moved to the status word and to MXCSR when somebody looks: they are sticky there as well.  What
clears or loads these registers clears the engine's flags, too.

Which exceptions are not masked is followed in HFLAGS, for :mod:`emu.cpu.floatexceptions`.
"""

from __future__ import annotations

import ctypes

from emu.engine.cpustate import HF_UNMASKED_SSE, HF_UNMASKED_X87, HFLAGS
from emu.engine.engine import running_cpu
from emu.engine.helpers import (
    original_fistl,
    original_fisttl,
    original_fisttll,
    original_fldcw,
    original_fldenv,
    original_fninit,
    original_fprem,
    original_fprem1,
    original_frstor,
    original_fsave,
    original_fstenv,
    original_fwait,
    original_fxrstor,
    original_fxsave,
    original_ldmxcsr,
    original_xrstor,
    original_xsave,
    original_xsaveopt,
    raise_exception,
)
from emu.engine.native import callback, inlined, load8, load16, load32, store8, store16, store32
from emu.engine.state import cpu_record
from emu.engine.vectors import VECTOR_GP

# in the CPU state
TOP, FPU_STATUS, FPU_CONTROL = 604, 608, 610
_TAGS = 612  # u8 each, 1: empty
X87_ENVIRONMENT, _SSE_ENVIRONMENT = 776, 808
_FLAGS, _PRECISION = 2, 3  # offsets in an environment; the flags stand where the status word and MXCSR have them
_FLUSH_TO_ZERO = 4  # the same: results
X87_FLAGS, SSE_FLAGS = X87_ENVIRONMENT + _FLAGS, _SSE_ENVIRONMENT + _FLAGS
MXCSR = 816

EXCEPTIONS = 0x3F
_INVALID, _DENORMAL, _INEXACT = 1, 2, 32
SUMMARY = 0x8080  # ES and B
_MXCSR_FZ, _MXCSR_RESERVED = 1 << 15, 0xFFFF_0000
_INDEFINITE_64 = -(1 << 63)


@inlined
def show_x87(env: int) -> None:
    """Move the engine's flags into the status word."""
    status = load16(env + FPU_STATUS) | load8(env + X87_FLAGS) & EXCEPTIONS & ~_DENORMAL
    if status & ~load16(env + FPU_CONTROL) & EXCEPTIONS:
        status |= SUMMARY
    else:
        status &= ~SUMMARY
    store16(env + FPU_STATUS, status)


@inlined
def show_sse(env: int) -> None:
    """Move the engine's flags into MXCSR."""
    flags = load8(env + SSE_FLAGS) & EXCEPTIONS & ~_DENORMAL
    store32(env + MXCSR, load32(env + MXCSR) | flags)


@inlined
def _forget_x87(env: int) -> None:
    store8(env + X87_FLAGS, 0)


@inlined
def _forget_sse(env: int) -> None:
    """MXCSR was loaded; the engine is faster where the inexact flag is set already."""
    store8(env + SSE_FLAGS, load32(env + MXCSR) & _INEXACT)


@inlined
def _follow_masks(env: int) -> None:
    """The control word or MXCSR was loaded."""
    hflags = load32(env + HFLAGS) & ~(HF_UNMASKED_SSE | HF_UNMASKED_X87)
    if ~load16(env + FPU_CONTROL) & EXCEPTIONS:
        hflags |= HF_UNMASKED_X87
    if ~load32(env + MXCSR) >> 7 & EXCEPTIONS:
        hflags |= HF_UNMASKED_SSE
    store32(env + HFLAGS, hflags)


@inlined
def _follow_mxcsr(env: int) -> None:
    """MXCSR was loaded; the engine lets its flush-to-zero bit count for the x87 unit instead of SSE."""
    store8(env + _SSE_ENVIRONMENT + _FLUSH_TO_ZERO, 1 if load32(env + MXCSR) & _MXCSR_FZ else 0)
    store8(env + X87_ENVIRONMENT + _FLUSH_TO_ZERO, 0)
    _forget_sse(env)
    _follow_masks(env)


# --- instructions that look at the flags --------------------------------------------------------------------------


@callback("iq")
def on_fnstsw(env: int) -> int:
    """The engine's helper for FNSTSW."""
    show_x87(env)
    return load16(env + FPU_STATUS) & ~0x3800 | (load32(env + TOP) & 7) << 11


@callback("vq")
def on_fwait(env: int) -> None:
    """The engine's helper for FWAIT."""
    show_x87(env)
    original_fwait(env)


@callback("vqqi")
def on_fstenv(env: int, gva: int, size: int) -> None:
    """The engine's helper for FNSTENV, which masks all exceptions then."""
    show_x87(env)
    original_fstenv(env, gva, size)
    store16(env + FPU_CONTROL, load16(env + FPU_CONTROL) | EXCEPTIONS)
    _follow_masks(env)


@callback("vqqi")
def on_fsave(env: int, gva: int, size: int) -> None:
    """The engine's helper for FNSAVE, which ends with FNINIT."""
    show_x87(env)
    original_fsave(env, gva, size)
    _forget_x87(env)
    _follow_masks(env)


@callback("vqq")
def on_fxsave(env: int, gva: int) -> None:
    """The engine's helper for FXSAVE."""
    show_x87(env)
    show_sse(env)
    original_fxsave(env, gva)


@callback("vqqq")
def on_xsave(env: int, gva: int, components: int) -> None:
    """The engine's helper for XSAVE."""
    show_x87(env)
    show_sse(env)
    original_xsave(env, gva, components)


@callback("vqqq")
def on_xsaveopt(env: int, gva: int, components: int) -> None:
    """The engine's helper for XSAVEOPT."""
    show_x87(env)
    show_sse(env)
    original_xsaveopt(env, gva, components)


# --- instructions that load or clear them -------------------------------------------------------------------------


@callback("vq")
def on_fclex(env: int) -> None:
    """The engine's helper for FNCLEX."""
    store16(env + FPU_STATUS, load16(env + FPU_STATUS) & 0x7F00)
    _forget_x87(env)


@callback("vq")
def on_fninit(env: int) -> None:
    """The engine's helper for FNINIT."""
    original_fninit(env)
    _forget_x87(env)
    _follow_masks(env)


@callback("vqi")
def on_fldcw(env: int, value: int) -> None:
    """The engine's helper for FLDCW."""
    original_fldcw(env, value)
    _follow_masks(env)


@callback("vqqi")
def on_fldenv(env: int, gva: int, size: int) -> None:
    """The engine's helper for FLDENV."""
    original_fldenv(env, gva, size)
    _forget_x87(env)
    _follow_masks(env)


@callback("vqqi")
def on_frstor(env: int, gva: int, size: int) -> None:
    """The engine's helper for FRSTOR."""
    original_frstor(env, gva, size)
    _forget_x87(env)
    _follow_masks(env)


@callback("vqq")
def on_fxrstor(env: int, gva: int) -> None:
    """The engine's helper for FXRSTOR."""
    show_sse(env)
    original_fxrstor(env, gva)
    _forget_x87(env)
    _follow_mxcsr(env)


@callback("vqqq")
def on_xrstor(env: int, gva: int, components: int) -> None:
    """The engine's helper for XRSTOR, which may leave either of the two as it is."""
    show_x87(env)
    show_sse(env)
    original_xrstor(env, gva, components)
    _forget_x87(env)
    _follow_mxcsr(env)


@callback("vqi")
def on_ldmxcsr(env: int, value: int) -> None:
    """The engine's helper for LDMXCSR."""
    if value & _MXCSR_RESERVED and running_cpu() != 0:
        raise_exception(cpu_record(running_cpu()), VECTOR_GP, 0)
    original_ldmxcsr(env, value)
    _follow_mxcsr(env)


# --- instructions that the engine has wrong -----------------------------------------------------------------------


@callback("vq")
def on_fprem(env: int) -> None:
    """The engine's helper for FPREM, which is exact."""
    flags = load8(env + X87_FLAGS)
    original_fprem(env)
    store8(env + X87_FLAGS, flags)


@callback("vq")
def on_fprem1(env: int) -> None:
    """The engine's helper for FPREM1, which is exact."""
    flags = load8(env + X87_FLAGS)
    original_fprem1(env)
    store8(env + X87_FLAGS, flags)


@inlined
def _stored(env: int, value: int, bits: int, before: int) -> int:
    """The result of a conversion to an integer; an invalid one is the "integer indefinite", and nothing but invalid."""
    flags = load8(env + X87_FLAGS)
    if flags & _INVALID or not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
        flags, value = _INVALID, -(1 << (bits - 1))
    store8(env + X87_FLAGS, flags | before)
    return value


@callback("iq")
def on_fist(env: int) -> int:
    """The engine's helper for FIST with 16 bits."""
    before = load8(env + X87_FLAGS)
    store8(env + X87_FLAGS, 0)
    return _stored(env, original_fistl(env), 16, before)


@callback("iq")
def on_fistt(env: int) -> int:
    """The engine's helper for FISTTP with 16 bits."""
    before = load8(env + X87_FLAGS)
    store8(env + X87_FLAGS, 0)
    return _stored(env, original_fisttl(env), 16, before)


@callback("iq")
def on_fisttl(env: int) -> int:
    """The engine's helper for FISTTP with 32 bits."""
    before = load8(env + X87_FLAGS)
    store8(env + X87_FLAGS, 0)
    return _stored(env, original_fisttl(env), 32, before)


@callback("qq")
def on_fisttll(env: int) -> int:
    """The engine's helper for FISTTP with 64 bits."""
    before = load8(env + X87_FLAGS)
    store8(env + X87_FLAGS, 0)
    value = original_fisttll(env)
    if load8(env + X87_FLAGS) & _INVALID:
        value = _INDEFINITE_64
    store8(env + X87_FLAGS, load8(env + X87_FLAGS) | before)
    return value


HELPERS = {
    "fnstsw": on_fnstsw, "fwait": on_fwait, "fstenv": on_fstenv, "fsave": on_fsave, "fxsave": on_fxsave,
    "xsave": on_xsave, "xsaveopt": on_xsaveopt, "fclex": on_fclex, "fninit": on_fninit, "fldenv": on_fldenv,
    "frstor": on_frstor, "fxrstor": on_fxrstor, "xrstor": on_xrstor, "ldmxcsr": on_ldmxcsr, "fprem": on_fprem,
    "fprem1": on_fprem1, "fist_ST0": on_fist, "fistt_ST0": on_fistt, "fisttl_ST0": on_fisttl, "fisttll_ST0": on_fisttll,
    "fldcw": on_fldcw,
}  # fmt: skip
"""The engine's helpers, and what takes their places."""


def reset_floating_point(env: int) -> None:
    """x87 and SSE after power-up or reset (SDM vol. 3A, table 9-1).

    The x87 unit is in single precision, all registers +0, none empty; MXCSR masks all exceptions.
    """
    ctypes.c_uint32.from_address(env + MXCSR).value = 0x1F80
    ctypes.c_uint16.from_address(env + FPU_STATUS).value = 0
    ctypes.c_uint16.from_address(env + FPU_CONTROL).value = 0x40
    ctypes.memset(env + _TAGS, 0, 8)
    ctypes.c_uint8.from_address(env + X87_ENVIRONMENT + _PRECISION).value = 32


def initialise_x87(env: int) -> None:
    """FNINIT, as firmware executes it."""
    ctypes.c_uint16.from_address(env + FPU_CONTROL).value = 0x37F
    ctypes.memset(env + _TAGS, 1, 8)
    ctypes.c_uint8.from_address(env + X87_ENVIRONMENT + _PRECISION).value = 80
