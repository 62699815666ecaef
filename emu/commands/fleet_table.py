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

from emu.fleet import Fleet, Member
from emu.fleet_numbers import Numbers
from emu.fleet_summary import lines, numbers_of
from emu.units import format_time

_PERIOD_S = 0.2  # from one look of the live table to the next
_PLAIN_WIDTH = 120  # columns where the output is no terminal
_COLUMNS = ("time", "pool", "used", "resident", "shared", "swapped", "balloon", "faults", "evicted", "COW")


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
            heading = Text(f"fleet at {format_time(self._fleet.now)}", "bold")
            self._live.update(Group(heading, _table(self._fleet)), refresh=True)
            self._next = time.monotonic() + _PERIOD_S

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()


def print_end(fleet: Fleet, file: TextIO) -> None:
    """Print the table and what else is to be said at the end."""
    console = Console(file=file, width=None if file.isatty() else _PLAIN_WIDTH, highlight=False)
    console.print(_table(fleet))
    for line in lines(fleet):
        console.print(line, markup=False, soft_wrap=True)


def _table(fleet: Fleet) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("VM", no_wrap=True)
    table.add_column("state", no_wrap=True)
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
        table.add_row("running now", "", "", *map(str, total))
    return table


def _counts(n: Numbers) -> list[int]:
    return [n.pool, n.used, n.resident, n.shared, n.swapped, n.balloon, n.faults, n.evictions, n.unshared]


def _style(member: Member) -> str:
    if member.end is not None:
        return "green" if member.end.well else "red"
    return "bold" if member.vm is not None else "dim"
