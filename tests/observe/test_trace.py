"""The event log: one JSON line an event, the same bytes every time, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from emu.engine.events import EVENT_TYPES, DmmFault, Event, ExceptionDelivery, ShadowFill
from emu.errors import BadInput
from emu.observe.trace import HEX_FIELDS, EventWriter, format_event, parse_event, read_events
from emu.session import boot_vm, run_vm

TOP = (1 << 64) - 1


def sample(kind: type[Event], value: int) -> Event:
    return kind(7, 1260, "vm0", 2, *[value] * len(kind.FIELDS))


def test_a_line_is_what_the_documentation_says() -> None:
    line = format_event(DmmFault(7, 1260, "vm0", 2, gfn=8, intent=4, cause=1, mfn=9))
    assert line == (
        '{"seq":7,"time":1260,"vm":"vm0","cpu":2,"kind":"dmm-fault",'
        '"gfn":"0x8","intent":4,"cause":1,"mfn":"0x9"}\n'
    )


@pytest.mark.parametrize("kind", EVENT_TYPES)
@pytest.mark.parametrize("value", [0, 1, TOP])
def test_every_kind_there_and_back(kind: type[Event], value: int) -> None:
    event = sample(kind, value)
    line = format_event(event)
    assert line.endswith("}\n") and line.count("\n") == 1
    record = json.loads(line)
    assert list(record)[:5] == ["seq", "time", "vm", "cpu", "kind"]
    assert all(isinstance(record[name], str) == (name in HEX_FIELDS) for name in list(record)[5:])
    assert parse_event(line) == event


def test_names_are_quoted_and_an_error_code_may_be_missing() -> None:
    event = ExceptionDelivery(1, 2, 'a "name"\n', 0, vector=3, error=-1, rip=0x10, cpl=0, software=1)
    assert parse_event(format_event(event)) == event


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "[]",
        '{"seq":0}',
        '{"seq":0,"time":0,"vm":"a","cpu":0,"kind":"no-such-kind"}',
        '{"seq":0,"time":0,"vm":"a","cpu":0,"kind":"evict","gfn":"0x1"}',
        '{"seq":0,"time":0,"vm":"a","cpu":0,"kind":"evict","gfn":1,"mfn":"0x1"}',
    ],
)
def test_what_is_no_event(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log"
    good = format_event(ShadowFill(0, 0, "vm0", 0, 1, 2, 3, 4))
    path.write_text(good + line + "\n")
    with pytest.raises(BadInput, match=r"log:2: not a line of an event log"):
        list(read_events(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        list(read_events(tmp_path / "log"))


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_the_log_of_a_run_is_complete_and_repeats_to_the_byte(tmp_path: Path, mmu: str) -> None:
    logs = []
    for _ in range(2):
        lines: list[bytes] = []
        vm = boot_vm("hello", mmu=mmu)
        writer = EventWriter(lines.append)
        vm.events.listen(writer)
        run_vm(vm)
        vm.events.unlisten(writer)
        logs.append(b"".join(lines))
    assert logs[0] == logs[1]
    path = tmp_path / "log"
    path.write_bytes(logs[0])
    events = list(read_events(path))
    assert [event.sequence for event in events] == list(range(sum(vm.events.counts().values())))
    assert all(earlier.time <= later.time for earlier, later in zip(events, events[1:], strict=False))
