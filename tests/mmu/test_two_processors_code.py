"""Code that one processor writes is never run stale by another, nor by itself.

Every test first runs the code that will be replaced where it matters, so that it has been translated there; see also
`test_code`, where one processor does both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emu.machine.vm import Stop
from tests.mmu.bench import PT, RW, RWX, Bench
from tests.mmu.harness import ARCHITECTURES
from tests.mmu.processors import start_together
from tests.mmu.test_code import STORES, immediate
from tests.mmu.test_crossing import WRITES
from tests.oracles.paging_model import PAGE

CODE, ALIAS, MAIN, OTHER, DATA = 0x10000, 0x20000, 0x30000, 0x40000, 0x50000  # gvas
SPOT = PT + 0x800  # in the page table, where entries map what no test touches
RIGHTS = {"itself": RWX, "executable": RWX, "nx": RW}  # of the mapping that is stored through


def nothing(bench: Bench, gfn: int) -> None:
    pass


def move(bench: Bench, gfn: int) -> None:
    bench.vm.dmm.remap(gfn)


def retire(bench: Bench, gfn: int) -> None:
    if bench.vm.pool.spare:
        bench.vm.dmm.shrink(1)  # a frame that can stand in
        bench.vm.dmm.retire(bench.vm.p2m.mfn(gfn))


def evict(bench: Bench, gfn: int) -> None:
    if bench.vm.dmm.is_resident(gfn):
        bench.vm.dmm.evict(gfn, bench.keeper)


MOVES: dict[str, Callable[[Bench, int], None]] = {
    "nothing": nothing, "remap": move, "retire": retire, "evict": evict,
}  # fmt: skip


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param, cpus=2)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("through", RIGHTS)
@pytest.mark.parametrize("both", [False, True], ids=["translated by one", "by both"])
def test_one_writes_what_the_other_runs(bench: Bench, store: str, through: str, both: bool) -> None:
    """Through every kind of mapping; TLBs are warm, and the frame moves between the rounds."""
    target = CODE if through == "itself" else ALIAS
    bench.map(ALIAS, CODE, RIGHTS[through])
    bench.put(MAIN, f"{STORES[store]}; hlt")
    operand = immediate(bench.on(1), CODE)
    value = 1
    for happens in MOVES.values():
        for _ in range(2):
            if both:
                assert bench.on(0).call(CODE) == value
            value += 1
            bench.on(0).call(MAIN, rdi=target + 1, rdx=operand & ~0xFF | value)
            assert bench.on(1).call(CODE) == value
        happens(bench, CODE >> 12)
    bench.vm.audit()


@pytest.mark.parametrize("writer", [0, 1])
@pytest.mark.parametrize("first_access", ["load", "store", "fetch"])
def test_processor_that_comes_later(bench: Bench, writer: int, first_access: str) -> None:
    """The other had a writable translation, in use, before there was any code to look for."""
    reader = 1 - writer
    bench.map(ALIAS, CODE, RW)
    bench.put(MAIN, "mov byte ptr [rdi], dl; hlt")
    bench.put(CODE, "mov eax, 1; hlt")
    bench.on(writer).call(MAIN, rdi=ALIAS + 1, rdx=2)
    touch = {"load": "mov al, byte ptr [rdi]; hlt", "store": "mov byte ptr [rdi], 3; hlt", "fetch": "hlt"}
    bench.put(OTHER, touch[first_access])
    bench.on(reader).call(OTHER, rdi=ALIAS + 1)
    for value in range(4, 8):
        bench.on(writer).call(MAIN, rdi=ALIAS + 1, rdx=value)
        assert bench.on(reader).call(CODE) == value


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("code", ["first", "second", "both"])
def test_store_over_the_end_of_a_page(bench: Bench, name: str, code: str) -> None:
    """Instructions at the end of one page, at the start of the next, or both are replaced by one store, once."""
    text, below = WRITES[name]
    edge = CODE + PAGE
    start = edge - below
    bench.put(MAIN, f"{text}; hlt")
    bench.put(OTHER, "hlt")
    results = []
    for cpus in ((), (1,), (0, 1)):
        bench.put(edge - 24, "nop; " * 14 + "mov rax, 0x1122334455667788; mov rbx, 0x1122334455667788; hlt")
        bench.write(edge - 8, b"\x90" * 20 + b"\xf4")
        for cpu in cpus:
            if code != "second":
                bench.on(cpu).call(edge - 24)
            if code != "first":
                bench.on(cpu).call(edge)
        old = bench.read(start, 8)
        size = 8 if "qword" in text or "q" in name else 4
        rax = old & (1 << 8 * size) - 1
        stop = bench.on(0).start(MAIN, rdi=start, rax=rax, rdx=0x9090_9090_9090_9090, rsi=MAIN, rbx=OTHER)
        assert stop is Stop.HALTED
        results.append((bench.read(start, 8), bench.vm.cpu.rdx))
        bench.vm.audit()
    assert len(set(results)) == 1, [f"{memory:#x} {rdx:#x}" for memory, rdx in results]


def test_both_halves_of_a_store_over_two_pages_are_seen(bench: Bench) -> None:
    """`mov eax, imm32` lies on two pages, and so does the store that changes its immediate."""
    edge = CODE + PAGE
    bench.put(MAIN, "mov dword ptr [rdi], edx; hlt")
    bench.put(edge - 3, "mov eax, 0; hlt")
    for round_, happens in enumerate(MOVES.values()):
        for cpu in (0, 1):
            bench.on(cpu).call(edge - 3)
        for value in (0x1234_5678 + round_, 0x8765_4321 + round_):
            bench.on(0).call(MAIN, rdi=edge - 2, rdx=value)
            assert bench.on(1).call(edge - 3) == value
            assert bench.on(0).call(edge - 3) == value
        happens(bench, CODE + PAGE >> 12)
        happens(bench, CODE >> 12)


@pytest.mark.parametrize("skew", range(8))
def test_unaligned_store(bench: Bench, skew: int) -> None:
    bench.put(MAIN, "mov qword ptr [rdi], rdx; hlt")
    gva = CODE + 0x100 + skew
    for value in (1, 2, 3):
        bench.put(gva, "mov eax, 0; hlt")
        for cpu in (0, 1):
            assert bench.on(cpu).call(gva) == 0
        rest = bench.read(gva + 1, 8)
        bench.on(0).call(MAIN, rdi=gva + 1, rdx=rest | value)
        for cpu in (1, 0):
            assert bench.on(cpu).call(gva) == value


@pytest.mark.parametrize("size", [8, 16])
def test_locked_compare_exchange_of_code(bench: Bench, size: int) -> None:
    """CMPXCHG8B and CMPXCHG16B over a whole routine."""
    old = (b"\xb8\x01\x00\x00\x00\xf4" + b"\x90" * 10)[:size]
    new = (b"\xb8\x02\x00\x00\x00\xf4" + b"\x90" * 10)[:size]
    half = size // 2
    bench.put(MAIN, f"lock cmpxchg{size}b {'q' if size == 8 else 'xmm'}word ptr [rdi]; sete sil; movzx eax, sil; hlt")
    for cpu, other in ((0, 1), (1, 0), (0, 1)):
        bench.write(CODE, old)
        for each in (0, 1):
            assert bench.on(each).call(CODE) == 1
        parts = [int.from_bytes(part, "little") for part in (old[:half], old[half:], new[:half], new[half:])]
        registers = dict(zip(("rax", "rdx", "rbx", "rcx"), parts, strict=True))
        assert bench.on(cpu).call(MAIN, rdi=CODE, **registers) == 1
        assert bench.on(other).call(CODE) == 2
        assert bench.on(cpu).call(CODE) == 2


@pytest.mark.parametrize("string", ["rep movsb", "rep movsq", "rep stosb"])
def test_string_over_code(bench: Bench, string: str) -> None:
    """A whole page of routines is replaced."""
    count = PAGE // 8 if string.endswith("q") else PAGE
    bench.put(MAIN, f"cld; mov ecx, {count}; {string}; hlt")
    bench.write(OTHER, b"\xb8\x02\x00\x00\x00\xf4\x90\x90" * 512)
    for _ in range(2):
        bench.write(CODE, b"\xb8\x01\x00\x00\x00\xf4\x90\x90" * 512)
        for cpu in (0, 1):
            for offset in (0, 0x800, 0xFF8):
                assert bench.on(cpu).call(CODE + offset) == 1
        bench.on(0).start(MAIN, rdi=CODE, rsi=OTHER, rax=0xF4)
        for cpu in (1, 0):
            for offset in (0, 0x800, 0xFF8):
                if string == "rep stosb":
                    assert bench.on(cpu).call(CODE + offset, rax=offset) == offset
                else:
                    assert bench.on(cpu).call(CODE + offset) == 2


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("through", RIGHTS)
def test_store_ahead_in_the_running_block(bench: Bench, store: str, through: str) -> None:
    """The next instruction of the very block is replaced, while the other has the same code translated."""
    target = CODE if through == "itself" else ALIAS
    bench.map(ALIAS, CODE, RIGHTS[through])
    spare = DATA  # what the store hits in the runs that only translate
    for value in (1, 2, 3):
        size = bench.put(CODE, STORES[store])
        bench.put(CODE + size, "mov eax, 9; hlt")
        operand = bench.read(CODE + size + 1, 8) & ~0xFF
        for cpu in (0, 1):
            assert bench.on(cpu).call(CODE, rdi=spare, rdx=operand) == 9
        assert bench.on(0).call(CODE, rdi=target + size + 1, rdx=operand | value) == value
        assert bench.on(1).call(CODE, rdi=spare, rdx=operand) == value


@pytest.mark.parametrize("alias", [CODE, ALIAS], ids=["itself", "nx"])
def test_loop_that_changes_its_own_body_on_each(bench: Bench, alias: int) -> None:
    bench.map(ALIAS, CODE, RW)
    head = bench.put(CODE, "xor eax, eax; mov ecx, 100")
    loop = CODE + head
    bench.put(loop, f"add eax, 1000; inc dword ptr [rdi]; dec ecx; jnz {loop:#x}; hlt")
    for cpu in (0, 1, 1, 0):
        bench.write(loop + 1, (1).to_bytes(4, "little"))
        for other in (0, 1):
            bench.on(other).call(CODE, rdi=DATA)
        assert bench.on(cpu).call(CODE, rdi=alias + head + 1) == 5050


def test_write_from_outside(bench: Bench) -> None:
    """A device writes over code that both have translated, also over an instruction on two pages."""
    for gva in (CODE, CODE + PAGE - 3):
        for value in range(1, 5):
            bench.put(gva, f"mov eax, {value}; hlt")
            for cpu in (0, 1):
                assert bench.on(cpu).call(gva) == value


def test_exchanged_frames(bench: Bench) -> None:
    """Two pages of code exchange their frames, again and again, below both processors."""
    dmm, p2m = bench.vm.dmm, bench.vm.p2m
    dmm.shrink(bench.vm.pool.spare - 1)
    for gva, value in ((CODE, 1), (OTHER, 2)):
        bench.put(gva, f"mov eax, {value}; hlt")
    for _ in range(6):
        for cpu in (0, 1):
            assert bench.on(cpu).call(CODE) == 1
            assert bench.on(cpu).call(OTHER) == 2
        frame = p2m.mfn(CODE >> 12)
        dmm.remap(CODE >> 12)
        dmm.remap(OTHER >> 12)
        assert p2m.mfn(OTHER >> 12) == frame
        bench.vm.audit()


def test_code_in_a_shared_frame(bench: Bench) -> None:
    """Two equal pages of code get one frame; one of them is then written."""
    dmm, p2m = bench.vm.dmm, bench.vm.p2m
    bench.put(MAIN, "mov byte ptr [rdi], dl; hlt")
    for value in (2, 3):
        for gva in (CODE, OTHER):
            bench.put(gva, "mov eax, 1; hlt")
            for cpu in (0, 1):
                assert bench.on(cpu).call(gva) == 1
        assert dmm.share(CODE >> 12, p2m.mfn(OTHER >> 12))
        for cpu in (0, 1):
            assert bench.on(cpu).call(CODE) == 1
            assert bench.on(cpu).call(OTHER) == 1
        bench.on(0).call(MAIN, rdi=CODE + 1, rdx=value)
        for cpu in (1, 0):
            assert bench.on(cpu).call(CODE) == value
            assert bench.on(cpu).call(OTHER) == 1
        bench.vm.audit()


@pytest.mark.parametrize("store", STORES)
def test_table_that_is_executed(bench: Bench, store: str) -> None:
    """Instructions that stand in the page table itself."""
    bench.put(MAIN, f"{STORES[store]}; hlt")
    operand = immediate(bench.on(1), SPOT)
    for value in (2, 3, 4):
        bench.on(0).call(MAIN, rdi=SPOT + 1, rdx=operand & ~0xFF | value)
        for cpu in (1, 0):
            assert bench.on(cpu).call(SPOT) == value
        bench.vm.audit()


def test_accessed_flag_in_an_instruction(bench: Bench) -> None:
    """As in `test_code`, but the other processor's access sets the flag."""
    at = SPOT + 8
    page = (at - PT) // 8 * PAGE
    bench.put(MAIN, f"mov cl, byte ptr [{page}]; hlt")
    for cpu, other in ((0, 1), (1, 0)):
        bench.write(at - 1, b"\xb0\x01\xf4\x00\x00\x00\x00\x00\x00")  # mov al, 0x01; hlt: an entry not accessed
        for each in (0, 1):
            bench.put(OTHER, f"invlpg [{page}]; hlt")
            bench.on(each).call(OTHER)
            assert bench.on(each).call(at - 1, rax=0) == 0x01
        bench.on(other).call(MAIN)
        assert bench.on(cpu).call(at - 1, rax=0) == 0x21


