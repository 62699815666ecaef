"""Blocks of code end before the first instruction that has a byte on another page: a fetch fault comes in its turn."""

from __future__ import annotations

import pytest

from emu.dmm.p2m import PageType
from emu.engine.events import PageFault
from emu.machine.vm import Stop
from tests.mmu.bench import RW, RWX, Bench, pte_of
from tests.mmu.harness import ARCHITECTURES
from tests.oracles.paging_model import PAGE

CODE, NEXT = 0x30000, 0x30000 + PAGE
RUN = "inc rbx; inc rbx; inc rbx; inc rbx; inc rbx"  # 15 bytes


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def put_before(bench: Bench, text: str, end: int = NEXT) -> int:
    """Assemble code that ends at ``end``; returns where it begins."""
    size = bench.put(CODE, text)
    bench.put(end - size, text)
    return end - size


def fault_of(bench: Bench, start: int) -> tuple[int, int, int, int]:
    """RBX, RIP, CR2 and the error code where a run from ``start`` ends with a page fault."""
    errors: list[int] = []
    listener = bench.vm.events.listen
    listener(lambda event: errors.append(event.error), [PageFault])
    assert bench.start(start, rbx=0) is Stop.CRASH
    bench.vm.events.drain()
    cpu = bench.vm.cpu
    return cpu.rbx, cpu.rip, cpu.cr2, errors[0]


@pytest.mark.parametrize("flags, error", [(0, 0x10), (RW, 0x11)], ids=["absent", "no-execute"])
def test_what_lies_before_the_page_is_executed(bench: Bench, flags: int, error: int) -> None:
    bench.map(NEXT, NEXT, flags)
    start = put_before(bench, RUN)
    assert fault_of(bench, start) == (5, NEXT, NEXT, error)


@pytest.mark.parametrize("inside", range(1, 10))
def test_an_instruction_over_the_end(bench: Bench, inside: int) -> None:
    """The fault is that of the instruction that has bytes on the page, at the first of them."""
    long = "movabs rax, 0x1122334455667788"  # 10 bytes
    bench.map(NEXT, NEXT, 0)
    start = put_before(bench, RUN, NEXT - inside)
    bench.put(NEXT - inside, long)
    assert fault_of(bench, start) == (5, NEXT - inside, NEXT, 0x10)
    bench.map(NEXT, NEXT, RWX)
    bench.put(NEXT - inside + 10, "hlt")
    assert bench.call(start) == 0x1122334455667788


@pytest.mark.parametrize("inside", [0, 1, 3])
def test_a_page_that_the_run_itself_maps(bench: Bench, inside: int) -> None:
    bench.map(NEXT, NEXT, 0)
    start = put_before(bench, f"inc rbx; mov dword ptr [{pte_of(NEXT)}], edx", NEXT - inside)
    bench.put(NEXT - inside, "mov eax, 77; hlt")
    assert bench.call(start, rdx=NEXT | RWX) == 77


@pytest.mark.parametrize("inside", [0, 1, 2])
def test_each_byte_takes_its_time_once(bench: Bench, inside: int) -> None:
    text = f"{RUN}; {RUN}; hlt"
    size = bench.put(CODE, text)
    times = []
    for start in (CODE, NEXT - size, NEXT - 15 - inside, NEXT - 3 - inside):
        bench.put(start, text)
        for evicted in (False, True):
            if evicted and bench.vm.p2m.type(NEXT >> 12) == PageType.RAM:
                bench.vm.dmm.evict(NEXT >> 12, bench.keeper)
            before = bench.vm.now
            bench.call(start)
            times.append(bench.vm.now - before)
    assert set(times) == {size}


def test_single_steps(bench: Bench) -> None:
    bench.map(NEXT, NEXT, 0)
    start = put_before(bench, f"mov dword ptr [{pte_of(NEXT)}], edx; {RUN}", NEXT - 2)
    bench.put(NEXT - 2, f"{RUN}; hlt")
    bench.enter(start)
    bench.vm.cpu.rdx, bench.vm.cpu.rbx = NEXT | RWX, 0
    places = []
    for _ in range(11):
        assert bench.vm.step() is Stop.STEP
        places.append(bench.vm.cpu.rip)
    assert places == [NEXT - 17 + 3 * i for i in range(11)]
    assert bench.vm.cpu.rbx == 10


@pytest.mark.parametrize("inside", [0, 2])
def test_a_breakpoint_behind_the_end(bench: Bench, inside: int) -> None:
    start = put_before(bench, RUN, NEXT - inside)
    bench.put(NEXT - inside, f"{RUN}; hlt")
    bench.enter(start)
    bench.put(CODE, f"mov rax, {NEXT - inside}; mov dr0, rax; mov eax, 0x401; mov dr7, rax; jmp rcx")
    assert bench.start(CODE, rcx=start, rbx=0) is Stop.CRASH
    assert (bench.vm.cpu.rip, bench.vm.cpu.rbx) == (NEXT - inside, 5)
