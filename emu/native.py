"""The only module that knows numba: compiled functions, callbacks, raw memory and C functions.

The native plane (DESIGN.md) is ordinary Python written against this module.  With ``NUMBA_DISABLE_JIT=1`` every
name below has a slow interpreted twin with the same meaning, so the same source runs under a Python debugger.

Conventions of the native plane:

* every integer is a signed 64-bit integer; an address with bit 63 set is simply negative,
* state shared by both planes lives in NumPy records of int64 fields, see :mod:`emu.state`,
* memory is reached by host address through ``load8`` .. ``store64``; loads below 64 bits zero-extend.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import config, types

JIT = not config.DISABLE_JIT

_C_TYPES = {"b": ctypes.c_bool, "i": ctypes.c_int, "q": ctypes.c_int64, "v": None}
_NUMBA_TYPES = {"b": types.boolean, "i": types.int32, "q": types.int64, "v": types.void}


def signed(value: int) -> int:
    """The int64 with the same 64 bits as ``value``."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def unsigned(value: int) -> int:
    """The 64-bit unsigned reading of an int64."""
    return int(value) & ((1 << 64) - 1)


if JIT:
    from llvmlite import binding, ir
    from numba import carray, cfunc, njit
    from numba.core import cgutils
    from numba.extending import intrinsic

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``function`` on first call; the machine code is cached on disk."""
        return njit(cache=True, error_model="numpy", no_cpython_wrapper=False)(function)

    def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``function`` for use from other native functions."""
        return njit(error_model="numpy")(function)

    def callback(signature: str) -> Callable[[Callable[..., Any]], Any]:
        """A C callback; ``signature`` is one letter for the result, then one for each argument (q, i, b, v)."""
        result, *arguments = (_NUMBA_TYPES[letter] for letter in signature)

        def wrap(function: Callable[..., Any]) -> Any:
            compiled_function = cfunc(result(*arguments), cache=True, error_model="numpy")(function)
            compiled_function.address_of = compiled_function.address
            return compiled_function

        return wrap

    def external(library: str, name: str, signature: str) -> Any:
        """The C function ``name`` of the shared library at path ``library``."""
        binding.load_library_permanently(library)
        result, *arguments = (_NUMBA_TYPES[letter] for letter in signature)
        return types.ExternalFunction(name, result(*arguments))

    def _load(bits: int) -> Any:
        @intrinsic
        def load(typing_context: Any, address: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
                value = builder.load(pointer, align=1)
                return value if bits == 64 else builder.zext(value, ir.IntType(64))

            return types.int64(types.int64), codegen

        return load

    def _store(bits: int) -> Any:
        @intrinsic
        def store(typing_context: Any, address: Any, value: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
                stored = arguments[1] if bits == 64 else builder.trunc(arguments[1], ir.IntType(bits))
                builder.store(stored, pointer, align=1)
                return context.get_dummy_value()

            return types.void(types.int64, types.int64), codegen

        return store

    @intrinsic
    def _pointer(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], cgutils.voidptr_t)

        return types.voidptr(types.int64), codegen

    def global_cell(name: str) -> tuple[np.ndarray[Any, Any], Callable[[], int]]:
        """One process-wide int64: as an array for Python, and a native function that returns its host address.

        It is linked by name, so that cached machine code finds it wherever it lies in this process.
        """
        cell = np.zeros(1, np.int64)
        binding.add_symbol(name, address_of(cell))

        @intrinsic
        def cell_at(typing_context: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                symbol = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, ir.IntType(64), name)
                return builder.ptrtoint(symbol, ir.IntType(64))

            return types.int64(), codegen

        return cell, cell_at

    def record_at(dtype: np.dtype[Any]) -> Callable[[int], Any]:
        """A function from a host address to the record of ``dtype`` that lies there."""

        @inlined
        def view(address: int) -> Any:
            return carray(_pointer(address), 1, dtype)[0]

        return view

else:

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    inlined = compiled

    class _InterpretedCallback:
        """What ``callback`` returns without numba: the function behind a ctypes thunk."""

        def __init__(self, function: Callable[..., Any], signature: str) -> None:
            result, *arguments = (_C_TYPES[letter] for letter in signature)
            self.function = function
            self._thunk = ctypes.CFUNCTYPE(result, *arguments)(function)
            self.address_of = ctypes.cast(self._thunk, ctypes.c_void_p).value

    def callback(signature: str) -> Callable[[Callable[..., Any]], Any]:
        return lambda function: _InterpretedCallback(function, signature)

    def external(library: str, name: str, signature: str) -> Any:
        result, *arguments = (_C_TYPES[letter] for letter in signature)
        return ctypes.CFUNCTYPE(result, *arguments)((name, ctypes.CDLL(library)))

    def _load(bits: int) -> Any:
        c_type = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}[bits]
        return lambda address: c_type.from_address(int(address)).value

    def _store(bits: int) -> Any:
        c_type = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}[bits]

        def store(address: int, value: int) -> None:
            c_type.from_address(int(address)).value = int(value)

        return store

    def global_cell(name: str) -> tuple[np.ndarray[Any, Any], Callable[[], int]]:
        cell = np.zeros(1, np.int64)
        return cell, lambda: address_of(cell)

    def record_at(dtype: np.dtype[Any]) -> Callable[[int], Any]:
        def view(address: int) -> Any:
            raw = (ctypes.c_uint8 * dtype.itemsize).from_address(int(address))
            return np.frombuffer(raw, dtype=dtype).view(np.recarray)[0]

        return view


load8, load16, load32, load64 = _load(8), _load(16), _load(32), _load(64)
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)


def address_of(array: np.ndarray[Any, Any]) -> int:
    """The host address of an array's first element; the caller keeps the array alive."""
    return int(array.ctypes.data)
