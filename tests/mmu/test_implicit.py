"""Implicit supervisor accesses: user code makes the processor read tables that user code itself may not read.

The GDT, the LDT and the TSS lie on supervisor pages. Instructions that use them work at CPL 3, a program's own load of
the same page faults, before and after, in the same block of code and in the next.
"""

from __future__ import annotations

import pytest

from emu.machine.vm import Stop
from tests.mmu.bench import RW, RWX, STACK, Bench, U
from tests.mmu.harness import ARCHITECTURES
from tests.oracles.paging_model import CR4_SMAP, PAGE

GDT, TSS, CODE, DATA = 0x50000, 0x58000, 0x30000, 0x38000
DATA_SELECTOR, CODE_SELECTOR, CODE_32_SELECTOR = 0x1008 | 3, 0x1010 | 3, 0x1018 | 3  # in the GDT's second page
DESCRIPTORS = {DATA_SELECTOR: 0x00CFF300, CODE_SELECTOR: 0x00AFFB00, CODE_32_SELECTOR: 0x00CFFB00}

USERS = {  # instructions that read a descriptor, in 64-bit code; DATA holds a far pointer to `next`
    "mov ds": f"mov eax, {DATA_SELECTOR}; mov ds, ax",
    "mov gs": f"mov eax, {DATA_SELECTOR}; mov gs, ax",
    "mov ss": f"mov eax, {DATA_SELECTOR}; mov ss, ax",
    "mov es, memory": f"mov word ptr [{DATA}], {DATA_SELECTOR}; mov es, word ptr [{DATA}]",
    "pop fs": f"push {DATA_SELECTOR}; pop fs",
    "lgs": f"mov word ptr [{DATA + 4}], {DATA_SELECTOR}; lgs eax, [{DATA}]",
    "lar": f"mov eax, {DATA_SELECTOR}; lar ecx, eax",
    "lsl": f"mov eax, {DATA_SELECTOR}; lsl ecx, eax",
    "verr": f"mov eax, {DATA_SELECTOR}; verr ax",
    "verw": f"mov eax, {DATA_SELECTOR}; verw ax",
    "retf": f"push {CODE_SELECTOR}; lea rax, [rip + 5]; push rax; .byte 0x48, 0xcb; nop; nop; nop; nop",
    "iret": f"mov rbx, rsp; push {DATA_SELECTOR}; push rbx; pushfq; push {CODE_SELECTOR}; "
    "lea rax, [rip + 3]; push rax; iretq",
}


def user_bench(mmu: str) -> Bench:
    bench = Bench(mmu)
    for page in (CODE, CODE + PAGE, DATA, STACK - PAGE):
        bench.map(page, page, RWX | U)
    for page in (GDT, GDT + PAGE, TSS):
        bench.map(page, page, RW)
    for selector, attributes in DESCRIPTORS.items():
        bench.write(GDT + (selector & ~7), (attributes << 32 | 0xFFFF).to_bytes(8, "little"))
    bench.vm.cpu.gdtr.set(0, GDT, 2 * PAGE - 1, 0)
    bench.vm.cpu.ldtr.set(0, 0, 0, 0x8200)
    bench.vm.cpu.tr.set(0x40, TSS, 0x67 + 0x21, 0x8B00)
    return bench


@pytest.fixture(params=ARCHITECTURES)
def bench(request: pytest.FixtureRequest) -> Bench:
    return user_bench(request.param)


def run(bench: Bench, text: str, bits: int = 64) -> tuple[int, int]:
    """Run at CPL 3 what ends with a fault; returns the offset in CODE that RIP stands at, and CR2."""
    bench.put(CODE, text, bits=bits)
    assert bench.start(CODE, cpl=3, bits=bits) is Stop.CRASH
    return bench.vm.cpu.rip - CODE, bench.vm.cpu.cr2


def size(bench: Bench, text: str) -> int:
    return bench.put(CODE, text)


@pytest.mark.parametrize("name", USERS)
def test_descriptor_tables_on_supervisor_pages(bench: Bench, name: str) -> None:
    text = f"nop; mov ebp, 5; {USERS[name]}"
    load = f"mov al, byte ptr [{GDT + PAGE}]"
    end, load_size = size(bench, text), size(bench, load)
    for _ in range(2):
        assert run(bench, f"{text}; hlt") == (end, 0)
        assert run(bench, f"{text}; {load}; hlt") == (end, GDT + PAGE)
        assert run(bench, f"{text}; jmp {CODE + end + 2:#x}; {load}; hlt") == (end + 2, GDT + PAGE)
        assert run(bench, f"{load}; hlt") == (0, GDT + PAGE)
    assert load_size
    bench.vm.dmm.evict(GDT + PAGE >> 12, bench.keeper)
    assert run(bench, f"{text}; hlt") == (end, 0)
    bench.vm.audit()


@pytest.mark.parametrize("name", USERS)
def test_the_same_under_smap(bench: Bench, name: str) -> None:
    """The instruction lies on the program's own page, which a supervisor could not read then."""
    bench.cr4 |= CR4_SMAP
    test_descriptor_tables_on_supervisor_pages(bench, name)


def test_accessed_flag_of_a_descriptor(bench: Bench) -> None:
    """A segment load also writes: the descriptor's accessed flag, and the dirty flag of its page."""
    descriptor = GDT + (DATA_SELECTOR & ~7)
    bench.write(descriptor + 5, b"\xf2")
    text = f"mov eax, {DATA_SELECTOR}; mov ds, ax"
    assert run(bench, f"{text}; hlt") == (size(bench, text), 0)
    assert bench.read(descriptor + 5, 1) == 0xF3


def test_absent_descriptor_page(bench: Bench) -> None:
    """The processor's own access faults as a supervisor's, at the address of the descriptor."""
    bench.map(GDT + PAGE, GDT + PAGE, 0)
    text = f"mov eax, {DATA_SELECTOR}; mov ds, ax"
    assert run(bench, f"{text}; hlt") == (size(bench, f"mov eax, {DATA_SELECTOR}"), GDT + (DATA_SELECTOR & ~7))


def test_in_32_bit_code(bench: Bench) -> None:
    text = f"nop; mov eax, {DATA_SELECTOR}; mov ds, ax; push eax; pop es; lar ecx, eax"
    end = bench.put(CODE, text, bits=32)
    assert run(bench, f"{text}; hlt", bits=32) == (end, 0)
    assert run(bench, f"{text}; mov al, byte ptr [{GDT + PAGE}]", bits=32) == (end, GDT + PAGE)


def test_io_permission_bitmap_on_a_supervisor_page(bench: Bench) -> None:
    """Port 0xE9 is allowed, port 0xEA is not."""
    bench.write(TSS + 0x66, (0x68).to_bytes(2, "little") + bytes(0x1D) + b"\xfd" + b"\xff" * 3)
    allowed, forbidden = "nop; mov al, 0x21; out 0xe9, al", "nop; mov al, 0x21; out 0xea, al"
    load = f"mov al, byte ptr [{TSS}]"
    end = size(bench, allowed)
    for _ in range(2):
        assert run(bench, f"{allowed}; hlt") == (end, 0)
        assert run(bench, f"{forbidden}; hlt") == (end - 2, 0)
        assert run(bench, f"{allowed}; {load}; hlt") == (end, TSS)
        assert run(bench, f"{load}; hlt") == (0, TSS)
        bench.vm.dmm.evict(TSS >> 12, bench.keeper)
