"""The native plane's vocabulary: compiled functions, callbacks, raw memory and C functions.

The native plane (docs/design.md) is ordinary Python written against this module.  Here its functions are what a shared
object holds (:mod:`emu.engine.native_object`): those that Python calls are called through ctypes, the others cannot be
called.  When the shared object is built, :mod:`emu.engine.native_build` stands in the place of this module.  With
``NUMBA_DISABLE_JIT=1`` every name has a slow twin with the same meaning (:mod:`emu.engine.native_interpreted`), so that
the same source runs under a Python debugger.

Conventions of the native plane:

* every integer is a signed 64-bit integer; an address with bit 63 set is simply negative,
* state shared by both planes lives in NumPy records of int64 fields, see :mod:`emu.engine.state`,
* memory is reached by host address through ``load8`` .. ``store64``; loads below 64 bits zero-extend.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from emu.engine.native_object import address_of_symbol, signature_of, symbol_of
from emu.engine.native_values import C_TYPES, address_of, host_function, signed, unsigned

INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")

__all__ = [
    "INTERPRETED",
    "address_of",
    "call_host",
    "callback",
    "compiled",
    "external",
    "global_cell",
    "host_function",
    "inlined",
    "load8",
    "load16",
    "load32",
    "load64",
    "outlined",
    "record_at",
    "signed",
    "store8",
    "store16",
    "store32",
    "store64",
    "unsigned",
]

if INTERPRETED:
    from emu.engine.native_interpreted import (
        call_host,
        callback,
        compiled,
        external,
        global_cell,
        inlined,
        load8,
        load16,
        load32,
        load64,
        outlined,
        record_at,
        store8,
        store16,
        store32,
        store64,
    )
else:

    class _Native:
        """A native function that Python cannot call; ``address_of`` is the host address of a callback."""

        def __init__(self, function: Callable[..., Any], has_address: bool) -> None:
            self.__name__ = function.__name__
            self.__doc__ = function.__doc__
            if has_address:
                self.address_of = address_of_symbol(symbol_of(function))

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        """A native function that Python calls, too, if it takes only ``int`` and returns ``int``, ``bool`` or None."""
        signature = signature_of(function)
        if not signature:
            return inlined(function)
        result, *arguments = (C_TYPES[letter] for letter in signature)
        made = ctypes.PYFUNCTYPE(result, *arguments)(address_of_symbol(symbol_of(function)))
        made.__doc__ = function.__doc__
        return made

    def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
        """A native function for other native functions, compiled once for all constants passed to it."""
        return _Native(function, False)

    def callback(signature: str) -> Callable[[Callable[..., Any]], Any]:
        """A C callback; ``signature`` is one letter for the result, then one for each argument (q, i, b, v)."""
        return lambda function: _Native(function, True)

    def outlined(signature: str) -> Callable[[Callable[..., Any]], Any]:
        """A native function that is called, never inlined: keeps rare work out of fast paths and compile times short.

        Arguments and result are int64 ("q") only; the VM comes as the host address of its record.
        """
        return lambda function: _Native(function, False)

    def _only_native(*arguments: Any) -> Any:
        raise TypeError("only native functions can use this")

    def external(library: str, name: str, signature: str) -> Any:
        """The C function ``name`` of the engine's library."""
        return _only_native

    def global_cell(name: str) -> tuple[np.ndarray[Any, Any], Callable[[], int]]:
        """One process-wide int64: as an array for Python, and a native function that returns its host address."""
        cell = ctypes.c_int64.from_address(address_of_symbol(name))
        return np.ctypeslib.as_array(ctypes.pointer(cell), (1,)), _only_native

    def record_at(dtype: np.dtype[Any], name: str) -> Callable[[int], Any]:
        """A native function from a host address to the record of ``dtype`` that lies there."""
        return _only_native

    load8 = load16 = load32 = load64 = store8 = store16 = store32 = store64 = _only_native
    call_host: Any = _only_native  # call the C function at a host address: three int64 to an int64
