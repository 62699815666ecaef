"""The guests that come with emu: firmware/guests.toml as data, and their images.

A checkout has them in firmware/, an installed package in emu/_firmware/.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from emu.asm.assembler import LOAD_GPA, Image, assemble_image
from emu.errors import BadInput

_PACKAGE = Path(__file__).parents[1]
_PLACES = (_PACKAGE / "_firmware", _PACKAGE.parent / "firmware")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Parameter:
    """A number that a guest takes from its command line: its default, and what it means."""

    default: int
    meaning: str


@dataclass(frozen=True)
class Guest:
    """One guest of firmware/guests.toml.

    Attributes:
        name: what ``emu run`` calls it.
        source: its assembler source.
        summary: one line about it.
        load: the gpa that its image is loaded at and entered at, in real mode.
        ram_bytes: RAM that it runs well with.
        exit_value: what it writes to the exit port when all is well; None when it ends with a triple fault.
        parameters: what its command line may set, by name.
    """

    name: str
    source: Path
    summary: str
    load: int = LOAD_GPA
    ram_bytes: int = 16 << 20
    exit_value: int | None = 0
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@cache
def firmware_directory() -> Path:
    """The directory of the guests. Raises BadInput when this installation has none."""
    for place in _PLACES:
        if (place / "guests.toml").is_file():
            return place
    raise BadInput("firmware", "this installation of emu has no guests")


@cache
def guests() -> dict[str, Guest]:
    """All guests by name, in the order of the table."""
    directory = firmware_directory()
    table = tomllib.loads((directory / "guests.toml").read_text(encoding="utf-8"))
    return {name: _guest(directory, name, entry) for name, entry in table.items()}


def load(name: str, defines: Mapping[str, int] | None = None) -> Image:
    """Assemble a guest.

    Args:
        name: a name of guests().
        defines: constants for its source, before the first line.
    Raises:
        BadInput: no such guest.
        AssemblyError: a source that does not assemble.
    """
    found = guests().get(name)
    if found is None:
        raise BadInput(name, f"no such guest; there are {', '.join(guests())}")
    return assemble_image(found.source, defines, found.load)


def _guest(directory: Path, name: str, entry: Mapping[str, object]) -> Guest:
    """One entry of the table. It is part of the package, so a wrong one is an ordinary exception."""
    known = {"file", "summary", "load", "ram", "exit", "parameters"}
    if not known.issuperset(entry):
        raise ValueError(f"guests.toml: {name}: unknown keys {sorted(set(entry) - known)}")
    parameters = entry.get("parameters", {})
    end = entry.get("exit", 0)
    assert isinstance(parameters, dict)
    return Guest(
        name=name,
        source=directory / str(entry["file"]),
        summary=str(entry["summary"]),
        load=int(str(entry.get("load", LOAD_GPA))),
        ram_bytes=_size(str(entry.get("ram", "16M"))),
        exit_value=None if end == "crash" else int(str(end)),
        parameters={key: Parameter(**value) for key, value in parameters.items()},
    )


def _size(text: str) -> int:
    """Bytes of a size such as 16M."""
    return int(text[:-1]) * _UNITS[text[-1]]
