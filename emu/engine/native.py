"""The only module that knows numba: compiled functions, callbacks, raw memory and C functions.

The native plane (docs/design.md) is ordinary Python written against this module.  With ``NUMBA_DISABLE_JIT=1`` every
name below has a slow interpreted twin with the same meaning, so the same source runs under a Python debugger.

Conventions of the native plane:

* every integer is a signed 64-bit integer; an address with bit 63 set is simply negative,
* state shared by both planes lives in NumPy records of int64 fields, see :mod:`emu.engine.state`,
* memory is reached by host address through ``load8`` .. ``store64``; loads below 64 bits zero-extend.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, types

JIT = not config.DISABLE_JIT

_CACHES_KEPT = 8  # versions of the source whose machine code stays on disk
_not_cached = 0  # functions that had to be compiled in this process
_cache_is_temporary = False


def _native_sources() -> list[Path]:
    """The modules that have compiled functions, and all that they import from this package."""
    package = Path(__file__).parents[1]
    native = re.compile(rb"^ *@(compiled|inlined|outlined|callback)\b", re.MULTILINE)
    wanted = {path for path in package.rglob("*.py") if native.search(path.read_bytes())}
    todo = list(wanted)
    while todo:
        imports = re.findall(r"^from emu((?:\.\w+)*) import ([\w, ]*)", todo.pop().read_text(), re.MULTILINE)
        for module, names in imports:
            folder = package.joinpath(*module.split("."))
            candidates = [folder.with_suffix(".py"), *(folder / f"{name.strip()}.py" for name in names.split(","))]
            found = {path for path in candidates if path.is_file()} - wanted
            wanted |= found
            todo += found
    return sorted(wanted)


def _cache_directory() -> str:
    """Where machine code of exactly this source is kept.

    Numba looks at the file of a compiled function but not at the files of the functions that it calls, so all of the
    native plane's source is part of the directory's name.
    """
    digest = hashlib.sha256()
    for path in _native_sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emu"
    directory = base / digest.hexdigest()[:16]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        os.utime(directory)
        old = sorted(base.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-_CACHES_KEPT]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
    except OSError:  # no home, or not writable
        global _cache_is_temporary
        _cache_is_temporary = True
        return tempfile.mkdtemp(prefix="emu-")
    return str(directory)


config.CACHE_DIR = config.CACHE_DIR or _cache_directory()


def compilation() -> tuple[int, bool]:
    """How many functions had to be compiled in this process, and whether their machine code is kept for the next."""
    return _not_cached, not _cache_is_temporary


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
    from numba import cfunc, from_dtype, njit
    from numba.core.caching import Cache
    from numba.core.registry import cpu_target
    from numba.extending import intrinsic

    def _load_overload(self: Any, signature: Any, target_context: Any) -> Any:
        global _not_cached
        with self._guard_against_spurious_io_errors():
            found = self._load_overload(signature, target_context)
            _not_cached += found is None
            return found

    # Numba's own first sets up its run-time system and imports all that it may need for compiling (0.25 s), before it
    # looks whether it must compile.  So machine code must not refer to the run-time system: ``_nrt=False`` below.
    Cache.load_overload = _load_overload

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``function`` on first call; the machine code is cached on disk."""
        return njit(cache=True, error_model="numpy", no_cfunc_wrapper=True, _nrt=False)(function)

    def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile ``function`` for use from other native functions, once for all constants passed to it."""
        dispatcher = njit(
            error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False
        )(function)
        template = dispatcher.get_call_template

        def call_template(arguments: Any, keywords: Any) -> Any:
            return template(tuple(_widened(argument) for argument in arguments), keywords)

        dispatcher.get_call_template = call_template
        return dispatcher

    def _widened(argument: Any) -> Any:
        plain = types.unliteral(argument)
        return types.int64 if isinstance(plain, types.Integer) else plain

    @contextmanager
    def _inlined_into_wrapper() -> Iterator[None]:
        """Let numba inline a callback into its C wrapper, which it forbids: a call less for every block of code."""
        convention = type(cpu_target.target_context.call_conv)
        call_function = convention.call_function

        def call(self: Any, builder: Any, callee: Any, result: Any, types: Any, values: Any, attrs: Any = None) -> Any:
            return call_function(self, builder, callee, result, types, values)

        convention.call_function = call
        try:
            yield
        finally:
            convention.call_function = call_function

    def callback(signature: str) -> Callable[[Callable[..., Any]], Any]:
        """A C callback; ``signature`` is one letter for the result, then one for each argument (q, i, b, v)."""
        result, *arguments = (_NUMBA_TYPES[letter] for letter in signature)

        def wrap(function: Callable[..., Any]) -> Any:
            with _inlined_into_wrapper():
                decorate = cfunc(result(*arguments), cache=True, error_model="numpy", forceinline=True, _nrt=False)
                compiled_function = decorate(function)
            compiled_function.address_of = compiled_function.address
            return compiled_function

        return wrap

    def outlined(signature: str) -> Callable[[Callable[..., Any]], Any]:
        """A native function that is called, never inlined: keeps rare work out of fast paths and compile times short.

        Arguments and result are int64 ("q") only; the VM comes as the host address of its record.
        """

        def wrap(function: Callable[..., Any]) -> Any:
            symbol = f"{function.__module__}.{function.__qualname__}".replace(".", "_")
            made = callback(signature)(function)
            _OUTLINED.append(made)
            binding.add_symbol(symbol, made.address_of)
            result, *arguments = (_NUMBA_TYPES[letter] for letter in signature)
            return types.ExternalFunction(symbol, result(*arguments))

        return wrap

    _OUTLINED: list[Any] = []  # keeps their machine code alive

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
    def call_host(typing_context: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
        """Call the C function at a host address: three int64 to an int64."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = ir.IntType(64)
            function = builder.inttoptr(arguments[0], ir.FunctionType(word, [word] * 3).as_pointer())
            return builder.call(function, arguments[1:])

        return types.int64(types.int64, types.int64, types.int64, types.int64), codegen

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

    def record_at(dtype: np.dtype[Any], name: str) -> Callable[[int], Any]:
        """A function from a host address to the record of ``dtype`` that lies there."""
        record = from_dtype(dtype)
        record.name = name  # numba would spell out every field in the name of every function that takes the record

        @intrinsic
        def view(typing_context: Any, address: Any) -> Any:
            def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                return builder.inttoptr(arguments[0], context.get_value_type(record))

            return record(types.int64), codegen

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

    def outlined(signature: str) -> Callable[[Callable[..., Any]], Any]:
        return lambda function: function

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

    def call_host(address: int, a: int, b: int, c: int) -> int:
        word = ctypes.c_int64
        return int(ctypes.CFUNCTYPE(word, word, word, word)(int(address))(a, b, c))

    def global_cell(name: str) -> tuple[np.ndarray[Any, Any], Callable[[], int]]:
        cell = np.zeros(1, np.int64)
        return cell, lambda: address_of(cell)

    def record_at(dtype: np.dtype[Any], name: str) -> Callable[[int], Any]:
        fields = [(field, ctypes.c_int64) for field in dtype.names or ()]
        return type(name, (ctypes.Structure,), {"_fields_": fields}).from_address


load8, load16, load32, load64 = _load(8), _load(16), _load(32), _load(64)
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)


def host_function(function: Callable[[int, int, int], int]) -> Any:
    """A Python function for :func:`call_host`: ``address_of`` is its host address, the object keeps it alive."""
    word = ctypes.c_int64
    thunk = ctypes.CFUNCTYPE(word, word, word, word)(function)
    thunk.address_of = ctypes.cast(thunk, ctypes.c_void_p).value
    return thunk


def address_of(array: np.ndarray[Any, Any]) -> int:
    """The host address of an array's first element; the caller keeps the array alive."""
    return int(array.ctypes.data)
