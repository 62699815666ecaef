"""Demand paging: what a touch brings in."""

from __future__ import annotations

import pytest

from emu.addr import PAGE_SIZE
from emu.boot.image import GuestImage
from emu.dmm.dmm import DMM
from emu.dmm.p2m import PageType
from emu.dmm.physical import PhysicalMemory
from emu.dmm.policies.demand import DemandPaging
from emu.machine.machine import Machine

IMAGE_GFNS = [8, 9, 10, 11, 13, 14]  # 12 is not part of it


def image() -> GuestImage:
    image = GuestImage()
    for gfn in IMAGE_GFNS:
        image.add(gfn * PAGE_SIZE, bytes([gfn]) * PAGE_SIZE)
    return image


def dmm(readahead: int, pool: int = 16) -> DMM:
    machine = Machine(64 * PAGE_SIZE)
    vm = machine.create_vm("vm", 32 * PAGE_SIZE, pool * PAGE_SIZE, "nested")
    for gfn in IMAGE_GFNS:
        vm.p2m.set(gfn, PageType.IMAGE)
    vm.attach(DemandPaging(image(), readahead))
    return vm.dmm


def resident(dmm: DMM) -> list[int]:
    gfns: list[int] = dmm.p2m.resident().tolist()
    return gfns


@pytest.mark.parametrize(
    ("readahead", "touched", "expected"),
    [
        (0, 8, [8]),
        (2, 8, [8, 9, 10]),
        (9, 8, [8, 9, 10, 11]),  # no further than the image goes without a gap
        (9, 13, [13, 14]),
        (2, 14, [14]),
        (2, 3, [3]),  # no page of the image
    ],
)
def test_pages_behind_a_page_of_the_image_come_with_it(readahead: int, touched: int, expected: list[int]) -> None:
    mapping = dmm(readahead)
    mapping.populate(touched)
    assert resident(mapping) == expected
    for gfn in expected:
        assert PhysicalMemory(mapping).read(gfn * PAGE_SIZE, PAGE_SIZE) == image().page(gfn)


def test_reading_ahead_takes_spare_frames_only() -> None:
    mapping = dmm(readahead=3, pool=6)
    for gfn in (0, 1, 2, 3):
        mapping.populate(gfn)
    mapping.populate(8)
    assert resident(mapping) == [0, 1, 2, 3, 8, 9] and mapping.pool.spare == 0


def test_what_is_resident_or_was_evicted_stays_as_it_is() -> None:
    mapping = dmm(readahead=3)
    PhysicalMemory(mapping).write(9 * PAGE_SIZE, b"changed")
    assert resident(mapping) == [9, 10, 11]
    mapping.populate(8)
    assert resident(mapping) == [8, 9, 10, 11]
    assert PhysicalMemory(mapping).read(9 * PAGE_SIZE, 7) == b"changed"
