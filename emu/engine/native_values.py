"""Numbers, addresses and C types that the native plane and Python agree on."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

C_TYPES: dict[str, Any] = {"b": ctypes.c_bool, "i": ctypes.c_int, "q": ctypes.c_int64, "v": None}
"""Of the letters of a signature."""


def signed(value: int) -> int:
    """The int64 with the same 64 bits as ``value``."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def unsigned(value: int) -> int:
    """The 64-bit unsigned reading of an int64."""
    return int(value) & ((1 << 64) - 1)


def host_function(function: Callable[[int, int, int], int]) -> Any:
    """A Python function for ``call_host``: ``address_of`` is its host address, the object keeps it alive."""
    word = ctypes.c_int64
    thunk: Any = ctypes.CFUNCTYPE(word, word, word, word)(function)
    thunk.address_of = ctypes.cast(thunk, ctypes.c_void_p).value
    return thunk


def address_of(array: np.ndarray[Any, Any]) -> int:
    """The host address of an array's first element; the caller keeps the array alive."""
    return int(array.ctypes.data)
