"""An access over the end of a page happens as a whole or not at all."""

from __future__ import annotations

import pytest

from emu.machine.vm import Stop
from tests.mmu.bench import PT, RO, RW, RWX, Bench, pte_of
from tests.mmu.harness import ARCHITECTURES
from tests.oracles.paging_model import PAGE

FIRST, SECOND, CODE = 0x10000, 0x10000 + PAGE, 0x30000
FILL = 0x11 * 0x0101_0101_0101_0101 % 2**64

WRITES = {  # [RDI] begins in the first page and ends in the second; RAX is what is there, RDX something else
    "mov2": ("mov word ptr [rdi], dx", 1),
    "mov4": ("mov dword ptr [rdi], edx", 3),
    "mov8": ("mov qword ptr [rdi], rdx", 5),
    "movq": ("movq qword ptr [rdi], xmm0", 4),
    "add": ("add dword ptr [rdi], edx", 2),
    "locked add": ("lock add dword ptr [rdi], edx", 2),
    "inc": ("inc qword ptr [rdi]", 7),
    "xchg": ("xchg dword ptr [rdi], edx", 1),
    "xadd": ("lock xadd qword ptr [rdi], rdx", 4),
    "cmpxchg": ("cmpxchg qword ptr [rdi], rdx", 3),
    "bts": ("bts dword ptr [rdi], 3", 2),
    "shl": ("shl qword ptr [rdi], 1", 6),
    "stosq": ("mov rax, rdx; stosq", 4),
    "movsq": ("movsq", 4),
    "push": ("lea rsp, [rdi + 8]; push rdx", 4),
    "call": ("lea rsp, [rdi + 8]; call rbx", 4),
    "pop": ("pop qword ptr [rdi]", 4),
}


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def fill(bench: Bench) -> None:
    bench.write(SECOND - 8, FILL.to_bytes(8, "little") * 2)


def attempt(bench: Bench, name: str) -> Stop:
    text, below = WRITES[name]
    bench.put(CODE, f"{text}; hlt")
    bench.put(CODE + 0x100, "hlt")
    address = SECOND - below
    value = FILL >> 1
    return bench.start(CODE, rdi=address, rax=FILL, rdx=value, rsi=CODE, rbx=CODE + 0x100)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("second", [0, RO], ids=["absent", "readonly"])
@pytest.mark.parametrize("first", [RW, RWX, "code"], ids=["data", "executable", "code"])
def test_nothing_is_written_when_the_second_page_faults(bench: Bench, name: str, second: int, first: int | str) -> None:
    fill(bench)
    if first == "code":
        bench.put(FIRST, "hlt")
        bench.call(FIRST)
        first = RWX
    bench.map(FIRST, FIRST, int(first))
    bench.map(SECOND, SECOND, second)
    assert attempt(bench, name) is Stop.CRASH
    assert bench.vm.cpu.cr2 == SECOND
    assert bench.read(SECOND - 8, 8) == FILL
    assert bench.read(SECOND, 8) == FILL


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_written_when_the_first_page_faults(bench: Bench, name: str) -> None:
    fill(bench)
    bench.map(FIRST, FIRST, RO)
    assert attempt(bench, name) is Stop.CRASH
    assert bench.vm.cpu.cr2 == SECOND - WRITES[name][1]
    assert bench.read(SECOND - 8, 8) == bench.read(SECOND, 8) == FILL


@pytest.mark.parametrize("name", WRITES)
def test_the_dmm_is_not_noticed(bench: Bench, name: str) -> None:
    """The same access gives the same memory when either page, or their table, must be brought or unlocked first."""
    results = []
    for away in ((), (FIRST,), (SECOND,), (FIRST, SECOND), (SECOND, pte_of(SECOND))):
        for how in ("evict", "protect"):
            fill(bench)
            for gpa in away:
                if how == "evict":
                    bench.vm.dmm.evict(gpa >> 12, bench.keeper)
                else:
                    bench.vm.dmm.protect(gpa >> 12, type(bench.vm.p2m.rights(0))(1))
            assert attempt(bench, name) is Stop.HALTED
            results.append((bench.read(SECOND - 8, 8), bench.read(SECOND, 8), bench.vm.cpu.rdx, bench.vm.cpu.rsp))
            bench.vm.audit()
    assert len(set(results)) == 1
    assert results[0][:2] != (FILL, FILL)


@pytest.mark.parametrize("table", ["first", "second"])
def test_store_that_ends_or_begins_in_a_table(bench: Bench, table: str) -> None:
    """One of the pages is write-trapped: the table of the lowest 2 MiB, or what lies before it in memory."""
    page = pte_of(0)  # of the table
    start = page + PAGE - 3 if table == "first" else page - 3
    bench.put(CODE, "mov qword ptr [rdi], rdx; hlt")
    bench.map(start & -PAGE, start & -PAGE, RW)
    neighbour = page + PAGE if table == "first" else page - PAGE
    before = bench.read(page - 8, 8), bench.read(page, 8), bench.read(page + PAGE - 8, 8), bench.read(page + PAGE, 8)
    bench.map(neighbour, neighbour, RO if table == "first" else RW)
    if table == "first":
        assert bench.start(CODE, rdi=start, rdx=FILL) is Stop.CRASH
        assert bench.vm.cpu.cr2 == page + PAGE
        assert bench.read(page + PAGE - 8, 8) == before[2]
        bench.map(neighbour, neighbour, RW)
    assert bench.start(CODE, rdi=start, rdx=FILL) is Stop.HALTED
    assert bench.read(start, 8) == FILL
    bench.vm.audit()


@pytest.mark.parametrize("code", [CODE, PT + 0x800], ids=["elsewhere", "in the table"])
def test_read_modify_write_from_one_table_into_the_next(bench: Bench, code: int) -> None:
    """Both pages are write-trapped, and the second may be the one that the instruction stands in: it adds once."""
    address, before = PT - 2, 0x5678
    bench.write(address, before.to_bytes(4, "little"))
    bench.put(code, "add dword ptr [rdi], edx; hlt")
    for count in range(1, 4):
        bench.call(code, rdi=address, rdx=0x0101_0101)
        assert bench.read(address, 4) == before + count * 0x0101_0101
        bench.vm.audit()


@pytest.mark.parametrize("start", [CODE, CODE + 0x102], ids=["over a page's end", "within a page"])
@pytest.mark.parametrize("below", [1, 2, 3])
@pytest.mark.parametrize("text", ["add dword ptr [rdi], 1", "inc dword ptr [rdi]", "lock xadd dword ptr [rdi], edx"])
def test_a_read_modify_write_into_its_own_block_happens_once(bench: Bench, text: str, below: int, start: int) -> None:
    bench.put(start, f"{text}; mov ecx, 7; hlt")
    bench.write(start - below, b"\xff" * below)
    before = bench.read(start - below, 4)
    assert bench.start(start, rdi=start - below, rdx=1) is Stop.HALTED
    assert bench.read(start - below, 4) == (before + 1) % 2**32 and bench.vm.cpu.rcx == 7
