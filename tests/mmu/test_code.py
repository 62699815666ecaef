"""Stale instructions never run: self-modifying code, stores through aliases, frames that once held code.

Every test first runs the code that will be replaced, so that it has been translated.
"""

from __future__ import annotations

import pytest

from tests.mmu.bench import PT, RO, RW, RWX, RX, Bench, pte_of
from tests.mmu.harness import ARCHITECTURES, Keeper
from tests.oracles.paging_model import PAGE

CODE, ALIAS, MAIN, OTHER = 0x10000, 0x20000, 0x30000, 0x40000  # gvas
ONE, TWO, THREE = "mov eax, 1; hlt", "mov eax, 2; hlt", "mov eax, 3; hlt"

STORES = {  # of the bytes in RDX (and above it 0x90) to [RDI]
    "byte": "mov byte ptr [rdi], dl",
    "word": "mov word ptr [rdi], dx",
    "qword": "mov qword ptr [rdi], rdx",
    "locked": "lock xchg byte ptr [rdi], dl",
    "exchange": "xchg qword ptr [rdi], rdx",
    "compare": "mov al, byte ptr [rdi]; lock cmpxchg byte ptr [rdi], dl",
    "add": "sub dl, byte ptr [rdi]; add byte ptr [rdi], dl",
    "string": "mov eax, edx; mov ecx, 1; rep stosb",
    "vector": "movq xmm0, rdx; movq qword ptr [rdi], xmm0",
    "push": "lea rsp, [rdi + 8]; push rdx",
}


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def immediate(bench: Bench, gva: int) -> int:
    """Let gva hold `mov eax, 1; hlt` and run it; returns the bytes from the immediate on, as a number."""
    bench.put(gva, ONE)
    assert bench.call(gva) == 1
    return bench.read(gva + 1, 8)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("rights", [RWX, RW], ids=["executable", "nx"])
def test_store_through_an_alias(bench: Bench, store: str, rights: int) -> None:
    """Code is replaced through another mapping of its page, then jumped to."""
    bench.map(ALIAS, CODE, rights)
    bench.map(CODE, CODE, RX)
    operand = immediate(bench, CODE)
    bench.put(MAIN, f"{STORES[store]}; jmp {CODE:#x}")
    for value in (2, 3, 4):
        assert bench.call(MAIN, rdi=ALIAS + 1, rdx=operand & ~0xFF | value) == value


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("alias", ["itself", "executable", "nx"])
def test_store_ahead_in_the_running_block(bench: Bench, store: str, alias: str) -> None:
    """The next instruction of the very block is replaced: it takes effect at once."""
    target = CODE if alias == "itself" else ALIAS
    bench.map(ALIAS, CODE, RW if alias == "nx" else RWX)
    for value in (1, 2, 3):
        size = bench.put(CODE, STORES[store])
        bench.put(CODE + size, "mov eax, 9; hlt")
        operand = bench.read(CODE + size + 1, 8)
        assert bench.call(CODE, rdi=target + size + 1, rdx=operand & ~0xFF | value) == value


@pytest.mark.parametrize("alias", [CODE, ALIAS], ids=["itself", "nx"])
def test_loop_that_changes_its_own_body(bench: Bench, alias: int) -> None:
    """Each turn of the loop increments the immediate that the next turn adds: 1 + 2 + … + 100."""
    bench.map(ALIAS, CODE, RW)
    head = bench.put(CODE, "xor eax, eax; mov ecx, 100")
    loop = CODE + head
    bench.put(loop, f"add eax, 1000; inc dword ptr [rdi]; dec ecx; jnz {loop:#x}; hlt")
    bench.write(loop + 1, (1).to_bytes(4, "little"))
    assert bench.call(CODE, rdi=alias + head + 1) == 5050


def test_code_written_through_one_mapping_and_run_through_another(bench: Bench) -> None:
    """The page was data, with a fast writable TLB entry, when the first fetch from it comes."""
    bench.map(ALIAS, CODE, RW)
    bench.map(CODE, CODE, RX)
    turns = []
    for value in range(1, 6):
        turns.append(f"mov byte ptr [rdi + 1], {value}; call {CODE:#x}; add ebx, eax; shl ebx, 4")
    bench.put(CODE, "mov eax, 0; ret")
    bench.put(MAIN, "xor ebx, ebx;" + ";".join(turns) + "; mov eax, ebx; hlt")
    assert bench.call(MAIN, rdi=ALIAS) == 0x123450


def test_page_turns_from_code_to_data_and_back(bench: Bench) -> None:
    bench.map(ALIAS, CODE, RW)
    immediate(bench, CODE)
    bench.put(MAIN, "mov ecx, 512; rep stosq; hlt")
    bench.call(MAIN, rdi=ALIAS, rax=0x1122_3344_5566_7788)
    assert bench.read(CODE + 0xFF8, 8) == 0x1122_3344_5566_7788
    bench.put(CODE, TWO)
    assert bench.call(CODE) == 2


