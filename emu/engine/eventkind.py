"""What an event is, and how a kind of events is defined: as a class with the decorator :func:`event`.

An event is recorded as its kind's number and at most five integers, so that native code can record it.  Native code
takes the number from the class, as a constant of its own module: ``_PAGE_FAULT = PageFault.KIND``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar, dataclass_transform

MOST_FIELDS = 5  # integers in a record
MOST_KINDS = 63  # bits of a mask that native code can test


@dataclass(frozen=True, slots=True)
class Event:
    """What every event carries.

    Attributes:
        KIND: the kind's number: its place in the order of definition.
        NAME: the kind's name, for people and files.
        FIELDS: names of the kind's own fields, in the order of the record.
        sequence: position in the VM's stream, from 0.
        time: virtual time in ns.
        vm: name of the VM.
        cpu: number of the processor on which it happened, or which ran when the DMM made it happen.
    """

    KIND: ClassVar[int]
    NAME: ClassVar[str]
    FIELDS: ClassVar[tuple[str, ...]]

    sequence: int
    time: int
    vm: str
    cpu: int

    def sentence(self) -> str:
        """The event in one English sentence."""
        raise NotImplementedError


_COMMON = len(fields(Event))
_defined: list[type[Event]] = []
_Kind = TypeVar("_Kind", bound=Event)


@dataclass_transform(frozen_default=True)
def event(name: str) -> Callable[[type[_Kind]], type[_Kind]]:
    """Make a subclass of :class:`Event` a kind of events: a frozen dataclass with the next number.

    Its fields are integers, unsigned 64-bit ones except for ``error``, whose -1 means "none".

    Raises:
        TypeError: a kind of this name is there already, or the class has too many fields.
    """

    def define(body: type[_Kind]) -> type[_Kind]:
        kind = dataclass(frozen=True, slots=True)(body)
        kind.KIND, kind.NAME = len(_defined), name
        kind.FIELDS = tuple(field.name for field in fields(kind)[_COMMON:])
        if name in (other.NAME for other in _defined) or kind.KIND >= MOST_KINDS:
            raise TypeError(f"{body.__name__} cannot be one more kind of events named {name}")
        if len(kind.FIELDS) > MOST_FIELDS:
            raise TypeError(f"{body.__name__} has more than {MOST_FIELDS} fields")
        _defined.append(kind)
        return kind

    return define


def defined() -> tuple[type[Event], ...]:
    """All kinds so far, by number."""
    return tuple(_defined)
