"""Disk images: what becomes of writes, geometry as BIOSes see it, and files that are no images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.disk import SECTOR, Disk, DiskFailed, Geometry
from emu.errors import BadInput

MIB = 1 << 20


def sector(number: int) -> bytes:
    return number.to_bytes(4, "little") * (SECTOR // 4)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(sector(n) for n in range(100)))
    return path


def sparse(path: Path, size: int, mbr: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(mbr)
        file.truncate(size)
    return path


def mbr(end_head: int, end_sector: int, slot: int = 0, length: int = 2048) -> bytes:
    """A partition table with one partition that ends at the given head and sector."""
    entry = bytes([0x80, 1, 1, 0, 0x83, end_head, end_sector, 0]) + (63).to_bytes(4, "little")
    entry += length.to_bytes(4, "little")
    table = b"".join(entry if n == slot else bytes(16) for n in range(4))
    return bytes(446) + table + b"\x55\xaa"


def test_reads_sectors(image: Path) -> None:
    disk = Disk(image)
    assert disk.sectors == 100
    assert disk.read(0, 1) == sector(0)
    assert disk.read(98, 2) == sector(98) + sector(99)
    assert disk.read(5, 0) == b""


def test_writes_are_seen_and_the_file_stays(image: Path) -> None:
    before = image.read_bytes()
    disk = Disk(image)
    disk.write(7, sector(1007) + sector(1008))
    disk.flush()
    disk.close()
    disk = Disk(image)
    disk.write(99, sector(1099))
    assert disk.read(98, 2) == sector(98) + sector(1099)
    assert disk.read(7, 1) == sector(7), "the first overlay is gone"
    assert image.read_bytes() == before


def test_a_read_only_file_is_enough(image: Path) -> None:
    image.chmod(0o400)
    disk = Disk(image)
    disk.write(0, sector(5))
    assert disk.read(0, 1) == sector(5)


def test_writable_images_are_written(image: Path) -> None:
    disk = Disk(image, writable=True)
    disk.write(7, sector(1007))
    disk.flush()
    assert disk.read(6, 2) == sector(6) + sector(1007)
    disk.close()
    assert Disk(image).read(7, 1) == sector(1007)


def test_the_last_sector_is_filled_up(image: Path) -> None:
    with image.open("ab") as file:
        file.write(b"tail")
    disk = Disk(image)
    assert disk.sectors == 101
    assert disk.read(100, 1) == b"tail".ljust(SECTOR, b"\0")
    disk.write(100, sector(1))
    assert disk.read(99, 2) == sector(99) + sector(1)


def test_sectors_that_do_not_exist(image: Path) -> None:
    disk = Disk(image)
    for lba, count in ((100, 1), (99, 2), (-1, 1), (1 << 48, 1)):
        with pytest.raises(IndexError):
            disk.read(lba, count)
        with pytest.raises(IndexError):
            disk.write(lba, bytes(count * SECTOR))
    with pytest.raises(ValueError, match="whole sectors"):
        disk.write(0, b"x")
    assert disk.read(0, 100) == image.read_bytes()


def test_a_file_cut_while_the_guest_runs_reads_as_zeros(image: Path) -> None:
    disk = Disk(image)
    os.truncate(image, 10 * SECTOR)
    assert disk.read(9, 2) == sector(9) + bytes(SECTOR)


def test_failures_of_the_host_are_told(image: Path) -> None:
    disk = Disk(image, writable=True)
    os.close(disk._fd)
    for operation in (lambda: disk.read(0, 1), lambda: disk.write(0, sector(0)), disk.flush):
        with pytest.raises(DiskFailed, match="disk.img: Bad file descriptor"):
            operation()


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "a directory"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / "empty", "empty"),
        (tmp_path / "pipe", "neither a file nor a block device"),
        ("nul\0byte", "null"),
    ):
        with pytest.raises(BadInput, match=reason):
            Disk(path)
    with pytest.raises(BadInput, match="empty"):
        Disk.from_bytes(b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_files(image: Path) -> None:
    image.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        Disk(image)


def test_from_bytes() -> None:
    disk = Disk.from_bytes(sector(3) + b"x", "test")
    assert (disk.sectors, disk.name) == (2, "test")
    disk.write(1, sector(4))
    assert disk.read(0, 2) == sector(3) + sector(4)


@pytest.mark.parametrize(
    ("size", "drive", "bios"),
    [
        (MIB, (2, 16, 63), (2, 16, 63)),
        (10 * MIB, (20, 16, 63), (20, 16, 63)),
        (504 * MIB, (1024, 16, 63), (1024, 16, 63)),
        (600 * MIB, (1219, 16, 63), (609, 32, 63)),
        (3000 * MIB, (6095, 16, 63), (761, 128, 63)),
        (8192 * MIB, (16383, 16, 63), (1024, 255, 63)),
        (100_000 * MIB, (16383, 16, 63), (1024, 255, 63)),
    ],
)
def test_geometry_by_size(tmp_path: Path, size: int, drive: tuple[int, ...], bios: tuple[int, ...]) -> None:
    disk = Disk(sparse(tmp_path / "disk", size))
    assert (tuple(disk.geometry), tuple(disk.bios_geometry)) == (drive, bios)


def test_geometry_by_partition_table(tmp_path: Path) -> None:
    small = Disk(sparse(tmp_path / "small", 20 * MIB, mbr(3, 17, slot=2)))
    assert small.geometry == small.bios_geometry == Geometry(602, 4, 17)
    large = Disk(sparse(tmp_path / "large", 64 * MIB, mbr(254, 63 | 0xC0)))
    assert large.geometry == Geometry(130, 16, 63), "no drive has 255 heads"
    assert large.bios_geometry == Geometry(8, 255, 63)
    protective = Disk(sparse(tmp_path / "gpt", 20 * MIB, mbr(0xFF, 0xFF)))
    assert protective.bios_geometry == Geometry(2, 256, 63)
    for useless in (mbr(0, 63), mbr(15, 0), mbr(15, 63, length=0), mbr(15, 63)[:-1]):
        assert Disk(sparse(tmp_path / "none", 20 * MIB, useless)).geometry == Geometry(40, 16, 63)


def test_state_survives_json(image: Path) -> None:
    disk, other = Disk(image), Disk(image)
    disk.write(3, sector(30) + sector(40))
    other.write(50, sector(1))
    other.load_state(json.loads(json.dumps(disk.state())))
    disk.write(60, sector(60))
    assert other.read(0, 100) == Disk(image).read(0, 3) + sector(30) + sector(40) + disk.read(5, 95)
    with pytest.raises(BadInput):
        disk.load_state({})


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40 * SECTOR),
    st.lists(st.tuples(st.integers(0, 39), st.integers(1, 20), st.integers(0, 1 << 32)), max_size=8),
)
def test_overlay_behaves_as_memory(size: int, writes: list[tuple[int, int, int]]) -> None:
    data = bytes(n * 37 & 0xFF for n in range(size))
    disk = Disk.from_bytes(data)
    model = bytearray(data.ljust(disk.sectors * SECTOR, b"\0"))
    for lba, count, value in writes:
        lba %= disk.sectors
        count = min(count, disk.sectors - lba)
        written = b"".join(sector(value + n & 0xFFFF_FFFF) for n in range(count))
        disk.write(lba, written)
        model[lba * SECTOR : (lba + count) * SECTOR] = written
        assert disk.read(lba // 2, disk.sectors - lba // 2) == model[lba // 2 * SECTOR :]
    assert disk.read(0, disk.sectors) == model
    disk.close()


def test_a_partition_table_that_cannot_be_read_is_none(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(image)

    def refuse(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    assert disk.geometry.heads == disk.bios_geometry.heads == 16
