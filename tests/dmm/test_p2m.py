from __future__ import annotations

from itertools import product

import pytest

from emu.addr import NO_FRAME
from emu.dmm.p2m import ACCESSED, ALL_RIGHTS, DIRTY, LEGAL, NO_MEMORY, P2M, RESIDENT, Intent, PageType, marks_of

PATHS = {
    PageType.HOLE: [],
    PageType.MMIO: [PageType.MMIO],
    PageType.EMPTY: [],
    PageType.IMAGE: [PageType.IMAGE],
    PageType.RAM: [PageType.RAM],
    PageType.EVICTED: [PageType.RAM, PageType.EVICTED],
    PageType.SHARED: [PageType.RAM, PageType.SHARED],
}
"""How to get from a new page to one of each type."""


def put(p2m: P2M, gfn: int, kind: PageType) -> None:
    p2m.set(gfn, kind, *((9, Intent.READ) if kind in RESIDENT else ()))


def test_every_page_is_empty_at_first() -> None:
    p2m = P2M(3)
    assert len(p2m) == 3
    for gfn in range(3):
        assert (p2m.type(gfn), p2m.mfn(gfn), p2m.rights(gfn)) == (PageType.EMPTY, NO_FRAME, Intent(0))


@pytest.mark.parametrize(("before", "after"), list(product(PageType, PageType)))
def test_transitions(before: PageType, after: PageType) -> None:
    p2m = P2M(2, [] if before in NO_MEMORY else None)
    for step in PATHS[before]:
        put(p2m, 1, step)
    assert p2m.type(1) == before
    if after in LEGAL[before]:
        put(p2m, 1, after)
        assert p2m.type(1) == after
    else:
        with pytest.raises(ValueError, match=f"{before.name} cannot become {after.name}"):
            put(p2m, 1, after)
        assert p2m.type(1) == before
    assert p2m.type(0) == (PageType.HOLE if before in NO_MEMORY else PageType.EMPTY)


@pytest.mark.parametrize("bits", range(8))
def test_frame_and_rights_are_read_back(bits: int) -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 0xFF_FFFF_FFFF, Intent(bits))
    assert (p2m.mfn(0), p2m.rights(0)) == (0xFF_FFFF_FFFF, Intent(bits))


def test_frame_0_is_a_frame() -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 0, Intent.READ)
    assert p2m.mfn(0) == 0


def test_a_page_that_leaves_ram_has_neither_frame_nor_rights() -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 5, ALL_RIGHTS)
    p2m.set(0, PageType.EVICTED)
    assert (p2m.mfn(0), p2m.rights(0), int(p2m.entries[0])) == (NO_FRAME, Intent(0), PageType.EVICTED << 4)


def test_the_native_plane_sees_the_documented_format() -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 0x123, Intent.READ | Intent.EXECUTE)
    assert int(p2m.entries[0]) == 0x123 << 12 | 2 << 4 | 1 | 4


@pytest.mark.parametrize(
    ("kind", "mfn", "rights"),
    [
        (PageType.RAM, NO_FRAME, ALL_RIGHTS),
        (PageType.IMAGE, 3, Intent(0)),
        (PageType.IMAGE, NO_FRAME, Intent.READ),
    ],
)
def test_frame_and_rights_must_fit_the_type(kind: PageType, mfn: int, rights: Intent) -> None:
    p2m = P2M(1)
    with pytest.raises(ValueError, match="with mfn"):
        p2m.set(0, kind, mfn, rights)
    assert p2m.type(0) == PageType.EMPTY


# --- marks ---


@pytest.mark.parametrize("origin", [PageType.EMPTY, PageType.IMAGE, PageType.EVICTED])
@pytest.mark.parametrize("bits", [0, ACCESSED, DIRTY, ACCESSED | DIRTY])
def test_marks_are_read_back(origin: PageType, bits: int) -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 5, ALL_RIGHTS, marks_of(origin))
    assert not p2m.accessed(0) and not p2m.dirty(0)
    p2m.mark(0, bits)
    assert (p2m.origin(0), p2m.accessed(0), p2m.dirty(0)) == (origin, bits & ACCESSED != 0, bits & DIRTY != 0)
    assert (p2m.type(0), p2m.mfn(0), p2m.rights(0)) == (PageType.RAM, 5, ALL_RIGHTS)
    p2m.set(0, PageType.SHARED, 6, Intent.READ, p2m.marks(0))
    assert (p2m.origin(0), p2m.accessed(0), p2m.dirty(0)) == (origin, bits & ACCESSED != 0, bits & DIRTY != 0)


def test_marks_go_with_the_frame() -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 5, ALL_RIGHTS, ACCESSED | DIRTY)
    p2m.set(0, PageType.EVICTED)
    assert (p2m.accessed(0), p2m.dirty(0), int(p2m.entries[0])) == (False, False, PageType.EVICTED << 4)
    with pytest.raises(ValueError, match="marks"):
        p2m.set(0, PageType.EMPTY, marks=ACCESSED)


def test_a_shared_page_is_never_writable() -> None:
    p2m = P2M(1)
    p2m.set(0, PageType.RAM, 5, ALL_RIGHTS)
    with pytest.raises(ValueError, match="writable"):
        p2m.set(0, PageType.SHARED, 5, Intent.WRITE)
    assert p2m.type(0) is PageType.RAM


def test_resident_pages_in_ascending_order() -> None:
    p2m = P2M(10, [range(1, 3), range(6, 8)])
    p2m.set(7, PageType.RAM, 5, ALL_RIGHTS)
    p2m.set(6, PageType.RAM, 4, ALL_RIGHTS)
    p2m.set(6, PageType.SHARED, 4, Intent.READ)
    p2m.set(1, PageType.IMAGE)
    p2m.set(9, PageType.MMIO)
    assert p2m.resident().tolist() == [6, 7]
    assert p2m.known().tolist() == [1, 2, 6, 7, 9]
