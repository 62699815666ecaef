"""INVLPG of any address in a large page drops all of it, however its translations came into the TLB.

The engine's TLB knows 4 KiB pages only. Large pages here map the start of memory; then their entry is made to map
something that does not exist, which reads as ones.
"""

from __future__ import annotations

import pytest

from emu.machine.vm import Stop
from emu.mmu.paging import flush_tlbs
from tests.mmu.bench import PD, PDPT, Bench, P, U, W
from tests.mmu.harness import ARCHITECTURES
from tests.oracles.paging_model import PAGE

CODE, MARK = 0x10000, 0x5000
LARGE = {"2M": (PD + 8, 1 << 21), "1G": (PDPT + 8, 1 << 30)}  # entry that maps the second page of this size, and size
PS = 1 << 7
ONES = 2**64 - 1

BEFORE = {  # what happens between the first access and the change
    "nothing": "nop",
    "cr3": "mov rax, cr3; mov cr3, rax",
    "other page": "mov rax, qword ptr [rsi + 0x8000]",
    "cr3 and other page": "mov rax, cr3; mov cr3, rax; mov rax, qword ptr [rsi + 0x8000]",
}


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("place", ["same", "start", "end"])
def test_any_address_will_do(bench: Bench, size: str, before: str, place: str) -> None:
    entry, span = LARGE[size]
    bench.write(entry, (P | W | U | PS).to_bytes(8, "little"))
    bench.write(MARK, (0x1234).to_bytes(8, "little"))
    address = span + MARK
    target = {"same": address, "start": span, "end": 2 * span - 1}[place]
    read = "mov {0}, qword ptr [rsi]"
    bench.put(
        CODE,
        f"{read.format('rbx')}; {BEFORE[before]}; {read.format('rcx')}; mov qword ptr [rdi], r8; invlpg [r9];"
        f"{read.format('rdx')}; hlt",
    )
    registers = {"rdi": entry, "r8": 1 << 32 | P | W | U | PS, "r9": target, "rsi": address}
    for _ in range(2):
        bench.write(entry, (P | W | U | PS).to_bytes(8, "little"))
        flush_tlbs(bench.vm.processor.native_at)  # a store to a table does not do that
        assert bench.start(CODE, **registers) is Stop.HALTED
        cpu = bench.vm.cpu
        assert (cpu.rbx, cpu.rcx, cpu.rdx) == (0x1234, 0x1234, ONES)
        bench.vm.audit()


def test_large_page_split_into_small_ones(bench: Bench) -> None:
    """An entry for 2 MiB comes to lead to a page table, whose pages are elsewhere."""
    entry, span = LARGE["2M"]
    table, other = 0x8000, 0x9000
    bench.write(entry, (P | W | U | PS).to_bytes(8, "little"))
    bench.write(table, b"".join((other | P | W | U).to_bytes(8, "little") for _ in range(512)))
    bench.write(MARK, (0x1234).to_bytes(8, "little"))
    bench.write(other, (0x5678).to_bytes(8, "little"))
    bench.put(
        CODE,
        "mov rbx, qword ptr [rsi]; mov rcx, qword ptr [rsi + 0x1000]; mov rax, cr3; mov cr3, rax;"
        "mov rcx, qword ptr [rsi + 0x1000]; mov rbx, qword ptr [rsi]; mov qword ptr [rdi], r8; invlpg [r9];"
        "mov rcx, qword ptr [rsi + 0x1000]; mov rdx, qword ptr [rsi]; hlt",
    )
    registers = {"rdi": entry, "r8": table | P | W | U, "r9": span + 511 * PAGE, "rsi": span + MARK}
    assert bench.start(CODE, **registers) is Stop.HALTED
    cpu = bench.vm.cpu
    assert (cpu.rbx, cpu.rcx, cpu.rdx) == (0x1234, 0x5678, 0x5678)
    bench.vm.audit()
