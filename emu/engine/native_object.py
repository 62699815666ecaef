"""The machine code of the native plane: one shared object, where it is kept, and how a process gets hold of it.

It is built once for each version of the source (:mod:`emu.engine.native_build`): when emu is installed, or else at the
first start, for the cache.  A process that has it needs neither numba nor LLVM.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from unicorn.unicorn_py3.unicorn import uclib

from emu.errors import CompilerFailed

LIBRARY = str(uclib._name)  # path of the engine's library, whose functions the native plane calls

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "_native"  # what was built when emu was installed
_CACHE_KEEPS = 8  # versions of the source

_DECORATORS = (b"\n@compiled\n", b"\n@inlined\n", b"\n@outlined(", b"\n@callback(")
_LETTERS = {"int": "q", "bool": "b", "None": "v"}

_state = {"building": False, "kept": True}


def native_modules() -> list[str]:
    """The names of the modules that have native functions."""
    return [name for name, content in _sources().items() if is_native(content)]


def is_native(source: bytes) -> bool:
    """Whether a module's source has native functions."""
    return any(decorator in source for decorator in _DECORATORS)


def symbol_of(function: Callable[..., Any]) -> str:
    """What a native function is called in the shared object."""
    return f"{function.__module__}.{function.__qualname__}".replace(".", "_")


def signature_of(function: Callable[..., Any]) -> str:
    """One letter for the result of a native function, then one for each argument (q, b, v).

    Empty for a function that takes a record: only native functions can call it.
    """
    notes = dict(function.__annotations__)
    kinds = [notes.pop("return"), *notes.values()]
    return "".join(_LETTERS[kind] for kind in kinds) if set(kinds) <= set(_LETTERS) else ""


def being_built() -> tuple[bool, bool]:
    """Whether this process is having the native plane compiled, and whether it will be kept for the next one."""
    return _state["building"], _state["kept"]


def build_into(folder: Path) -> Path:
    """The shared object of this source in ``folder``, built there if there is none.

    Raises:
        OSError: the folder cannot be written to.
        CompilerFailed: the compiler failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes that start at once, one builds
        found = _find(folder)
        if found:
            return found
        _forget_old(folder)
        _state["building"] = True
        with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
            made = _link(compile_to(Path(scratch) / "native.o"))
            path = folder / (key() + made.suffix)
            os.replace(made, path)
        _state["building"] = False
    return path


def compile_to(path: Path) -> Path:
    """Compile the native plane to an object file, in a process of its own.

    Raises:
        CompilerFailed: what the compiler said.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(_PACKAGE.parent), *sys.path[1:]])}
    command = [sys.executable, "-m", "emu.engine.native_build", str(path)]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise CompilerFailed(f"compiling the native plane failed: {done.stderr.strip() or done.returncode}")
    return path


def _link(path: Path) -> Path:
    """A shared object of the object file at ``path``; where there is no linker, the object file itself."""
    linker = shutil.which("ld") or shutil.which("ld.lld")
    if not linker:
        return path
    linked = path.with_suffix(".so")
    done = subprocess.run([linker, "-shared", "-o", linked, path, LIBRARY], stderr=subprocess.DEVNULL)
    return linked if done.returncode == 0 else path


def _forget_old(folder: Path) -> None:
    """Remove what builds that were killed left behind, and what has not been made for long."""
    for scratch in folder.glob("building-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    made = sorted(folder.glob("*.*o"), key=lambda path: path.stat().st_mtime_ns)
    for path in made[: 1 - _CACHE_KEEPS]:
        path.unlink(missing_ok=True)


def _find(folder: Path) -> Path | None:
    for suffix in (".so", ".o"):
        path = folder / (key() + suffix)
        if path.is_file():
            return path
    return None


@cache
def key() -> str:
    """Names this version of the source of the native plane."""
    digest = hashlib.sha256()
    for name, content in _sources().items():
        digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]


@cache
def _sources() -> dict[str, bytes]:
    """The modules that have native functions, all that they import from this package, and what builds them.

    Numba compiles what a function calls, and the constants that it uses, into it.
    """
    contents = {}
    for folder, folders, files in os.walk(_PACKAGE):
        folders.sort()
        for file in sorted(files):
            if file.endswith(".py"):
                with open(os.path.join(folder, file), "rb") as source:
                    contents[_module_name(os.path.join(folder, file))] = source.read()
    wanted = {name for name, content in contents.items() if is_native(content)} | {"emu.engine.native_build"}
    todo = sorted(wanted)
    while todo:
        for statement in contents[todo.pop()].split(b"\nfrom emu")[1:]:
            module, _, rest = statement.decode().partition(" import ")
            names = (
                rest.partition(")")[0].strip("(").split(",") if rest[0] == "(" else rest.partition("\n")[0].split(",")
            )
            imported = {f"emu{module}", *(f"emu{module}.{name.strip()}" for name in names)}
            found = (imported & contents.keys()) - wanted
            wanted |= found
            todo += sorted(found)
    return {name: contents[name] for name in sorted(wanted)}


def _module_name(path: str) -> str:
    return path.removeprefix(str(_PACKAGE.parent)).strip(os.sep).removesuffix(".py").replace(os.sep, ".")


def find_or_build(installed: Path) -> Path:
    """The shared object of this source: in the folder ``installed``, or else in the cache, built if it is not there."""
    found = _find(installed)
    if found:
        return found
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emu"
    try:
        return build_into(base)
    except OSError:  # no home, or not writable
        _state["kept"] = False
        return build_into(Path(tempfile.mkdtemp(prefix="emu-")))


class _Shared:
    """The native plane as a shared object."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.PyDLL(str(path))  # the engine's library, which it needs, is in the process already

    def address(self, symbol: str) -> int:
        return ctypes.cast(getattr(self._library, symbol), ctypes.c_void_p).value or 0


class _Linked:
    """The native plane as an object file, linked in memory by LLVM: for machines without a linker."""

    def __init__(self, path: Path) -> None:
        from llvmlite import binding

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        binding.load_library_permanently(LIBRARY)
        machine = binding.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="small", jit=True)
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self._engine.add_object_file(binding.ObjectFileRef.from_path(str(path)))
        self._engine.finalize_object()

    def address(self, symbol: str) -> int:
        return int(self._engine.get_global_value_address(symbol) or self._engine.get_function_address(symbol))


@cache
def _loaded() -> _Shared | _Linked:
    path = find_or_build(_INSTALLED)
    return _Shared(path) if path.suffix == ".so" else _Linked(path)


def address_of_symbol(symbol: str) -> int:
    """The host address of a function or a cell of the native plane.

    Raises:
        CompilerFailed: the native plane is not there and cannot be built.
    """
    return _loaded().address(symbol)
