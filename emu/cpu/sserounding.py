"""SSE instructions that raise fewer exceptions than the engine says: approximations, and roundings that may be inexact.

SDM vol. 2, RCPPS and relatives ("SIMD floating-point exceptions: none"); ROUNDPS and relatives (bit 3 of the operand).
"""

from __future__ import annotations

from emu.cpu.floatflags import SSE_FLAGS
from emu.engine.helpers import (
    original_rcpps,
    original_rcpss,
    original_roundpd,
    original_roundps,
    original_roundsd,
    original_roundss,
    original_rsqrtps,
    original_rsqrtss,
)
from emu.engine.native import callback, inlined, load8, store8

_INEXACT = 32


@callback("vqqq")
def on_rcpps(env: int, target: int, source: int) -> None:
    """The engine's helper for RCPPS, an approximation, which raises nothing."""
    before = load8(env + SSE_FLAGS)
    original_rcpps(env, target, source)
    store8(env + SSE_FLAGS, before)


@callback("vqqq")
def on_rcpss(env: int, target: int, source: int) -> None:
    """The engine's helper for RCPSS, as RCPPS."""
    before = load8(env + SSE_FLAGS)
    original_rcpss(env, target, source)
    store8(env + SSE_FLAGS, before)


@callback("vqqq")
def on_rsqrtps(env: int, target: int, source: int) -> None:
    """The engine's helper for RSQRTPS, as RCPPS."""
    before = load8(env + SSE_FLAGS)
    original_rsqrtps(env, target, source)
    store8(env + SSE_FLAGS, before)


@callback("vqqq")
def on_rsqrtss(env: int, target: int, source: int) -> None:
    """The engine's helper for RSQRTSS, as RCPPS."""
    before = load8(env + SSE_FLAGS)
    original_rsqrtss(env, target, source)
    store8(env + SSE_FLAGS, before)


@inlined
def _after_round(env: int, mode: int, before: int) -> None:
    """Bit 3 of ROUNDPS's operand and its relatives': the result being inexact is no exception."""
    if mode & 8:
        store8(env + SSE_FLAGS, load8(env + SSE_FLAGS) & ~_INEXACT | before)


@callback("vqqqi")
def on_roundps(env: int, target: int, source: int, mode: int) -> None:
    """The engine's helper for ROUNDPS."""
    before = load8(env + SSE_FLAGS)
    original_roundps(env, target, source, mode)
    _after_round(env, mode, before)


@callback("vqqqi")
def on_roundpd(env: int, target: int, source: int, mode: int) -> None:
    """The engine's helper for ROUNDPD."""
    before = load8(env + SSE_FLAGS)
    original_roundpd(env, target, source, mode)
    _after_round(env, mode, before)


@callback("vqqqi")
def on_roundss(env: int, target: int, source: int, mode: int) -> None:
    """The engine's helper for ROUNDSS."""
    before = load8(env + SSE_FLAGS)
    original_roundss(env, target, source, mode)
    _after_round(env, mode, before)


@callback("vqqqi")
def on_roundsd(env: int, target: int, source: int, mode: int) -> None:
    """The engine's helper for ROUNDSD."""
    before = load8(env + SSE_FLAGS)
    original_roundsd(env, target, source, mode)
    _after_round(env, mode, before)


HELPERS = {
    "rcpps": on_rcpps, "rcpss": on_rcpss, "rsqrtps": on_rsqrtps, "rsqrtss": on_rsqrtss,
    "roundps_xmm": on_roundps, "roundpd_xmm": on_roundpd, "roundss_xmm": on_roundss, "roundsd_xmm": on_roundsd,
}  # fmt: skip
"""The engine's helpers, and what takes their places."""
