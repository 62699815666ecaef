"""Placing kernels, modules and tables: where they go, and that nothing lies on anything else."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.boot.loader import BOOT_DATA, Loader, Part, Program, Segment, address_program, split_modules
from emu.errors import BadInput

RAM = 4 << 20
KERNEL = Program((Segment(0x10_0000, 16, 100, 0x2345), Segment(0x8000, 0, 16, 16)), 0x10_0010)


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    path = tmp_path / "kernel"
    path.write_bytes(bytes(range(200)))
    return Loader(path, RAM)


@pytest.mark.parametrize(
    ("option", "modules"),
    [("a", ["a"]), ("a b c", ["a b c"]), ("a b,c", ["a b", "c"]), ("a,,b,c", ["a,b", "c"]), ("a,,,b", ["a,", "b"])],
)
def test_modules_of_an_option(option: str, modules: list[str]) -> None:
    assert split_modules(option) == modules


def test_a_part_of_a_source(loader: Loader) -> None:
    part = Part(loader.file, 10, 5)
    assert (len(part), part.read(0, 100), part.read(3, 1)) == (5, bytes(range(10, 15)), b"\x0d")


def test_kernel_modules_and_tables(loader: Loader, tmp_path: Path) -> None:
    loader.load(KERNEL)
    assert loader.image.page(0x100)[:102] == bytes(range(16, 116)) + b"\0\0"
    assert loader.image.page(8)[:16] == bytes(range(16))
    module = tmp_path / "module"
    module.write_bytes(bytes(4097))
    first, second = loader.load_modules([f"{module} a b", str(module)])
    assert (first.gpa, first.size, first.text) == (0x10_3000, 4097, "module a b")
    assert (second.gpa, loader.top) == (0x10_5000, 0x10_7000)
    assert loader.place(b"abc") == BOOT_DATA
    assert loader.place(b"def") == BOOT_DATA + 4
    assert loader.place(bytes(0x9_8000), 8) == 0x10_7000, "too large for low memory"


def test_a_moved_program() -> None:
    moved = KERNEL.moved(0x1000)
    assert (moved.gpa, moved.end, moved.entry) == (0x9000, 0x10_3345, 0x10_1010)
    assert [segment.offset for segment in moved.segments] == [16, 0]


def test_memory_of_a_large_machine(loader: Loader, tmp_path: Path) -> None:
    """3 GiB lie below the hole; what is above 4 GiB is of no use to a 32-bit kernel."""
    large = Loader(tmp_path / "kernel", 8 << 30)
    assert (large.lower, large.upper) == (639, (3 << 20) - 1024)
    assert large.room(4096, 4096, 0xBFFF_F000) == 0xBFFF_F000
    assert large.room(4097, 1, 0xBFFF_F000) is None
    assert (loader.lower, loader.upper) == (639, 3 << 10)


@given(sizes=st.lists(st.tuples(st.integers(1, 0x4_0000), st.sampled_from([1, 4, 8, 4096])), max_size=40))
def test_nothing_overlaps(tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]) -> None:
    path = tmp_path_factory.getbasetemp() / "kernel"
    path.write_bytes(bytes(200))
    loader = Loader(path, RAM)
    loader.load(KERNEL)
    taken = [range(segment.gpa, segment.end) for segment in KERNEL.segments]
    try:
        for size, alignment in sizes:
            gpa = loader.place(bytes(size), alignment)
            assert gpa % alignment == 0
            taken.append(range(gpa, gpa + size))
    except BadInput as error:
        assert error.what == "--ram"
        assert sum(map(len, taken)) > RAM // 2
    taken.sort(key=lambda part: part.start)
    assert all(low.stop <= high.start for low, high in itertools.pairwise(taken))
    assert all(0x1000 <= part.start and (part.stop <= 0x9_FC00 or part.start >= 0x10_0000) for part in taken)
    assert taken[-1].stop <= RAM


def test_addresses_in_a_header() -> None:
    path = Path("kernel")
    program = address_program(path, 64, 1000, (0x10_0040, 0x10_0000, 0, 0x10_1000), 5)
    assert program == Program((Segment(0x10_0000, 0, 1000, 0x1000),), 5)
    program = address_program(path, 64, 1000, (0x10_0010, 0x10_0000, 0x10_0020, 0), 5)
    assert program == Program((Segment(0x10_0000, 48, 32, 32),), 5)
    program = address_program(path, 64, 1000, (0x10_0040, 0xFFFF_FFFF, 0, 0), 5, 0xFFFF_FFFF)
    assert program == Program((Segment(0x10_0000, 0, 1000, 1000),), 5)
