"""Two processors on one memory: whose translations live how long, and what is in force on both at once.

A translation may stay in the TLB of one processor until that processor's own INVLPG, whatever the other does to the
tables; a change below the guest, by the DMM, is in force on both before it returns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from emu.dmm.p2m import Intent
from emu.machine.vm import Stop
from tests.mmu.bench import PD, PML4, PT, RW, RWX, Bench, P, U, W, pte_of
from tests.mmu.harness import ARCHITECTURES
from tests.oracles import paging_model as x86
from tests.oracles.paging_model import PAGE

DATA, NEW, OTHER, TABLE = 0x50000, 0x60000, 0x70000, 0x80000  # gpas, and gvas of the same
CODE = 0x10000
LOAD, STORE, INVLPG, RELOAD, HALT = (CODE + 0x40 * i for i in range(5))
A, D = x86.ACCESSED, x86.DIRTY


def with_routines(bench: Bench) -> Bench:
    """Routines of the same bytes in 32-bit and 64-bit code: EAX is loaded or stored at [EBX]."""
    for gva, code in (
        (LOAD, b"\x8b\x03\xf4"), (STORE, b"\x89\x03\xf4"), (INVLPG, b"\x0f\x01\x3b\xf4"),
        (RELOAD, b"\x0f\x20\xd8\x0f\x22\xd8\xf4"), (HALT, b"\xf4"),
    ):  # fmt: skip
        bench.write(gva, code)
    return bench


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return with_routines(Bench(request.param, cpus=2))


def load(bench: Bench, cpu: int, gva: int) -> int:
    return bench.on(cpu).call(LOAD, rbx=gva) & 0xFFFF_FFFF


def store(bench: Bench, cpu: int, gva: int, value: int) -> None:
    bench.on(cpu).call(STORE, rbx=gva, rax=value)


def invlpg(bench: Bench, cpu: int, gva: int) -> None:
    bench.on(cpu).call(INVLPG, rbx=gva)


# --- what stays until the guest's own flush -----------------------------------------------------------------------


@pytest.mark.parametrize("flush", ["invlpg", "cr3"])
@pytest.mark.parametrize("writer", [0, 1])
def test_translation_stays_until_the_processors_own_flush(bench: Bench, flush: str, writer: int) -> None:
    reader = 1 - writer
    for gpa, value in ((DATA, 1), (NEW, 2), (OTHER, 3)):
        bench.write(gpa, value.to_bytes(4, "little"))
    seen = 1
    for gpa, value in ((NEW, 2), (OTHER, 3), (DATA, 1)):
        assert load(bench, reader, DATA) == load(bench, writer, DATA) == seen
        store(bench, writer, pte_of(DATA), gpa | P | W)
        invlpg(bench, writer, DATA)
        assert load(bench, writer, DATA) == value
        assert load(bench, reader, DATA) == seen
        if flush == "invlpg":
            invlpg(bench, reader, DATA)
        else:
            bench.on(reader).call(RELOAD)
        assert load(bench, reader, DATA) == value
        bench.vm.audit()
        seen = value


def test_right_that_one_takes_away_is_gone_on_the_other_after_its_flush(bench: Bench) -> None:
    for cpu, other in ((0, 1), (1, 0)):
        bench.map(DATA, DATA, RW)
        store(bench, other, DATA, 5)
        store(bench, cpu, pte_of(DATA), DATA | P)
        invlpg(bench, other, DATA)
        assert bench.on(other).start(STORE, rbx=DATA, rax=6) is Stop.CRASH
        assert bench.vm.cpu.cr2 == DATA
        assert load(bench, cpu, DATA) == 5


def test_accessed_and_dirty_flags_that_either_sets(bench: Bench) -> None:
    """The flags are cleared by one, which tells the other; whoever comes next sets them again."""
    entry = pte_of(DATA)
    for cpu, other in ((0, 1), (1, 0)):
        for touch, flags in ((load, A), (store, A | D), (load, A)):
            for each in (0, 1):
                store(bench, each, DATA, 0)
            store(bench, other, entry, DATA | P | W)
            for each in (0, 1):
                invlpg(bench, each, DATA)
            assert bench.read(entry, 8) & (A | D) == 0
            if touch is load:
                load(bench, cpu, DATA)
            else:
                store(bench, cpu, DATA, 1)
            assert bench.read(entry, 8) & (A | D) == flags
            load(bench, other, DATA)
            assert bench.read(entry, 8) & (A | D) == flags
            store(bench, other, DATA, 2)
            assert bench.read(entry, 8) & (A | D) == A | D
            bench.vm.audit()


# --- what the DMM does is in force at once ------------------------------------------------------------------------


def move(bench: Bench, gfn: int) -> None:
    bench.vm.dmm.remap(gfn)


def evict(bench: Bench, gfn: int) -> None:
    bench.vm.dmm.evict(gfn, bench.keeper)


def evict_and_use_its_frame(bench: Bench, gfn: int) -> None:
    vm = bench.vm
    mfn = vm.p2m.mfn(gfn)
    evict(bench, gfn)
    vm.machine.memory.pages[mfn] = 0xEE


def protect(bench: Bench, gfn: int) -> None:
    bench.vm.dmm.protect(gfn, Intent(0))


def make_readonly(bench: Bench, gfn: int) -> None:
    bench.vm.dmm.protect(gfn, Intent.READ)


def share(bench: Bench, gfn: int) -> None:
    vm = bench.vm
    bench.write(OTHER, vm.memory.read(gfn << 12, PAGE))
    assert vm.dmm.share(gfn, vm.p2m.mfn(OTHER >> 12))


def share_and_unshare(bench: Bench, gfn: int) -> None:
    share(bench, gfn)
    for cpu in (0, 1):
        load(bench, cpu, gfn << 12)
    bench.vm.dmm.unshare(gfn)


def retire(bench: Bench, gfn: int) -> None:
    bench.vm.dmm.shrink(1)
    bench.vm.dmm.retire(bench.vm.p2m.mfn(gfn))


ACTIONS: dict[str, Callable[[Bench, int], None]] = {
    action.__name__: action
    for action in (
        move, evict, evict_and_use_its_frame, protect, make_readonly, share, share_and_unshare, retire
    )  # fmt: skip
}


def fill_spare_frames(bench: Bench) -> None:
    """Whoever still reads or writes a frame that nobody uses is found out."""
    bench.vm.machine.memory.pages[sorted(bench.vm.pool.spare_frames())] = 0xEE


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("touch", ["load", "store"])
@pytest.mark.parametrize("cpu", [0, 1])
def test_change_below_a_page_is_in_force_on_both(bench: Bench, action: str, touch: str, cpu: int) -> None:
    """Both have the page in their TLBs, for loads and for stores; no guest flushes anything."""
    value = 0
    for _ in range(3):
        for each in (0, 1):
            store(bench, each, DATA, value)
            assert load(bench, each, DATA) == value
        load(bench, cpu, OTHER)
        ACTIONS[action](bench, DATA >> 12)
        fill_spare_frames(bench)
        if touch == "store":
            for each in (cpu, 1 - cpu):
                value += 1
                store(bench, each, DATA, value)
                assert bench.vm.p2m.grants(DATA >> 12, Intent.WRITE)
                assert load(bench, 1 - each, DATA) == value
        else:
            for each in (cpu, 1 - cpu):
                assert load(bench, each, DATA) == value
        assert bench.read(DATA, 4) == value
        bench.vm.audit()
    if "share" in action:
        assert load(bench, cpu, OTHER) == (value - 2 if touch == "store" else value)


@pytest.mark.parametrize("action", [name for name in ACTIONS if "share" not in name])
@pytest.mark.parametrize("table", [PML4, PD, PT], ids=["pml4", "pd", "pt"])
def test_change_below_a_table(bench: Bench, action: str, table: int) -> None:
    """A table that both run on; the guest changes it afterwards."""
    bench.write(NEW, (7).to_bytes(4, "little"))
    for cpu, other in ((0, 1), (1, 0)):
        for each in (0, 1):
            store(bench, each, DATA, 5)
        ACTIONS[action](bench, table >> 12)
        fill_spare_frames(bench)
        for each in (other, cpu):
            assert load(bench, each, DATA) == 5
        store(bench, cpu, pte_of(DATA), NEW | P | W)
        for each in (0, 1):
            invlpg(bench, each, DATA)
            assert load(bench, each, DATA) == 7
        bench.vm.audit()
        store(bench, other, pte_of(DATA), DATA | P | W)
        for each in (0, 1):
            invlpg(bench, each, DATA)


def test_accesses_of_either_are_counted(bench: Bench) -> None:
    gfns = np.array([DATA >> 12, NEW >> 12])
    dmm = bench.vm.dmm
    for cpu in (0, 1):
        for each in (0, 1):
            load(bench, each, DATA)
        dmm.take_accessed(gfns)
        assert not dmm.take_accessed(gfns).any()
        load(bench, cpu, DATA)
        assert dmm.take_accessed(gfns).tolist() == [True, False]
        store(bench, 1 - cpu, NEW, 1)
        assert dmm.take_accessed(gfns).tolist() == [False, True]


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", [0, 1])
def test_page_becomes_a_table_while_the_other_can_write_it(bench: Bench, cpu: int) -> None:
    """The other's stores, through a translation that is older than the table, are seen on both."""
    other = 1 - cpu
    region = 1 << 21
    for gpa, value in ((DATA, 1), (NEW, 2)):
        bench.write(gpa, value.to_bytes(4, "little"))
    for round_ in range(3):
        store(bench, other, TABLE, DATA | P | W)
        store(bench, other, TABLE + 4, 0)
        store(bench, cpu, PD + 8, TABLE | P | W)  # the first round makes it a table
        assert load(bench, cpu, region) == 1
        store(bench, other, TABLE, NEW | P | W)
        for each in (cpu, other):
            invlpg(bench, each, region)
            assert load(bench, each, region) == 2
        bench.vm.audit()
        if round_:
            store(bench, other, PD + 8, 0)
            for each in (0, 1):
                bench.on(each).call(RELOAD)
                assert bench.on(each).start(LOAD, rbx=region) is Stop.CRASH
        store(bench, cpu, TABLE, DATA | P | W)
        for each in (0, 1):
            invlpg(bench, each, region)


