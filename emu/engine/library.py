"""The engine library's own pointers: how functions of emu's take the place of functions of Unicorn's.

Only for what Unicorn offers no hook for.  All of it happens once, before the first engine is made.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from unicorn.unicorn_py3.unicorn import uclib

from emu.errors import EngineMismatch

LIBRARY = str(uclib._name)  # path

_IMPORTS: dict[str, Any] = {}
_HELPERS: dict[str, Any] = {}
_done = False


def replace_import(name: str, function: Any) -> None:
    """Make the library call ``function``, a callback, where it calls ``name`` by its procedure linkage table."""
    assert not _done
    _IMPORTS[name] = function


def replace_helper(name: str, function: Any) -> None:
    """Make translated code call ``function``, a callback, where it calls the helper ``name``.

    Only for helpers that cannot fault: the engine finds the faulting instruction by the address that its own function
    returns to.
    """
    assert not _done
    _HELPERS[name] = function


def replace_functions() -> None:
    """Carry out what was asked for.

    Raises:
        EngineMismatch: the library does not import such a function, or has no such helper.
    """
    global _done
    if not _done:
        for name, function in _IMPORTS.items():
            _patch(_import_slot(uclib._handle, name.encode()), function.address_of)
        _replace_helpers()
    _done = True


def helper_address(name: str) -> int:
    """The host address of one of the translator's helpers."""
    return ctypes.cast(getattr(uclib, f"helper_{name}_x86_64"), ctypes.c_void_p).value or 0


class _LinkMap(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64)]


def _import_slot(handle: int, name: bytes) -> int:
    """The address of the slot through which a loaded shared library calls the imported function ``name``.

    ELF gABI: the dynamic section leads to the PLT relocations, their symbols to the names.

    Raises:
        EngineMismatch: the library imports no such function.
    """
    table: dict[int, int] = {}
    at = _LinkMap.from_address(handle).dynamic
    while tag := ctypes.c_uint64.from_address(at).value:
        table[tag] = ctypes.c_uint64.from_address(at + 8).value
        at += 16
    strings, symbols, size, relocations = table[5], table[6], table[2], table[23]  # STRTAB SYMTAB PLTRELSZ JMPREL
    entries = np.ctypeslib.as_array((ctypes.c_uint64 * (size // 8)).from_address(relocations)).reshape(-1, 3)
    for offset, info, _ in entries.tolist():
        name_offset = ctypes.c_uint32.from_address(symbols + 24 * (info >> 32)).value
        if ctypes.string_at(strings + name_offset, len(name) + 1) == name + b"\0":
            return _LinkMap.from_address(handle).address + offset
    raise EngineMismatch(f"Unicorn does not import {name.decode()}: emu needs Unicorn 2.1.4 for Linux")


def _patch(slot: int, value: int) -> None:
    """Store ``value`` into a pointer of the engine library that is constant once it is loaded."""
    page = slot & -mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise EngineMismatch(f"cannot change Unicorn's pointers: {os.strerror(ctypes.get_errno())}")
    ctypes.c_uint64.from_address(slot).value = value


def _replace_helpers() -> None:
    """Carry out :func:`replace_helper`.

    The translator takes a helper's address from the library's global offset table, and looks it up in a table of
    (address, name, ...): both are changed.

    Raises:
        EngineMismatch: the library has no such helper where it is looked for.
    """
    data = [(begin, ctypes.string_at(begin, end - begin)) for begin, end in _library_data()]
    for name, function in _HELPERS.items():
        wanted = struct.pack("<Q", helper_address(name))
        slots = [(begin + at, text) for begin, piece in data for at, text in _occurrences(piece, wanted)]
        named = [slot for slot, text in slots if _string_at(data, text, len(name) + 1) == name.encode() + b"\0"]
        if len(named) != 1 or len(slots) < 2:
            raise EngineMismatch(f"the helper {name} not found in Unicorn's tables: emu needs Unicorn 2.1.4 for Linux")
        for slot, _ in slots:
            _patch(slot, function.address_of)


def _occurrences(data: bytes, pointer: bytes) -> Iterator[tuple[int, int]]:
    """Where ``pointer`` lies in ``data``, and the pointer behind it."""
    at = data.find(pointer)
    while at >= 0:
        yield at, int.from_bytes(data[at + 8 : at + 16], "little")
        at = data.find(pointer, at + 8)


def _string_at(data: list[tuple[int, bytes]], address: int, size: int) -> bytes:
    for begin, piece in data:
        if begin <= address < begin + len(piece):
            return piece[address - begin : address - begin + size]
    return b""


def _library_data() -> list[tuple[int, int]]:
    """Where the library's data lies: (begin, end) of its mappings without code."""
    library = os.path.realpath(LIBRARY)
    found = []
    with open("/proc/self/maps") as maps:
        for line in maps:
            place, access, *_, path = line.split()
            if access in ("r--p", "rw-p") and path == library:
                begin, end = place.split("-")
                found.append((int(begin, 16), int(end, 16)))
    return found
