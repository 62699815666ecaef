"""The engine's own functions, for those of emu's that stand in the place of its helpers (:mod:`emu.engine.library`)."""

from __future__ import annotations

from emu.engine.library import LIBRARY
from emu.engine.native import compiled, external, inlined
from emu.engine.state import Cpu

_raise = external(LIBRARY, "raise_exception_err_ra_x86_64", "vqiiq")
_write_cr = external(LIBRARY, "helper_write_crN_x86_64", "vqiq")
_read_cr = external(LIBRARY, "helper_read_crN_x86_64", "qqi")
_restore_state = external(LIBRARY, "cpu_restore_state_x86_64", "bqqb")
_flush_code = external(LIBRARY, "tb_flush_x86_64", "vq")
_set_dr = external(LIBRARY, "helper_set_dr_x86_64", "vqiq")
_get_dr = external(LIBRARY, "helper_get_dr_x86_64", "qqi")
_iret_protected = external(LIBRARY, "helper_iret_protected_x86_64", "vqii")
_iret_real = external(LIBRARY, "helper_iret_real_x86_64", "vqi")
_sysret = external(LIBRARY, "helper_sysret_x86_64", "vqi")
_load_32 = external(LIBRARY, "cpu_ldl_data_ra_x86_64", "iqqq")
_load_64 = external(LIBRARY, "cpu_ldq_data_ra_x86_64", "qqqq")


@inlined
def raise_exception_from(cpu: Cpu, vector: int, error: int, code_at: int) -> None:
    """Raise an exception of the instruction whose translated code has the host address ``code_at``.

    Does not return.  ``error`` counts for the vectors that have an error code.
    """
    _raise(cpu.env, vector, error, code_at)


@inlined
def raise_exception(cpu: Cpu, vector: int, error: int) -> None:
    """Raise an exception of the instruction at RIP, which begins its block, or has stored RIP and the flags.

    Does not return.
    """
    _raise(cpu.env, vector, error, 0)


@inlined
def load_guest_32(env: int, gva: int) -> int:
    """A load as the running program makes it; when it faults it does not return, as in :func:`raise_exception`."""
    return _load_32(env, gva, 0) & 0xFFFF_FFFF


@inlined
def load_guest_64(env: int, gva: int) -> int:
    """:func:`load_guest_32` for 64 bits."""
    return _load_64(env, gva, 0)


@compiled
def original_write_cr(env: int, number: int, value: int) -> None:
    """MOV to a control register as the engine does it."""
    _write_cr(env, number, value)


@compiled
def original_read_cr(env: int, number: int) -> int:
    """MOV from a control register as the engine does it."""
    return _read_cr(env, number)


@inlined
def store_state(cpu: Cpu, code_at: int) -> None:
    """Put RIP and the flags into the CPU state as they are at the host address ``code_at`` of translated code."""
    _restore_state(cpu.engine_cpu_at, code_at, True)


@inlined
def flush_code(cpu: Cpu) -> None:
    """Drop all translated code of the processor; from a helper whose instruction ends its block."""
    _flush_code(cpu.engine_cpu_at)


@compiled
def original_set_dr(env: int, number: int, value: int) -> None:
    """MOV to a debug register as the engine does it."""
    _set_dr(env, number, value)


@compiled
def original_get_dr(env: int, number: int) -> int:
    """MOV from a debug register as the engine does it."""
    return _get_dr(env, number)


@compiled
def original_iret_protected(env: int, size: int, following: int) -> None:
    """IRET in protected mode as the engine does it; it may fault."""
    _iret_protected(env, size, following)


@compiled
def original_iret_real(env: int, size: int) -> None:
    """IRET in real and virtual-8086 mode as the engine does it; it may fault."""
    _iret_real(env, size)


@compiled
def original_sysret(env: int, size: int) -> None:
    """SYSRET as the engine does it; it may fault."""
    _sysret(env, size)


original_return_protected = external(LIBRARY, "helper_lret_protected_x86_64", "vqii")  # far RET; it may fault
original_call_protected = external(LIBRARY, "helper_lcall_protected_x86_64", "vqiqiq")  # far CALL; it may fault

# the helpers of x87 and SSE instructions as they are; those with an address may fault
original_fwait = external(LIBRARY, "helper_fwait_x86_64", "vq")
original_fstenv = external(LIBRARY, "helper_fstenv_x86_64", "vqqi")
original_fsave = external(LIBRARY, "helper_fsave_x86_64", "vqqi")
original_fxsave = external(LIBRARY, "helper_fxsave_x86_64", "vqq")
original_xsave = external(LIBRARY, "helper_xsave_x86_64", "vqqq")
original_xsaveopt = external(LIBRARY, "helper_xsaveopt_x86_64", "vqqq")
original_fninit = external(LIBRARY, "helper_fninit_x86_64", "vq")
original_fldenv = external(LIBRARY, "helper_fldenv_x86_64", "vqqi")
original_frstor = external(LIBRARY, "helper_frstor_x86_64", "vqqi")
original_fxrstor = external(LIBRARY, "helper_fxrstor_x86_64", "vqq")
original_xrstor = external(LIBRARY, "helper_xrstor_x86_64", "vqqq")
original_ldmxcsr = external(LIBRARY, "helper_ldmxcsr_x86_64", "vqi")
original_flds_st0 = external(LIBRARY, "helper_flds_ST0_x86_64", "vqi")
original_fldl_st0 = external(LIBRARY, "helper_fldl_ST0_x86_64", "vqq")
original_flds_ft0 = external(LIBRARY, "helper_flds_FT0_x86_64", "vqi")
original_fldl_ft0 = external(LIBRARY, "helper_fldl_FT0_x86_64", "vqq")
original_fsts_st0 = external(LIBRARY, "helper_fsts_ST0_x86_64", "iq")
original_fstl_st0 = external(LIBRARY, "helper_fstl_ST0_x86_64", "qq")
original_fprem = external(LIBRARY, "helper_fprem_x86_64", "vq")
original_fprem1 = external(LIBRARY, "helper_fprem1_x86_64", "vq")
original_fistl = external(LIBRARY, "helper_fistl_ST0_x86_64", "iq")
original_fisttl = external(LIBRARY, "helper_fisttl_ST0_x86_64", "iq")
original_fisttll = external(LIBRARY, "helper_fisttll_ST0_x86_64", "qq")
original_fldcw = external(LIBRARY, "helper_fldcw_x86_64", "vqi")
original_fsts = external(LIBRARY, "helper_fsts_ST0_x86_64", "iq")
original_fstl = external(LIBRARY, "helper_fstl_ST0_x86_64", "qq")
original_fistll = external(LIBRARY, "helper_fistll_ST0_x86_64", "qq")
original_enter_mmx = external(LIBRARY, "helper_enter_mmx_x86_64", "vq")
original_rcpps = external(LIBRARY, "helper_rcpps_x86_64", "vqqq")
original_rcpss = external(LIBRARY, "helper_rcpss_x86_64", "vqqq")
original_rsqrtps = external(LIBRARY, "helper_rsqrtps_x86_64", "vqqq")
original_rsqrtss = external(LIBRARY, "helper_rsqrtss_x86_64", "vqqq")
original_roundps = external(LIBRARY, "helper_roundps_xmm_x86_64", "vqqqi")
original_roundpd = external(LIBRARY, "helper_roundpd_xmm_x86_64", "vqqqi")
original_roundss = external(LIBRARY, "helper_roundss_xmm_x86_64", "vqqqi")
original_roundsd = external(LIBRARY, "helper_roundsd_xmm_x86_64", "vqqqi")
