"""Guest memory from outside the guest, and the holes in it."""

from __future__ import annotations

from emu.addr import PAGE_SIZE
from tests.dmm.bench import GFNS, Bench
from tests.dmm.stub import ALIASES, DATA, HLT


def test_reading_and_writing_from_outside_crosses_pages_and_holes(bench: Bench) -> None:
    end = GFNS * PAGE_SIZE
    bench.vm.memory.write(end - 3, b"abcdef")
    assert bench.vm.memory.read(end - 4, 8) == b"\0abc\xff\xff\xff\xff"
    bench.vm.memory.write(DATA * PAGE_SIZE + 4090, b"0123456789")
    assert bench.vm.memory.read(DATA * PAGE_SIZE + 4089, 12) == b"\x000123456789\0"
    assert bench.vm.memory.read(DATA * PAGE_SIZE, 0) == b""


def test_writing_from_outside_into_code_and_tables_counts_at_once(bench: Bench) -> None:
    code = (DATA + 2) * PAGE_SIZE
    bench.vm.memory.write(code, bytes([HLT, HLT]))
    bench.stub.execute(code)
    bench.vm.memory.write(code, b"\x90")
    bench.stub.execute(code)
    assert bench.vm.cpu.rip == code + 2
    for gfn, value in ((DATA, 1), (DATA + 1, 2)):
        bench.stub.store(gfn * PAGE_SIZE, value)
        bench.vm.memory.write(bench.stub.entry_gpa(ALIASES), bench.stub.leaf(gfn).to_bytes(8, "little"))
        bench.stub.reload()
        assert bench.stub.load(ALIASES * PAGE_SIZE) == value


def test_a_hole_reads_as_ones_whatever_is_stored_into_it(bench: Bench) -> None:
    page = ALIASES * PAGE_SIZE
    bench.stub.map(ALIASES, GFNS + 3)
    assert bench.stub.load(page + 4) == 0xFF
    bench.stub.store(page + 4, 1)
    bench.stub.store4(page + 8, 0)
    assert bench.stub.load(page + 4) == 0xFF and bench.stub.load4(page + 8) == 0xFFFF_FFFF
    assert (bench.machine.memory.pages[bench.machine.memory.void_mfn] == 0xFF).all()


def test_a_store_into_a_table_that_holds_code(bench: Bench) -> None:
    """The write trap drops the frame's code, which flushes the TLB under the store that is going on."""
    table = bench.stub.tables[-1]
    bench.stub.store(DATA * PAGE_SIZE, 9)
    bench.stub.store(table * PAGE_SIZE + 4000, HLT)
    bench.stub.execute(table * PAGE_SIZE + 4000)
    bench.stub.map(ALIASES, DATA)
    assert bench.stub.load(ALIASES * PAGE_SIZE) == 9
