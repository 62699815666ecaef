"""Guest tables in bulk: pages that stop being tables, pages that become tables, and more tables than have shadows."""

from __future__ import annotations

import pytest

from tests.mmu.bench import PD, PT, Bench, P, U, W
from tests.mmu.harness import ARCHITECTURES
from tests.oracles.paging_model import PAGE

CODE, TABLE, FIRST_TABLE, TABLES = 0x10000, 0x20000, 0x30000, 200
REGION = 1 << 21  # what one page table maps


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def entry(gpa: int) -> bytes:
    return (gpa | P | W | U).to_bytes(8, "little")


def test_table_becomes_data_and_a_table_again(bench: Bench) -> None:
    """A page table is taken out of the tree, filled with data, read, made a table, and put back."""
    bench.write(TABLE, entry(0x5000) * 512)
    bench.write(PD + 8, entry(TABLE))
    bench.write(0x5000, (0x1234).to_bytes(8, "little"))
    bench.write(0x7000, (0x5678).to_bytes(8, "little"))
    bench.put(
        CODE,
        "mov rbx, qword ptr [rsi]; mov qword ptr [rbp], 0; mov rax, cr3; mov cr3, rax;"
        f"mov rdi, {TABLE}; mov ecx, 512; mov eax, 0x11223344; rep stosq; mov rdx, qword ptr [rdi - 8];"
        f"mov rdi, {TABLE}; mov ecx, 512; mov eax, {0x7000 | P | W | U}; rep stosq;"
        f"mov eax, {TABLE | P | W | U}; mov qword ptr [rbp], rax; mov rcx, qword ptr [rsi + 0x3000]; hlt",
    )
    for _ in range(3):
        bench.write(TABLE, entry(0x5000) * 512)
        bench.call(CODE, rsi=REGION, rbp=PD + 8)
        cpu = bench.vm.cpu
        assert (cpu.rbx, cpu.rdx, cpu.rcx) == (0x1234, 0x11223344, 0x5678)
        bench.vm.audit()


def test_table_that_is_written_without_end(bench: Bench) -> None:
    """An entry in use changes a thousand times; after every 125 changes the page is what the last one says."""
    page, changes, between = 0x9000, 1000, 125
    start = bench.put(CODE, f"xor ebx, ebx; mov edx, {changes // between}")
    outer = CODE + start
    inner = outer + bench.put(outer, f"mov ecx, {between}")
    bench.put(
        inner,
        f"xor qword ptr [rdi], {0x5000 ^ 0x7000}; dec ecx; jnz {inner:#x};"
        f"invlpg [rsi]; add rbx, qword ptr [rsi]; dec edx; jnz {outer:#x}; mov rax, rbx; hlt",
    )
    bench.write(0x5000, (1).to_bytes(8, "little"))
    bench.write(0x7000, (100).to_bytes(8, "little"))
    bench.map(page, 0x5000, P | W)
    assert bench.call(CODE, rdi=PT + page // PAGE * 8, rsi=page) == changes // between // 2 * 101
    bench.vm.audit()


def test_more_tables_than_shadows(bench: Bench) -> None:
    """All page tables of a long walk are in use; the shadow tables begin anew as often as they run out."""
    for i in range(TABLES):
        bench.write(PD + 8 * (i + 1), entry(FIRST_TABLE + i * PAGE))
        bench.write(FIRST_TABLE + i * PAGE, entry(FIRST_TABLE + i * PAGE) * 512)  # each maps nothing but itself
        bench.write(FIRST_TABLE + i * PAGE + 0xFF8, i.to_bytes(8, "little"))
    start = bench.put(CODE, "xor eax, eax; mov edx, 3")
    outer = CODE + start
    inner = outer + bench.put(outer, f"mov ecx, {TABLES}; mov edi, {REGION}")
    bench.put(
        inner,
        f"add rax, qword ptr [rdi + 0xff8]; add rdi, {REGION}; dec ecx; jnz {inner:#x}; dec edx; jnz {outer:#x}; hlt",
    )
    assert bench.call(CODE) == 3 * sum(range(TABLES))
    bench.vm.audit()