ROUNDS = 400
# Processor 0 counts the immediate of a routine up and says so in a flag; processor 1 waits for the flag, calls the
# routine, notes a wrong answer, and acknowledges.  Flags and a counter of each lie beside the routine.
FLAG, ACK, WRONG, BUSY = CODE + 0x80, CODE + 0x88, CODE + 0x90, CODE + 0x98


@pytest.mark.parametrize("happens", MOVES)
@pytest.mark.parametrize("through", RIGHTS)
def test_cross_modification_at_speed(bench: Bench, happens: str, through: str) -> None:
    target = CODE if through == "itself" else ALIAS
    bench.map(ALIAS, CODE, RIGHTS[through])
    bench.put(CODE, "mov eax, 0; ret")
    bench.write(FLAG, bytes(32))
    delta = target - CODE
    start = bench.put(MAIN, "mov ecx, 1")
    loop = MAIN + start
    text = f"mov dword ptr [{target + 1}], ecx; mov dword ptr [{FLAG + delta}], ecx"
    wait = loop + bench.put(loop, text)
    size = bench.put(wait, f"inc dword ptr [{BUSY + delta}]; pause; cmp dword ptr [{ACK}], ecx; jne {wait:#x}")
    bench.put(wait + size, f"inc ecx; cmp ecx, {ROUNDS}; jbe {loop:#x}; cli; hlt")
    start = bench.put(OTHER, "mov ecx, 1")
    loop = OTHER + start
    size = bench.put(loop, f"pause; cmp dword ptr [{FLAG}], ecx; jne {loop:#x}; call {CODE:#x}; cmp eax, ecx")
    there = loop + size
    size = bench.put(there, "setne al; movzx eax, al")
    size += bench.put(there + size, f"add dword ptr [{WRONG + delta}], eax; mov dword ptr [{ACK + delta}], ecx")
    bench.put(there + size, f"inc ecx; cmp ecx, {ROUNDS}; jbe {loop:#x}; cli; hlt")
    start_together(bench.vm, [lambda: bench.enter(MAIN), lambda: bench.enter(OTHER, stack=MAIN + PAGE)])
    vm = bench.vm
    for _ in range(2000):
        if vm.run(until=vm.now + 20_000) is Stop.HALTED:
            break
        MOVES[happens](bench, CODE >> 12)
    assert bench.read(ACK, 4) == ROUNDS
    assert bench.read(WRONG, 4) == 0
    vm.audit()
