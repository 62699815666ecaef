"""The native plane as plain Python (``NUMBA_DISABLE_JIT=1``): slow, for a debugger and for tests of the walker.

The names and their meaning are those of :mod:`emu.engine.native`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from emu.engine.native_values import C_TYPES, address_of


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


inlined = compiled


class _Callback:
    """The function behind a ctypes thunk."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        result, *arguments = (C_TYPES[letter] for letter in signature)
        self.function = function
        self._thunk = ctypes.CFUNCTYPE(result, *arguments)(function)
        self.address_of = ctypes.cast(self._thunk, ctypes.c_void_p).value


def callback(signature: str) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: _Callback(function, signature)


def outlined(signature: str) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: function


def external(library: str, name: str, signature: str) -> Any:
    result, *arguments = (C_TYPES[letter] for letter in signature)
    return ctypes.CFUNCTYPE(result, *arguments)((name, ctypes.CDLL(library)))


def _load(bits: int) -> Any:
    c_type = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}[bits]
    return lambda address: c_type.from_address(int(address)).value


def _store(bits: int) -> Any:
    c_type = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_int64}[bits]

    def store(address: int, value: int) -> None:
        c_type.from_address(int(address)).value = int(value)

    return store


load8, load16, load32, load64 = _load(8), _load(16), _load(32), _load(64)
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)


def call_host(address: int, a: int, b: int, c: int) -> int:
    word = ctypes.c_int64
    return int(ctypes.CFUNCTYPE(word, word, word, word)(int(address))(a, b, c))


def global_cell(name: str) -> tuple[np.ndarray[Any, Any], Callable[[], int]]:
    cell = np.zeros(1, np.int64)
    return cell, lambda: address_of(cell)


def record_at(dtype: np.dtype[Any], name: str) -> Callable[[int], Any]:
    fields = [(field, ctypes.c_int64) for field in dtype.names or ()]
    structure: Any = type(name, (ctypes.Structure,), {"_fields_": fields})
    return structure.from_address
