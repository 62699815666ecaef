"""What Keystone made of a program, kept in the user's cache: assembling the same text again costs nothing.

A file for each program, named by the digest of its text; it begins with the digest of what follows, so that damage is
seen.  Where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

_KEPT = 256  # programs; the least recently used one goes
_LARGEST = 64 << 20  # bytes of a file that is read


def key_of(statements: Sequence[str], load: int) -> str:
    """The name of a program: its plain statements, and the gpa of the first one."""
    digest = hashlib.sha256(f"{version('keystone-engine')} {load} ".encode())
    digest.update("\n".join(statements).encode())
    return digest.hexdigest()


def find(key: str) -> bytes | None:
    """What was kept under a name."""
    path = _directory() / key
    try:
        if path.stat().st_size > _LARGEST:
            return None
        kept = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    output = kept[32:]
    return output if hashlib.sha256(output).digest() == kept[:32] else None


def keep(key: str, output: bytes) -> None:
    """Keep what was made, whole or not at all."""
    directory = _directory()
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=directory, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(output).digest() + output)
            os.replace(name, directory / key)
        except BaseException:
            os.unlink(name)
            raise
        _forget_old(directory)


def _forget_old(directory: Path) -> None:
    def age(entry: os.DirEntry[str]) -> int:
        with suppress(OSError):  # another run has removed it
            return entry.stat().st_mtime_ns
        return 0

    entries = list(os.scandir(directory))
    for entry in sorted(entries, key=age)[: max(len(entries) - _KEPT, 0)]:
        with suppress(OSError):
            os.unlink(entry)


def _directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emu-assembled"
