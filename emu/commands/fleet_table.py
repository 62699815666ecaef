"""The table of a fleet: live on a terminal, and once more at the end."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from emu.addr import PAGE_SHIFT
from emu.fleet.fleet import Fleet, Member
from emu.fleet.summary import lines, megabytes, numbers_of
from emu.observe.summary import MemoryUse
from emu.units import format_time

_PERIOD_S = 0.2  # from one look of the live table to the next
_PLAIN_WIDTH = 120  # columns where the output is no terminal
_COLUMNS = ("time", "pool", "used", "shared", "swapped", "balloon", "faults", "evicted", "COW")


class LiveTable:
    """Shows a fleet on standard error while it runs, if that is a terminal; gone at the end.

    A context manager; calling it updates the table, if it is time.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._live: Live | None = None
        self._next = 0.0

    def __enter__(self) -> LiveTable:
        if sys.stderr.isatty():
            console = Console(file=sys.stderr)
            self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
            self._live.start()
        return self

    def __call__(self) -> None:
        if self._live is not None and time.monotonic() >= self._next:
            self._live.update(Group(Text(_heading(self._fleet), "bold"), _table(self._fleet)), refresh=True)
            self._next = time.monotonic() + _PERIOD_S

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()


def print_end(fleet: Fleet, file: TextIO) -> None:
    """Print the table and what else is to be said at the end."""
    console = Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print(_table(fleet))
    for line in lines(fleet):
        console.print(line, markup=False, soft_wrap=not file.isatty())


def _heading(fleet: Fleet) -> str:
    vms, memory = fleet.running, fleet.machine.memory
    committed = megabytes(sum(vm.ram for vm in vms) >> PAGE_SHIFT)
    machine = f"{megabytes(memory.frames)} of machine memory, {megabytes(memory.free)} free"
    return f"{format_time(fleet.now)}: {len(vms)} running with {committed} on {machine}"


def _table(fleet: Fleet) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("VM", overflow="ellipsis")  # these two give way on a narrow terminal
    table.add_column("state", overflow="ellipsis")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    total = [0] * (len(_COLUMNS) - 1)
    for member in fleet.members:
        numbers = numbers_of(member)
        cells = [""] * len(_COLUMNS)
        if numbers is not None:
            counts = _counts(numbers)
            cells = [format_time(numbers.time), *map(str, counts)]
            if member.vm is not None:
                total = [a + b for a, b in zip(total, counts, strict=True)]
        table.add_row(member.plan.name, Text(member.state, _style(member)), *cells)
    if fleet.running:
        table.add_section()
        table.add_row("together", "", "", *map(str, total))
    return table


def _counts(n: MemoryUse) -> list[int]:
    return [n.pool, n.used, n.shared, n.swapped, n.balloon, n.faults, n.evictions, n.unshared]


def _style(member: Member) -> str:
    if member.end is not None:
        return "green" if member.end.well else "red"
    return "bold" if member.vm is not None else "dim"
