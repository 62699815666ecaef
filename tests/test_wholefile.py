"""Whole files: old or new, and nothing between or beside."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from emu.wholefile import WholeFile, write_whole


def test_a_new_file_appears_when_it_is_written(tmp_path: Path) -> None:
    file = WholeFile(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []
    file.write(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("f", b"new")]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~umask


def test_an_old_one_keeps_its_contents_until_then_and_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old contents")
    path.chmod(0o640)
    file = WholeFile(path)
    assert path.read_bytes() == b"old contents"
    file.write(b"new")
    assert path.read_bytes() == b"new" and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            write_whole(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:2]))
    write_whole(tmp_path / "f", b"contents")
    assert (tmp_path / "f").read_bytes() == b"contents"


def test_one_that_is_held_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old contents")
    file = WholeFile(path)
    file.hold()
    before = path.stat().st_ino
    file.write(b"new")
    file.close()
    assert path.read_bytes() == b"new" and path.stat().st_ino == before


def test_links_are_followed_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "f")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "f").read_bytes() == b"new"
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "fifo", b"piped")
    assert os.read(reader, 10) == b"piped" and stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    os.close(reader)


def test_what_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        WholeFile(tmp_path / "no" / "f")
    with pytest.raises(IsADirectoryError):
        WholeFile(tmp_path)
