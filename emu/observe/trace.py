"""The event log: memory events as JSON lines.

One object a line, keys in this order: ``seq`` position in the VM's stream, ``time`` virtual time in ns, ``vm``,
``cpu`` the processor's number, ``kind`` (:attr:`emu.engine.eventkind.Event.NAME`), then the fields of the kind in the
order of its dataclass::

    {"seq":7,"time":1260,"vm":"vm0","cpu":0,"kind":"dmm-fault","gfn":"0x8","intent":4,"cause":1,"mfn":"0x9"}

Addresses, frame numbers, table entries and contents (HEX_FIELDS) are strings like "0x8", because many JSON readers
lose the low bits of large numbers; everything else is a decimal integer.  The same run gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from emu.engine.events import BY_NAME, EVENT_TYPES, Event
from emu.errors import BadInput

MOST_LINE = 1 << 16  # bytes of a line of the log
HEX_FIELDS = frozenset({"gva", "gpa", "gfn", "mfn", "rip", "entry", "table", "before", "after"})


def _template(kind: type[Event]) -> str:
    """A %-format for a line: sequence, time, the VM's name as JSON, then the fields."""
    parts = ['"seq":%d', '"time":%d', '"vm":%s', '"cpu":%d', f'"kind":"{kind.NAME}"']
    parts += [f'"{name}":"%#x"' if name in HEX_FIELDS else f'"{name}":%d' for name in kind.FIELDS]
    return "{" + ",".join(parts) + "}\n"


_TEMPLATES = {kind: _template(kind) for kind in EVENT_TYPES}


def format_event(event: Event) -> str:
    """The event's line, with its line end."""
    kind = type(event)
    values = [getattr(event, name) for name in kind.FIELDS]
    return _TEMPLATES[kind] % (event.sequence, event.time, json.dumps(event.vm), event.cpu, *values)


def parse_event(line: str | bytes) -> Event:
    """The event that :func:`format_event` wrote.

    Raises:
        ValueError: it is no such line; the message says why.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    kind = BY_NAME.get(record.get("kind", ""))
    if kind is None:
        raise ValueError(f"no event kind {record.get('kind')!r}")
    wanted = ["seq", "time", "vm", "cpu", "kind", *kind.FIELDS]
    if list(record) != wanted:
        raise ValueError(f"a {kind.NAME} event has the keys {', '.join(wanted)}")
    values = [int(record[name], 16) if name in HEX_FIELDS else int(record[name]) for name in kind.FIELDS]
    return kind(record["seq"], record["time"], record["vm"], record["cpu"], *values)


class EventWriter:
    """A listener (:meth:`emu.engine.eventlog.EventLog.listen`) that writes the log.

    Args:
        write: takes each line, in UTF-8.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def __call__(self, event: Event) -> None:
        self._write(format_event(event).encode())


def read_events(path: Path) -> Iterator[Event]:
    """The events of a log file, one by one.

    Raises:
        BadInput: the file cannot be read, or a line is no event.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadInput(str(path), "is no regular file; expected the log of --events")
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), b""), 1):
                try:
                    yield parse_event(line)
                except (ValueError, TypeError) as error:
                    raise BadInput(f"{path}:{number}", f"not a line of an event log: {error}") from None
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from None
