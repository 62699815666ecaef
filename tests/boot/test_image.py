"""Guest images: pieces at gpas, read page by page."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.boot.image import BytesSource, FileSource, GuestImage, ImageChanged


def test_pieces_may_cross_pages_and_the_rest_is_zero() -> None:
    image = GuestImage()
    image.add(0x1FFE, b"abcd")
    assert list(image.gfns()) == [1, 2]
    assert image.page(1) == bytes(4094) + b"ab"
    assert image.page(2) == b"cd" + bytes(4094)
    assert image.page(7) == bytes(4096)
    assert image.end == 0x2002


def test_the_later_piece_counts() -> None:
    image = GuestImage()
    image.add(0, b"aaaa")
    image.add(1, b"b")
    assert image.page(0)[:4] == b"abaa"
    assert list(image.gfns()) == [0]


def test_an_empty_piece_is_nothing() -> None:
    image = GuestImage()
    image.add(0x1000, b"")
    assert list(image.gfns()) == []
    assert image.end == 0


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    source = FileSource(path, 2, 6)
    assert len(source) == 6
    assert source.read(0, 6) == b"234567"
    assert source.read(4, 100) == b"67"


def test_a_file_that_shrinks_while_the_guest_runs(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    source = FileSource(path, 0, 10)
    path.write_bytes(b"0123")
    with pytest.raises(ImageChanged, match="shorter"):
        source.read(0, 10)


def test_bytes() -> None:
    source = BytesSource(b"0123")
    assert (len(source), source.read(1, 2), source.read(3, 9)) == (4, b"12", b"3")
