"""Floppy disk images: how they are recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.devices.floppy import (
    DRIVE_360K,
    DRIVE_720K,
    DRIVE_1200K,
    DRIVE_1440K,
    DRIVE_2880K,
    FloppyDisk,
    has_floppy_size,
)
from emu.errors import BadInput
from tests.boot.bios_disks import sparse

KIB = 1024


@pytest.mark.parametrize(
    ("size", "geometry", "drive"),
    [
        (160, (40, 1, 8), DRIVE_360K), (180, (40, 1, 9), DRIVE_360K), (320, (40, 2, 8), DRIVE_360K),
        (360, (40, 2, 9), DRIVE_360K), (640, (80, 2, 8), DRIVE_720K), (720, (80, 2, 9), DRIVE_720K),
        (1200, (80, 2, 15), DRIVE_1200K), (1440, (80, 2, 18), DRIVE_1440K), (1680, (80, 2, 21), DRIVE_1440K),
        (1722, (82, 2, 21), DRIVE_1440K), (2880, (80, 2, 36), DRIVE_2880K),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, size: int, geometry: tuple[int, int, int], drive: int) -> None:
    disk = FloppyDisk(sparse(tmp_path / "disk", size * KIB, {}))
    assert disk.format[:3] == geometry and disk.format.drive == drive
    assert has_floppy_size(size * KIB) and not has_floppy_size(size * KIB + 1)
    cylinders, heads, sectors = geometry
    assert disk.lba(0, 0, 1) == 0
    assert disk.lba(cylinders - 1, heads - 1, sectors) == size * 2 - 1
    for nowhere in ((cylinders, 0, 1), (0, heads, 1), (0, 0, 0), (0, 0, sectors + 1)):
        assert disk.lba(*nowhere) is None


def test_a_short_image_ends_with_zeros(tmp_path: Path) -> None:
    disk = FloppyDisk(sparse(tmp_path / "short", 1000, {0: b"\1" * 1000}))
    assert disk.format.size == 2880
    assert disk.disk.read(1, 2) == b"\1" * 488 + bytes(24 + 512)
    disk.disk.write(2879, b"\2" * 512)
    assert disk.disk.read(2878, 2) == bytes(512) + b"\2" * 512
    assert FloppyDisk(sparse(tmp_path / "long", 1500 * KIB, {})).format.size == 5760


def test_what_is_no_floppy_disk(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"4096K is too large for a floppy disk \(2880K\)"):
        FloppyDisk(sparse(tmp_path / "large", 4096 * KIB, {}))
    with pytest.raises(BadInput, match="empty"):
        FloppyDisk(sparse(tmp_path / "empty", 0, {}))