def test_instruction_over_a_page_boundary(bench: Bench) -> None:
    """`mov eax, imm32` begins in one page; its immediate lies in the next, which changes in every way there is."""
    start, second = CODE + PAGE - 1, CODE + PAGE
    bench.map(ALIAS, second, RW)
    bench.put(start, ONE)
    assert bench.call(start) == 1
    bench.write(second, b"\x02")
    assert bench.call(start) == 2
    bench.put(MAIN, f"mov byte ptr [{ALIAS}], 3; jmp {start:#x}")
    assert bench.call(MAIN) == 3
    bench.put(MAIN, f"mov byte ptr [{second}], 4; jmp {start:#x}")
    assert bench.call(MAIN) == 4
    bench.vm.dmm.remap(second >> 12)
    assert bench.call(start) == 4
    bench.write(second, b"\x05")
    assert bench.call(start) == 5
    bench.write(OTHER, b"\x06" + bytes(3) + b"\xf4")
    bench.put(MAIN, f"mov dword ptr [{pte_of(second)}], {OTHER | RX}; invlpg [{second}]; jmp {start:#x}")
    assert bench.call(MAIN) == 6
    bench.write(second, b"\x07")
    assert bench.call(start) == 6


def test_write_from_outside(bench: Bench) -> None:
    """A device or a tool writes over code."""
    immediate(bench, CODE)
    for text, value in ((TWO, 2), (THREE, 3)):
        bench.put(CODE, text)
        assert bench.call(CODE) == value


@pytest.mark.parametrize("how", ["remap", "evict"])
def test_frame_that_held_code_is_used_again(bench: Bench, how: str) -> None:
    """Other pages, with other code at the same offset, come into the frame; then the first page returns elsewhere."""
    dmm, p2m = bench.vm.dmm, bench.vm.p2m
    dmm.shrink(bench.vm.pool.spare)
    dmm.grow(1)
    bench.put(CODE, ONE)
    bench.put(OTHER, TWO)
    for _ in range(3):
        assert bench.call(CODE) == 1
        assert bench.call(OTHER) == 2
        frames = [p2m.mfn(CODE >> 12), p2m.mfn(OTHER >> 12)]
        if how == "remap":
            dmm.remap(CODE >> 12)  # to the spare frame
            dmm.remap(OTHER >> 12)  # to the frame of CODE
            assert p2m.mfn(OTHER >> 12) == frames[0]
        else:
            for page in (OTHER, CODE):
                dmm.evict(page >> 12, bench.keeper)
            dmm.populate(OTHER >> 12)
            assert p2m.mfn(OTHER >> 12) in frames
        bench.vm.audit()
        assert bench.call(OTHER) == 2
        assert bench.call(CODE) == 1


def test_evicted_code_returns_changed(bench: Bench) -> None:
    """What a policy hands back is what runs."""
    immediate(bench, CODE)
    bench.vm.dmm.evict(CODE >> 12, bench.keeper)
    kept = bytearray(bench.keeper.restore(CODE >> 12))
    kept[1] = 7
    Keeper.keep(bench.keeper, CODE >> 12, bytes(kept))
    assert bench.call(CODE) == 7


def test_guest_maps_other_code_in_its_place(bench: Bench) -> None:
    """The guest changes the page-table entry of code and executes INVLPG."""
    immediate(bench, CODE)
    bench.put(OTHER, TWO, CODE)
    bench.put(MAIN, f"mov dword ptr [{pte_of(CODE)}], {OTHER | RX}; invlpg [{CODE}]; jmp {CODE:#x}")
    assert bench.call(MAIN) == 2
    bench.put(OTHER, THREE, CODE)
    assert bench.call(CODE) == 3


SPOT = PT + 0x800  # in the page table, where entries map what no test touches


@pytest.mark.parametrize("store", STORES)
def test_table_that_is_executed(bench: Bench, store: str) -> None:
    """Instructions that stand in the page table itself are replaced by stores into the table."""
    operand = immediate(bench, SPOT)
    bench.put(MAIN, f"{STORES[store]}; jmp {SPOT:#x}")
    for value in (2, 3, 4):
        assert bench.call(MAIN, rdi=SPOT + 1, rdx=operand & ~0xFF | value) == value
        bench.vm.audit()


def test_table_that_changes_ahead_of_its_own_execution(bench: Bench) -> None:
    size = bench.put(SPOT, "mov byte ptr [rdi], dl")
    bench.put(SPOT + size, "mov eax, 9; hlt")
    for value in (1, 2, 3):
        assert bench.call(SPOT, rdi=SPOT + size + 1, rdx=value) == value


def test_accessed_flag_in_an_instruction(bench: Bench) -> None:
    """An entry is the operand of an instruction; the walker sets its accessed flag, which changes the operand."""
    at = SPOT + 8
    page = (at - PT) // 8 * PAGE  # what the entry maps
    bench.write(at - 1, b"\xb0\x01\xf4\x00\x00\x00\x00\x00\x00")  # mov al, 0x01; hlt: entry 0xF401, not accessed
    assert bench.call(at - 1, rax=0) == 0x01
    bench.put(MAIN, f"mov cl, byte ptr [{page}]; jmp {at - 1:#x}")
    assert bench.call(MAIN, rax=0) == 0x21
    assert bench.read(at, 2) == 0xF421


def test_rights_do_not_leak_from_executable_frames(bench: Bench) -> None:
    """A frame that holds code, and is therefore given out executable, stays forbidden where a mapping forbids it."""
    for rights in (RW, RO):
        immediate(bench, CODE)
        bench.map(ALIAS, CODE, rights)
        bench.put(MAIN, f"mov al, byte ptr [{ALIAS}]; mov eax, {ALIAS}; jmp rax")
        bench.start(MAIN)
        assert (bench.vm.cpu.cr2, bench.vm.cpu.rip) == (ALIAS, ALIAS)
