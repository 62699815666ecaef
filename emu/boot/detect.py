"""What a guest is: a name from ``firmware/``, or a file whose kind is read from its first bytes, or told."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from emu.boot.kinds import DISK_KINDS, HEAD_SIZE, Head, Kind, kind_called, recognise
from emu.errors import BadInput


@dataclass(frozen=True)
class Found:
    """A guest whose kind is known.

    Attributes:
        name: for people.
        kind: how it is started.
        path: its file.
        ram: bytes of RAM that it runs well with; None when nothing is known about that.
    """

    name: str
    kind: Kind
    path: Path
    ram: int | None = None


def detect(guest: str | Path, load: int | None = None, kind: str | None = None, for_bios: bool = False) -> Found:
    """Find out what ``guest`` is.

    A name from ``firmware/`` goes before a file of the same name; write ``./hello`` for the file.

    Args:
        load: where a flat binary shall lie; with it, any file but an assembler source is one.
        kind: one of :data:`emu.boot.kinds.WORDS`: ``guest`` is a file, and of this kind whatever it looks like.
        for_bios: a BIOS of the user's will boot the file, which is a disk image then unless it is another medium.

    Raises:
        BadInput: there is no such guest or kind, the file cannot be read, or it is of no kind that emu knows.
    """
    from emu.boot import firmware

    text = str(guest)
    known = firmware.guests().get(text) if isinstance(guest, str) and kind is None else None
    if known is not None:
        return Found(text, Kind.FIRMWARE, known.source, known.ram_bytes)
    told = None if kind is None else kind_called(kind)
    path = Path(guest)
    head = _read_head(text, path)
    if not head.size:
        raise BadInput(text, "the file is empty")
    if told is not None:
        return Found(path.stem if told is Kind.SOURCE else path.name, told, path)
    if for_bios:
        medium, _ = recognise(head)
        return Found(path.name, medium if medium in DISK_KINDS else Kind.DISK, path)
    if head.suffix == ".s":
        return Found(path.stem, Kind.SOURCE, path)
    if load is not None:
        return Found(path.name, Kind.FLAT, path)
    found, why = recognise(head)
    if found is None:
        hint = "--as KIND says what it is, --load ADDRESS runs any file as a flat binary"
        raise BadInput(text, f"this is no guest that emu knows ({why}); {hint}")
    return Found(path.name, found, path)


def _read_head(text: str, path: Path) -> Head:
    try:
        if path.is_dir():
            raise BadInput(text, "this is a directory, not a guest")
        if path.exists() and not path.is_file():
            raise BadInput(text, "this is no regular file")
        with path.open("rb") as file:
            return Head(path.suffix, path.stat().st_size, file.read(HEAD_SIZE))
    except FileNotFoundError:
        raise BadInput(text, _not_found(text)) from None
    except (OSError, ValueError) as error:
        raise BadInput(text, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _not_found(text: str) -> str:
    from emu.boot import firmware

    reason = "there is neither a guest of this name nor such a file"
    close = difflib.get_close_matches(text, firmware.guests(), 1)
    return f"{reason}; did you mean {close[0]}?" if close else f"{reason}; `emu guests` lists the names"