@pytest.mark.parametrize("writes", [10, 300])
@pytest.mark.parametrize("level", ["root", "table"])
def test_flood_of_stores_into_a_table_of_the_other(bench: Bench, writes: int, level: str) -> None:
    """One runs on tables of its own, a root and all below it, into which the other stores without end."""
    root, middle, below, leaf = (TABLE + i * PAGE for i in range(4))
    for table, entry in ((root, middle), (middle, below), (below, leaf)):
        bench.write(table, (entry | P | W | U).to_bytes(8, "little"))
    bench.write(leaf, bench.vm.memory.read(PT, PAGE))
    flooded = root if level == "root" else leaf
    bench.put(CODE + 0x200, f"mov ecx, {writes}; mov rdi, {flooded + 0xFF8}")
    loop = CODE + 0x200 + bench.put(CODE + 0x200, f"mov ecx, {writes}; mov rdi, {flooded + 0xFF8}")
    bench.put(loop, f"mov qword ptr [rdi], rcx; dec ecx; jnz {loop:#x}; hlt")

    def on_its_own(routine: int, **registers: int) -> int:
        bench.on(1).enter(routine)
        bench.vm.cpu.cr3 = root
        for name, value in registers.items():
            setattr(bench.vm.cpu, name, value)
        assert bench.vm.run(until=bench.vm.now + 1_000_000) is Stop.HALTED
        return int(bench.vm.cpu.rax) & 0xFFFF_FFFF

    for gpa, value in ((DATA, 1), (NEW, 2)):
        bench.write(gpa, value.to_bytes(4, "little"))
    for target, value in ((NEW, 2), (DATA, 1), (NEW, 2)):
        on_its_own(LOAD, rbx=DATA)
        bench.on(0).call(CODE + 0x200)
        store(bench, 0, leaf + (DATA >> 12) * 8, target | P | W)
        on_its_own(INVLPG, rbx=DATA)
        assert on_its_own(LOAD, rbx=DATA) == value
        assert load(bench, 0, DATA) == 1
        bench.vm.audit()


