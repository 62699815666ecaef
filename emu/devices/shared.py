"""State that a device shares with the native plane, so that an access to a hot register needs no Python.

Such a device keeps what the native plane needs in a record and uses the very same record itself: there is one truth.
The device decides; the native plane only does what is the same every time, and leaves the rest to the device. It finds
the record by the address that is accessed (the bus has a table).

A record begins with the fields of :class:`Head`, whose kind says what the native plane knows of the device.
Any device may be a :class:`Plain` one.
"""

from __future__ import annotations

import ctypes
from typing import TypeVar

_Record = TypeVar("_Record", bound="type[Shared]")

# kind of a record: what the native plane knows of the device
PLAIN, LOCAL_APIC, HPET, PM_TIMER, PIC, UART, CONSOLE, PIT, SYSTEM_CONTROL = range(9)
ASK = -1  # the device has to answer, or to act
NONE = -1 << 63  # in a field that may have no value, see :class:`Maybe`


class Shared(ctypes.Structure):
    """A record, zeroed when made, at an address that does not change."""

    __hash__ = object.__hash__

    @property
    def shared_at(self) -> int:
        """Host address of the record."""
        return ctypes.addressof(self)


def record(structure: _Record) -> _Record:
    """Class decorator: each annotation is a field, an int64, behind those of the base class."""
    structure._fields_ = [(name, ctypes.c_int64) for name in structure.__annotations__]
    return structure


def field_names(structure: type[Shared]) -> list[str]:
    """The names of a record's fields in their order."""
    return [name for base in reversed(structure.__mro__) for name, _ in base.__dict__.get("_fields_", ())]


class Maybe:
    """An attribute that is None where a field of the record is NONE, else the same number."""

    def __init__(self, field: str) -> None:
        self._field = field

    def __get__(self, owner: Shared, of: type) -> int | None:
        value: int = getattr(owner, self._field)
        return None if value == NONE else value

    def __set__(self, owner: Shared, value: int | None) -> None:
        setattr(owner, self._field, NONE if value is None else value)


@record
class Head(Shared):
    """What the record of a device on a bus begins with."""

    kind: int
    first: int  # address, a port or gpa
    length: int  # number of addresses
    reads_at: int  # of a :class:`Plain` device: host addresses of its ``reads``
    writes_at: int  # and ``writes``


class Plain(Head):
    """Base of a device with byte-wide registers that tells the native plane which accesses have no effect.

    The device brings this up to date at the end of each access, and whenever else it changes.

    Attributes:
        reads: for each register what it reads as, as long as reading it changes nothing; else ASK.
        writes: for each register the value that changes nothing when it is written; ASK when each may.
    """

    def __init__(self, registers: int) -> None:
        super().__init__()
        self.reads = (ctypes.c_int64 * registers)(*[ASK] * registers)
        self.writes = (ctypes.c_int64 * registers)(*[ASK] * registers)
        self.reads_at, self.writes_at = ctypes.addressof(self.reads), ctypes.addressof(self.writes)
