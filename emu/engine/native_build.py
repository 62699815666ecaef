"""Builds the native plane: compiles all of its functions with numba into one shared object, which needs no numba.

``python -m emu.engine.native_build FILE`` does it, in a process of its own (:mod:`emu.engine.native_object`).  There
this module stands in the place of :mod:`emu.engine.native`: its decorators collect what the others only look up.

Numba types and lowers each function; nothing is optimised until all of them are one LLVM module, so that each is
optimised once, and LLVM sees every caller of it.  The machine code is for any x86-64 processor.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import from_dtype, njit, types
from numba.core import codegen
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.registry import cpu_target
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode
from numba.extending import intrinsic

from emu.engine.native_object import native_modules, signature_of, symbol_of
from emu.engine.native_values import address_of, host_function, signed, unsigned

__all__ = ["address_of", "host_function", "signed", "unsigned"]  # of emu.engine.native, as they are

INTERPRETED = False

_TYPES = {"b": types.boolean, "i": types.int32, "q": types.int64, "v": types.void}
_INT64, _INT8 = ir.IntType(64), ir.IntType(8)
_PASSES = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    IRLegalization,
    AnnotateTypes,
    NativeLowering,
    NoPythonBackend,
)


class _Entry(NamedTuple):
    """A function that gets a symbol of its own."""

    symbol: str
    signature: str
    dispatcher: Any
    is_called: bool  # by native functions, which shall not inline it


_entries: list[_Entry] = []
_cells: list[str] = []


class _Pipeline(CompilerBase):  # type: ignore[misc]
    """Those passes of numba's that integers, records, branches and loops need."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager("native plane")
        for one in _PASSES:
            manager.add_pass(one, one.__name__)
        manager.finalize()
        return [manager]


def _dispatcher(function: Callable[..., Any]) -> Any:
    return njit(
        error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, _nrt=False, pipeline_class=_Pipeline
    )(function)


def compiled(function: Callable[..., Any]) -> Any:
    dispatcher = inlined(function)
    signature = signature_of(function)
    if signature:
        _entries.append(_Entry(symbol_of(function), signature, dispatcher, False))
    return dispatcher