# --- INIT ---------------------------------------------------------------------------------------------------------


def test_processor_that_is_started_again_has_no_translations(bench: Bench) -> None:
    """INIT empties the TLB: in real mode the second start-up runs what lies at its gpa, not what paging had there."""
    begin = 0x9000
    bench.map(begin, NEW, RWX)
    bench.put(NEW, "mov eax, 1; hlt", begin)
    assert bench.on(1).call(begin) == 1
    bench.write(begin, b"\xb8\x02\x00\xf4")  # mov ax, 2; hlt
    vm = bench.vm
    bench.on(0).call(HALT)
    vm._inputs.init(1)
    assert vm.processors[1].activity == "waiting"
    vm._inputs.start_up(1, begin >> 12)
    bench.on(1)
    assert vm.run(until=vm.now + 1_000_000) is Stop.HALTED
    assert vm.cpu.rax == 2


@pytest.mark.parametrize("reuse", ["data", "table"])
def test_root_of_a_processor_after_its_init(bench: Bench, reuse: str) -> None:
    """The page that was its root is data, or another table, for who goes on; then it starts again and pages."""
    root = TABLE
    for _ in range(3):
        bench.write(root, bench.vm.memory.read(PML4, PAGE))
        bench.on(1).enter(LOAD)
        bench.vm.cpu.cr3, bench.vm.cpu.rbx = root, DATA
        assert bench.vm.run(until=bench.vm.now + 1_000_000) is Stop.HALTED
        bench.on(0).call(HALT)
        bench.vm._inputs.init(1)
        bench.put(CODE + 0x200, f"mov rdi, {root}; mov ecx, 512; mov rax, rsi; rep stosq; hlt")
        bench.on(0).call(CODE + 0x200, rsi=NEW | P | W if reuse == "table" else 0x1234_5678)
        if reuse == "table":
            store(bench, 0, PD + 8, root | P | W)
            bench.write(NEW, (9).to_bytes(4, "little"))
            assert load(bench, 0, 1 << 21) == 9
            store(bench, 0, PD + 8, 0)
            bench.on(0).call(RELOAD)
        assert bench.read(root, 4) == (NEW | P | W | A if reuse == "table" else 0x1234_5678)
        bench.vm.audit()
        bench.vm._inputs.start_up(1, 0)
        assert load(bench, 1, DATA) == load(bench, 0, DATA)
        bench.vm.audit()
