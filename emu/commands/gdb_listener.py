"""A guest that waits for gdb, and runs as gdb says (``--gdb``)."""

from __future__ import annotations

import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from emu.debug.gdb_server import GdbServer
from emu.errors import BadInput
from emu.machine.vm import Stop
from emu.observe.outcome import STATUS_LIMIT, STATUS_SUCCESS, Ending, Outcome
from emu.session import MEMORY_ERRORS, outcome_of, outcome_of_error

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine

_SLICE_NS = 1_000_000  # virtual; between two looks for a client while the guest runs
_WAIT_S = 0.2  # between two looks for a signal while it stands


@contextmanager
def listen(address: str) -> Iterator[socket.socket]:
    """A socket that listens at ``[HOST:]PORT``, by default on this machine alone, or at ``unix:PATH``.

    Raises:
        BadInput: it is no such address, or cannot be had.
    """
    path = address.removeprefix("unix:") if address.startswith("unix:") else None
    host, _, port = address.rpartition(":")
    if path is None and not (port.isdecimal() and int(port) < 1 << 16) or path == "":
        raise BadInput("--gdb", f"{address}: expected a port such as 1234, HOST:PORT, or unix:PATH")
    try:
        listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(path if path else (host or "127.0.0.1", int(port)))
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise BadInput("--gdb", f"{address}: {error.strerror or error}") from None
    try:
        yield listener
    finally:
        listener.close()
        if path:
            with suppress(FileNotFoundError):
                os.unlink(path)


def run_under_gdb(
    vm: VirtualMachine,
    listener: socket.socket,
    waits: bool,
    stopped: Callable[[], bool],
    architecture: str | None = None,
    one_client: bool = False,
) -> Outcome:
    """Run a VM to its end as clients say; without one it stands still, unless the last one has let it run.

    Args:
        waits: for a client before the first instruction.
        stopped: whether the run is to end.
        architecture: what clients are told (:class:`emu.debug.gdb_server.GdbServer`).
        one_client: it ends with the first client.
    """
    server = GdbServer(vm, stopped, architecture)
    runs = not waits
    while not stopped() and server.outcome is None:
        if select.select([listener], [], [], 0 if runs else _WAIT_S)[0]:
            connected, _ = listener.accept()
            runs, ends = server.serve(connected)
            if (ends or one_client) and server.outcome is None:
                return Outcome(Ending.STOPPED, STATUS_SUCCESS, "gdb ended the run")
            continue
        if runs:
            try:
                stop = vm.run(vm.now + _SLICE_NS)
            except MEMORY_ERRORS as error:
                return outcome_of_error(error)
            if stop not in (Stop.DEADLINE, Stop.REQUESTED):
                return outcome_of(vm, stop)
    return server.outcome or Outcome(Ending.STOPPED, STATUS_LIMIT, "the run was stopped")


def announce(listener: socket.socket, waits: bool) -> None:
    """Say on standard error how to come in."""
    name = listener.getsockname()
    target = name if isinstance(name, str) else f"{name[0]}:{name[1]}"
    what = "waiting for gdb" if waits else "listening for gdb"
    print(f"emu: {what}; connect with: gdb -ex 'target remote {target}'", file=sys.stderr, flush=True)