def inlined(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for use from other native functions, once for all constants passed to it."""
    dispatcher = _dispatcher(function)
    template = dispatcher.get_call_template

    def call_template(arguments: Any, keywords: Any) -> Any:
        return template(tuple(_widened(argument) for argument in arguments), keywords)

    dispatcher.get_call_template = call_template
    return dispatcher


def _widened(argument: Any) -> Any:
    plain = types.unliteral(argument)
    return types.int64 if isinstance(plain, types.Integer) else plain


def callback(signature: str) -> Callable[[Callable[..., Any]], Any]:
    def wrap(function: Callable[..., Any]) -> Any:
        dispatcher = _dispatcher(function)
        dispatcher.address_of = 0  # nothing runs here
        _entries.append(_Entry(symbol_of(function), signature, dispatcher, False))
        return dispatcher

    return wrap


def outlined(signature: str) -> Callable[[Callable[..., Any]], Any]:
    def wrap(function: Callable[..., Any]) -> Any:
        _entries.append(_Entry(symbol_of(function), signature, _dispatcher(function), True))
        return external("", symbol_of(function), signature)

    return wrap


def external(library: str, name: str, signature: str) -> Any:
    result, *arguments = (_TYPES[letter] for letter in signature)
    return types.ExternalFunction(name, result(*arguments))


def _load(bits: int) -> Any:
    @intrinsic
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer, align=1)
            return value if bits == 64 else builder.zext(value, _INT64)

        return types.int64(types.int64), generate

    return load


def _store(bits: int) -> Any:
    @intrinsic
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            stored = arguments[1] if bits == 64 else builder.trunc(arguments[1], ir.IntType(bits))
            builder.store(stored, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return store


load8, load16, load32, load64 = _load(8), _load(16), _load(32), _load(64)
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)


@intrinsic
def call_host(typing_context: Any, address: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = builder.inttoptr(arguments[0], ir.FunctionType(_INT64, [_INT64] * 3).as_pointer())
        return builder.call(function, arguments[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64), generate


def global_cell(name: str) -> tuple[np.ndarray[Any, Any], Callable[[], int]]:
    _cells.append(name)

    @intrinsic
    def cell_at(typing_context: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            symbol = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, _INT64, name)
            return builder.ptrtoint(symbol, _INT64)

        return types.int64(), generate

    return np.zeros(1, np.int64), cell_at


def record_at(dtype: np.dtype[Any], name: str) -> Callable[[int], Any]:
    record = from_dtype(dtype)
    record.name = name  # numba would spell out every field in the name of every function that takes the record

    @intrinsic
    def view(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(record))

        return record(types.int64), generate

    return view


class _Unlinked(codegen.JITCodeLibrary):  # type: ignore[misc]
    """The code of one function as numba lowered it: not optimised, not linked, not turned into machine code."""

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._finalized = True

    def collect(self, seen: dict[int, Any]) -> None:
        """Put this library and all that it calls into ``seen``, each once."""
        if id(self) not in seen:
            seen[id(self)] = self
            for library in self._linking_libraries:
                library.collect(seen)


def _entry_point(entry: _Entry, description: Any) -> Any:
    """The C function that calls a function with numba's calling convention.

    Native functions raise no exceptions, so the status that numba's convention returns says nothing.
    """
    context = cpu_target.target_context
    module = context.create_module(entry.symbol)
    kinds = [_INT8 if letter == "b" else context.get_value_type(_TYPES[letter]) for letter in entry.signature]
    result_type = ir.VoidType() if entry.signature[0] == "v" else kinds[0]
    function = ir.Function(module, ir.FunctionType(result_type, kinds[1:]), entry.symbol)
    builder = ir.IRBuilder(function.append_basic_block())
    arguments = [
        builder.trunc(value, ir.IntType(1)) if letter == "b" else value
        for letter, value in zip(entry.signature[1:], function.args, strict=True)
    ]
    convention = context.call_conv
    callee_type = convention.get_function_type(description.restype, description.argtypes)
    callee = ir.Function(module, callee_type, description.llvm_func_name)
    _, result = convention.call_function(builder, callee, description.restype, description.argtypes, arguments)
    if entry.signature[0] == "v":
        builder.ret_void()
    else:
        result = builder.zext(result, _INT64) if description.restype == types.boolean else result
        narrow = result.type.width > result_type.width
        builder.ret(builder.trunc(result, result_type) if narrow else result)
    return binding.parse_assembly(str(module))


def _whole_module() -> Any:
    """All native functions as one LLVM module, in which only the symbols of entries and cells can be seen."""
    libraries: dict[int, Any] = {}
    points = []
    for entry in _entries:
        result, *arguments = (_TYPES[letter] for letter in entry.signature)
        entry.dispatcher.compile(result(*arguments))
        found = entry.dispatcher.overloads[tuple(arguments)]
        found.library.collect(libraries)
        points.append(_entry_point(entry, found.fndesc))
    whole = binding.parse_assembly("\n".join(f"@{name} = global i64 0" for name in _cells))
    for part in (*(library._final_module for library in libraries.values()), *points):
        whole.link_in(part)
    seen = {entry.symbol for entry in _entries} | set(_cells)
    for value in (*whole.functions, *whole.global_variables):
        if not value.is_declaration and value.name not in seen:
            value.linkage = "internal"
    for entry in _entries:
        if entry.is_called:
            whole.get_function(entry.symbol).add_function_attribute("noinline")
    whole.verify()
    return whole


def build(path: Path) -> None:
    """Write the native plane to ``path`` as an object file for any x86-64 processor."""
    sys.modules["emu.engine.native"] = sys.modules[__name__]
    codegen.JITCPUCodegen._library_class = _Unlinked
    cpu_target.target_context.get_executable = lambda *arguments: {}.get  # numba wants a function, and calls it never
    for name in native_modules():
        importlib.import_module(name)
    whole = _whole_module()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(cpu="x86-64", opt=2, reloc="pic", codemodel="small")
    options = binding.create_pipeline_tuning_options(speed_level=3)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(whole, passes)
    path.write_bytes(machine.emit_object(whole))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
