"""Kinds of events: a class is all that there is to one."""

from __future__ import annotations

import dataclasses
from typing import get_type_hints

import pytest

from emu.engine import events
from emu.engine.eventkind import MOST_FIELDS, MOST_KINDS, Event, defined, event
from emu.engine.events import BY_NAME, EVENT_TYPES, DmmFault


def test_each_class_is_a_kind_numbered_in_order() -> None:
    written = [value for value in vars(events).values() if isinstance(value, type) and value is not Event]
    assert list(EVENT_TYPES) == written
    assert [kind.KIND for kind in EVENT_TYPES] == list(range(len(EVENT_TYPES)))
    assert len(EVENT_TYPES) <= MOST_KINDS


def test_names_are_unique_and_lead_to_the_kind() -> None:
    assert BY_NAME == {kind.NAME: kind for kind in EVENT_TYPES}
    assert len(BY_NAME) == len(EVENT_TYPES)


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.NAME)
def test_a_kind_has_what_a_record_holds_and_a_sentence(kind: type[Event]) -> None:
    common = [field.name for field in dataclasses.fields(Event)]
    assert [field.name for field in dataclasses.fields(kind)] == [*common, *kind.FIELDS]
    assert 1 <= len(kind.FIELDS) <= MOST_FIELDS
    hints = get_type_hints(kind)
    assert {hints[name] for name in kind.FIELDS} == {int}
    assert kind.__doc__ and all(name in kind.__doc__.split("Attributes:")[1] for name in kind.FIELDS)
    assert kind(0, 0, "vm0", 0, *[1] * len(kind.FIELDS)).sentence()


def test_events_are_values() -> None:
    fault = DmmFault(0, 1, "vm0", 0, 2, 4, 1, 3)
    assert fault == DmmFault(0, 1, "vm0", 0, 2, 4, 1, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fault.gfn = 5  # type: ignore[misc]


def test_what_is_no_kind_is_refused() -> None:
    class Again(Event):
        gfn: int

    class Large(Event):
        a: int
        b: int
        c: int
        d: int
        e: int
        f: int

    with pytest.raises(TypeError, match="named page-fault"):
        event("page-fault")(Again)
    with pytest.raises(TypeError, match="more than 5 fields"):
        event("large")(Large)
    assert defined() == EVENT_TYPES
