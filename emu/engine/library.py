"""The engine library's own pointers: how functions of emu's take the place of functions of Unicorn's.

Only for what Unicorn offers no hook for.  All of it happens once, before the first engine is made.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from functools import cache
from typing import Any

import numpy as np
from unicorn.unicorn_py3.unicorn import uclib

from emu.errors import EngineMismatch

LIBRARY = str(uclib._name)  # path

_IMPORTS: dict[str, Any] = {}
_HELPERS: dict[str, Any] = {}
_BEFORE: dict[str, Any] = {}
_BEFORE_HELPERS: dict[str, Any] = {}
_helper_stubs: dict[str, int] = {}
_stubs: mmap.mmap | None = None  # where the machine code of _stub lies
_done = False

_SLOT_RELOCATIONS = (6, 7)  # R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT


def replace_import(name: str, function: Any) -> None:
    """Make the library use ``function``, a callback, where it calls ``name`` or takes its address by its tables.

    A function of the library's own is called so from other files than its own.
    """
    assert not _done
    _IMPORTS[name] = function


def call_before(name: str, function: Any) -> None:
    """Make the library call ``function`` before each call of ``name`` that :func:`replace_import` would see.

    Args:
        function: a callback with the signature "qqq": from the host address of the arguments, a word each, the return
            address after the first six, and the address of ``name`` or of what replaces it, to the address of the
            function that is called then.  It may change the arguments.  It has returned before that, so that the engine
            may jump out of ``name``; out of a function of ours that calls ``name`` it may not, because Python's frames
            do not survive that where the native plane is not compiled.
    """
    assert not _done
    _BEFORE[name] = function


def replace_helper(name: str, function: Any) -> None:
    """Make translated code call ``function``, a callback, where it calls the helper ``name``.

    Only for helpers that cannot fault, or whose instruction begins its block (:mod:`emu.cpu.translation`): the engine
    finds the faulting instruction by the address that its own function returns to, and keeps RIP where it finds none.
    """
    assert not _done
    _HELPERS[name] = function


def call_before_helper(name: str, function: Any) -> None:
    """:func:`call_before` for the helper ``name``, where translated code calls it.

    The helper still returns to translated code, so it may fault.
    """
    assert not _done
    _BEFORE_HELPERS[name] = function


def called_address(name: str) -> int:
    """The host address of what translated code calls for a helper, once :func:`replace_functions` is done."""
    if name in _helper_stubs:
        return _helper_stubs[name]
    return _HELPERS[name].address_of if name in _HELPERS else helper_address(name)


def replace_functions() -> None:
    """Carry out what was asked for.

    Raises:
        EngineMismatch: the library does not import such a function, or has no such helper.
    """
    global _done
    if not _done:
        for name, function in _IMPORTS.items():
            for slot in _import_slots(name):
                _patch(slot, function.address_of)
        _place_stubs()
        _replace_helpers()
    _done = True


def function_address(name: str) -> int:
    """The host address of a function that the library exports."""
    return ctypes.cast(getattr(uclib, name), ctypes.c_void_p).value or 0


def helper_address(name: str) -> int:
    """The host address of one of the translator's helpers."""
    return function_address(f"helper_{name}_x86_64")


class _LinkMap(ctypes.Structure):
    _fields_ = [("address", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64)]


def _import_slots(name: str) -> list[int]:
    """The addresses of the slots through which the engine's library calls or points to the function ``name``.

    Raises:
        EngineMismatch: the library has no such slot.
    """
    offset, slots = _all_slots()[0].find(name.encode() + b"\0"), _all_slots()[1]
    found: list[int] = []
    while offset >= 0:  # where the name lies in the strings; it may be the end of a longer one, too
        found += slots.get(offset, ())
        offset = _all_slots()[0].find(name.encode() + b"\0", offset + 1)
    if not found:
        raise EngineMismatch(f"Unicorn does not use {name}: emu needs Unicorn 2.1.4 for Linux")
    return found


