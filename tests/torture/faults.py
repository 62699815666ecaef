"""Fault injection: every call of a run to the host fails once, one run for each call and each way to fail.

A run is counted first: how often ``emu`` calls each function of KINDS. Then the n-th call fails, for every n. What may
come of it: nothing at all (the run is as it would have been), or an end with a status that is no success and one line
that names the reason. Before the VM is closed it is audited.

EINTR is not among the faults: Python repeats an interrupted call itself (PEP 475).
"""

from __future__ import annotations

import argparse
import builtins
import errno
import fcntl
import io
import mmap
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from emu.cli import main as emu
from emu.commands.screen import Screen
from emu.devices.taskfile import TaskFile
from emu.devices.uart import Uart16550
from emu.dmm.policies import store
from emu.dmm.policies.demand import DemandPaging
from emu.dmm.policies.swap import Swap
from emu.machine.vm import VirtualMachine
from emu.observe.trace import EventWriter
from tests.torture.workload import SECTORS, console, disk_image, write_guest

ROUNDS = 1
SUCCESS, BAD_INPUT, LIMIT, FAULT = 1, 2, 124, 125
DISK_ERROR = 7  # the guest writes 3 to port 0xF4 when its disk reports an error
Fault = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def _raises(error: Callable[[], Exception]) -> Fault:
    def fault(call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        raise error()

    return fault


def _host(number: int) -> Fault:
    return _raises(lambda: OSError(number, os.strerror(number)))


def _short_read(call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    data = call(*args, **named)
    return data[: len(data) // 2]


def _short_write(call: Callable[..., Any], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    descriptor, data, *rest = args
    return call(descriptor, bytes(data[: (len(data) + 1) // 2]), *rest, **named)


NO_MEMORY = _raises(lambda: MemoryError())
BROKEN = _raises(lambda: RuntimeError("broken on purpose"))


@dataclass(frozen=True)
class Kind:
    """A function that can fail.

    Attributes:
        owner, name: where it is found when it is called.
        faults: the ways, by name.
        by_emu: only calls that stand in emu's own files count, not those of the libraries that it uses.
        plugged: it is somebody's policy, listener or device: its exceptions are theirs, and a traceback helps them.
    """

    owner: Any
    name: str
    faults: dict[str, Fault]
    by_emu: bool = True
    plugged: bool = False


class _File(io.FileIO):
    """A file whose writes can be counted and refused."""

    def write(self, data: Any) -> int:  # type: ignore[override]
        return self.pass_on(data)

    def pass_on(self, data: Any) -> int:
        return super().write(data) or 0


_PLUGGED = {"exception": BROKEN}
_READ = {"EIO": _host(errno.EIO), "short": _short_read, "MemoryError": NO_MEMORY}
_OPEN = {"EIO": _host(errno.EIO), "EMFILE": _host(errno.EMFILE)}
_WRITE = {"ENOSPC": _host(errno.ENOSPC), "EIO": _host(errno.EIO), "short": _short_write}
_EIO = {"EIO": _host(errno.EIO)}
KINDS = {
    "open": Kind(builtins, "open", _OPEN),
    "os.open": Kind(os, "open", _OPEN),
    "Path.open": Kind(Path, "open", _OPEN),
    "Path.stat": Kind(Path, "stat", _EIO),
    "Path.read_bytes": Kind(Path, "read_bytes", {"EIO": _host(errno.EIO), "MemoryError": NO_MEMORY}),
    "pread": Kind(os, "pread", _READ),
    "pwrite": Kind(os, "pwrite", _WRITE),
    "os.write": Kind(os, "write", _WRITE),
    "file.write": Kind(_File, "write", {"ENOSPC": _host(errno.ENOSPC), "EIO": _host(errno.EIO)}, False),
    "fsync": Kind(os, "fsync", _EIO),
    "ftruncate": Kind(os, "ftruncate", _EIO),
    "fstat": Kind(os, "fstat", _EIO),
    "link": Kind(os, "link", _EIO),
    "replace": Kind(os, "replace", _EIO),
    "unlink": Kind(Path, "unlink", _EIO),
    "flock": Kind(fcntl, "flock", {"ENOLCK": _host(errno.ENOLCK)}),
    "mmap": Kind(mmap, "mmap", {"ENOMEM": _host(errno.ENOMEM), "MemoryError": NO_MEMORY}),
    "thread": Kind(threading.Thread, "start", {"none left": _raises(lambda: RuntimeError("can't start new thread"))}),
    "compress": Kind(store, "compress_for_test", {"MemoryError": NO_MEMORY, "exception": BROKEN}, False),
    "decompress": Kind(store, "decompress_for_test", {"MemoryError": NO_MEMORY, "exception": BROKEN}, False),
    "policy populate": Kind(DemandPaging, "populate", _PLUGGED, False, True),
    "policy keep": Kind(Swap, "keep", _PLUGGED, False, True),
    "policy restore": Kind(Swap, "restore", _PLUGGED, False, True),
    "policy make_room": Kind(Swap, "make_room", _PLUGGED, False, True),
    "policy detach": Kind(Swap, "detach", _PLUGGED, False, True),
    "listener of events": Kind(EventWriter, "__call__", _PLUGGED, False, True),
    "listener of the console": Kind(Screen, "__call__", _PLUGGED, False, True),
    "device load": Kind(TaskFile, "read", _PLUGGED, False, True),
    "device store": Kind(TaskFile, "write", _PLUGGED, False, True),
    "device serial": Kind(Uart16550, "write", _PLUGGED, False, True),
}


@dataclass
class Injector:
    """Counts the calls of every kind, and has one of them fail.

    Attributes:
        kind, fault, at: which call of which kind fails, counted from 1, and how; at 0 none does.
        counted: calls of each kind.
    """

    kind: str = ""
    fault: str = ""
    at: int = 0
    counted: Counter[str] = field(default_factory=Counter)
    failed: bool = False

    def wrap(self, name: str, kind: Kind, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            if kind.by_emu and not sys._getframe(1).f_globals.get("__name__", "").startswith("emu."):
                return call(*args, **named)
            self.counted[name] += 1
            if name == self.kind and self.counted[name] == self.at:
                self.failed = True
                return kind.faults[self.fault](call, args, named)
            return call(*args, **named)

        return wrapped

    @contextmanager
    def installed(self) -> Iterator[None]:
        """All kinds replaced."""
        path_open, lz4 = Path.open, store.ALGORITHMS["lz4"]
        codec = lz4()
        with ExitStack() as patches:

            def open_counted(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
                return io.BufferedWriter(_File(path, "w")) if mode == "wb" else path_open(path, mode, *args, **named)

            patches.enter_context(patch.object(store, "compress_for_test", codec[0], create=True))
            patches.enter_context(patch.object(store, "decompress_for_test", codec[1], create=True))
            patches.enter_context(patch.object(Path, "open", open_counted))
            for name, kind in KINDS.items():
                wrapped = self.wrap(name, kind, getattr(kind.owner, kind.name))
                patches.enter_context(patch.object(kind.owner, kind.name, wrapped))
            counted = {"lz4": lambda: (store.compress_for_test, store.decompress_for_test)}  # type: ignore[attr-defined]
            patches.enter_context(patch.dict(store.ALGORITHMS, counted))
            yield


@dataclass(frozen=True)
class Result:
    """What a run did: its status, its console, what it said, what an audit before its end said, and its files."""

    status: int
    out: bytes
    err: str
    audit: str
    files: tuple[bytes, ...]


def run(folder: Path, injector: Injector) -> Result:
    """The workload with every kind of file, in this process."""
    disk_image(folder / "disk")
    for name in ("swap", "events", "serial2", "summary"):
        (folder / name).unlink(missing_ok=True)
    command = (
        f"run {folder}/guest.s --ram 1M --pool 256K --policy swap:memory=1K,file={folder}/swap --disk "
        f"{folder}/disk,writable --serial2 {folder}/serial2 --events {folder}/events --summary {folder}/summary "
        "--timeout 100"
    )
    out, err, audited = io.TextIOWrapper(io.BytesIO()), io.StringIO(), []
    close = VirtualMachine.close

    def audit_and_close(vm: VirtualMachine) -> None:
        try:
            vm.audit()
        except Exception as error:
            audited.append(f"{type(error).__name__}: {error}")
        close(vm)

    standard = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        with patch.object(VirtualMachine, "close", audit_and_close), injector.installed():
            status = emu(command.split())
    except BaseException as error:  # emu must not let anything through
        status = -1
        err.write(f"let through: {type(error).__name__}: {error}")
    finally:
        sys.stdout, sys.stderr = standard
    files = tuple(
        (folder / name).read_bytes() if (folder / name).exists() else b"" for name in ("disk", "events", "serial2")
    )
    assert isinstance(out.buffer, io.BytesIO)
    return Result(status, out.buffer.getvalue(), err.getvalue(), "; ".join(audited[:1]), files)


def judge(kind: Kind, result: Result, right: Result) -> tuple[str, str]:
    """What became of a run with a fault: "no effect", "told" or "wrong"; and for the last one why."""
    lines = [line for line in result.err.splitlines() if line.strip()]
    if result.audit:
        return "wrong", f"the audit says {result.audit}"
    if result.status == SUCCESS:
        if (result.out, result.files) != (right.out, right.files):
            return "wrong", "looks like a success, and the output differs"
        return "no effect", ""
    if result.status not in (BAD_INPUT, LIMIT, FAULT, DISK_ERROR):
        return "wrong", f"status {result.status}: {lines[-1:]}"
    if "Traceback" in result.err:
        if kind.plugged and result.status == FAULT and "broken on purpose" in result.err:
            return "told", ""
        return "wrong", f"a traceback that ends with {lines[-2:]}"
    if not lines or not all(line.startswith("emu: ") for line in lines) or len(lines) > 3:
        return "wrong", f"said {lines}"
    return "told", ""


@dataclass
class Table:
    """The result: faults of each kind by what became of them, and a line for each that went wrong."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def text(self) -> str:
        lines = [f"{'call':<26}{'points':>8}{'no effect':>11}{'told':>6}{'wrong':>7}"]
        total: Counter[str] = Counter()
        for name, row in self.rows.items():
            lines.append(f"{name:<26}{row.total():>8}{row['no effect']:>11}{row['told']:>6}{row['wrong']:>7}")
            total += row
        lines.append(f"{'all':<26}{total.total():>8}{total['no effect']:>11}{total['told']:>6}{total['wrong']:>7}")
        return "\n".join(lines)


def inject(every: int = 1, only: str | None = None) -> Table:
    """Let each call fail in each way; only every so-manieth call of a kind, from the first on."""
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_guest(folder / "guest.s", ROUNDS)
        run(folder, Injector())  # what is done once a process is done now
        counts = Injector()
        right = run(folder, counts)
        assert right.status == SUCCESS and right.out == console(ROUNDS) and not right.audit, right
        assert len(right.files[0]) == SECTORS * 512
        for name, kind in KINDS.items():
            if only is not None and name != only:
                continue
            row = table.rows[name] = Counter()
            for fault in kind.faults:
                for at in range(1, counts.counted[name] + 1, every):
                    injector = Injector(name, fault, at)
                    result = run(folder, injector)
                    verdict, why = judge(kind, result, right) if injector.failed else ("wrong", "never came")
                    row[verdict] += 1
                    if why:
                        table.wrong.append(f"{name} {at} of {counts.counted[name]}, {fault}: {why}")
    return table


def main(arguments: list[str]) -> int:
    """``--every N``, ``--only KIND``."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture faults", description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth call of a kind (default: all)")
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args(arguments)
    table = inject(options.every, options.only)
    print(table.text())
    for line in table.wrong:
        print(line)
    return int(bool(table.wrong))