@cache
def _all_slots() -> tuple[bytes, dict[int, list[int]]]:
    """The library's dynamic strings, and the addresses of the slots for the name at an offset in them.

    ELF gABI: the dynamic section leads to the relocations, their symbols to the names.
    """
    library = _LinkMap.from_address(uclib._handle)
    table: dict[int, int] = {}
    at = library.dynamic
    while tag := ctypes.c_uint64.from_address(at).value:
        table[tag] = ctypes.c_uint64.from_address(at + 8).value
        at += 16
    strings = ctypes.string_at(table[5], table[10])  # STRTAB STRSZ
    slots: dict[int, list[int]] = {}
    for begin, size in ((table[23], table[2]), (table[7], table[8])):  # JMPREL PLTRELSZ, RELA RELASZ
        entries = np.ctypeslib.as_array((ctypes.c_uint64 * (size // 8)).from_address(begin)).reshape(-1, 3)
        entries = entries[np.isin(entries[:, 1] & 0xFFFF_FFFF, _SLOT_RELOCATIONS)]
        used = entries[:, 1] >> 32
        symbols = np.ctypeslib.as_array((ctypes.c_uint32 * (6 * int(used.max() + 1))).from_address(table[6]))  # SYMTAB
        for offset, slot in zip(symbols[6 * used].tolist(), entries[:, 0].tolist(), strict=True):
            slots.setdefault(offset, []).append(library.address + slot)
    return strings, slots


def _stub(function: int, name: int) -> bytes:
    """Machine code that calls ``function`` with the arguments that it gets, and jumps to where that says.

    System V ABI: arguments in RDI, RSI, RDX, RCX, R8, R9, then on the stack; the result in RAX.
    """
    push_all = b"\x41\x51\x41\x50\x51\x52\x56\x57"  # R9 .. RDI
    pop_all = b"\x5f\x5e\x5a\x59\x41\x58\x41\x59"
    load_rsi, load_rax = b"\x48\xbe" + struct.pack("<Q", name), b"\x48\xb8" + struct.pack("<Q", function)
    mov_rdi_rsp, call_rax, jmp_rax = b"\x48\x89\xe7", b"\xff\xd0", b"\xff\xe0"
    align, unalign = b"\x48\x83\xec\x08", b"\x48\x83\xc4\x08"  # the stack, to 16 bytes
    return push_all + mov_rdi_rsp + load_rsi + align + load_rax + call_rax + unalign + pop_all + jmp_rax


def _place_stubs() -> None:
    """Carry out :func:`call_before`."""
    global _stubs
    _stubs = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    base = ctypes.addressof(ctypes.c_char.from_buffer(_stubs))
    for name, function in _BEFORE.items():
        at = base + _stubs.tell()
        replaced = _IMPORTS.get(name)
        _stubs.write(_stub(function.address_of, replaced.address_of if replaced else function_address(name)))
        for slot in _import_slots(name):
            _patch(slot, at)
    for name, function in _BEFORE_HELPERS.items():
        at = base + _stubs.tell()
        _stubs.write(_stub(function.address_of, called_address(name)))
        _helper_stubs[name] = at


def _patch(slot: int, value: int) -> None:
    """Store ``value`` into a pointer of the engine library that is constant once it is loaded."""
    page = slot & -mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_WRITE):
        raise EngineMismatch(f"cannot change Unicorn's pointers: {os.strerror(ctypes.get_errno())}")
    ctypes.c_uint64.from_address(slot).value = value


def _replace_helpers() -> None:
    """Carry out :func:`replace_helper` and :func:`call_before_helper`.

    The translator takes a helper's address from the library's global offset table, and looks it up in a table of
    (address, name, ...): both are changed.

    Raises:
        EngineMismatch: the library has no such helper where it is looked for.
    """
    data = [(begin, ctypes.string_at(begin, end - begin)) for begin, end in _library_data()]
    names = {helper_address(name): name for name in (*_HELPERS, *_BEFORE_HELPERS)}
    found = _occurrences(data, np.array(sorted(names), np.uint64))
    for address, name in names.items():
        slots = [(slot, text) for slot, pointer, text in found if pointer == address]
        named = [slot for slot, text in slots if _string_at(data, text, len(name) + 1) == name.encode() + b"\0"]
        if len(named) != 1 or len(slots) < 2:
            raise EngineMismatch(f"the helper {name} not found in Unicorn's tables: emu needs Unicorn 2.1.4 for Linux")
        for slot, _ in slots:
            _patch(slot, called_address(name))


def _occurrences(
    data: list[tuple[int, bytes]], wanted: np.ndarray[Any, np.dtype[np.uint64]]
) -> list[tuple[int, int, int]]:
    """Where one of the pointers ``wanted`` lies in ``data``, the pointer, and the word behind it."""
    found = []
    for begin, piece in data:
        words = np.frombuffer(piece, np.uint64, len(piece) // 8)
        near = np.flatnonzero((words[:-1] >= wanted.min()) & (words[:-1] <= wanted.max()))
        places = near[np.isin(words[near], wanted)]
        found += [(begin + 8 * place, int(words[place]), int(words[place + 1])) for place in places.tolist()]
    return found


def _string_at(data: list[tuple[int, bytes]], address: int, size: int) -> bytes:
    for begin, piece in data:
        if begin <= address < begin + len(piece):
            return piece[address - begin : address - begin + size]
    return b""


def _library_data() -> list[tuple[int, int]]:
    """Where the library's data lies: (begin, end) of its mappings without code."""
    library = os.path.realpath(LIBRARY)
    found = []
    try:
        with open("/proc/self/maps") as maps:
            lines = maps.readlines()
    except OSError:
        raise EngineMismatch("emu needs /proc of Linux, which is not mounted here") from None
    for line in lines:
        place, access, *_, path = line.split()
        if access in ("r--p", "rw-p") and path == library:
            begin, end = place.split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found
