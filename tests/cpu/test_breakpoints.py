"""Debug registers: instruction and data breakpoints, and that they are noticed however they are set."""

from __future__ import annotations

import pytest

from emu.engine.events import ExceptionDelivery
from emu.testing import boot
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench
from tests.guests.several import several

DATA = 0x20000
EXECUTE, WRITE, ACCESS = 0, 1, 3
COUNT = "inc ebx; or dword ptr [esp + 8], 0x10000; iretd"  # the handler: counts, sets RF


def dr7(index: int, kind: int, length: int = 1) -> int:
    coded = {1: 0, 2: 1, 4: 3, 8: 2}[length]
    return 0x400 | 2 << 2 * index | (kind | coded << 2) << (16 + 4 * index)


def debugged(
    source: str, handler: str = COUNT, mmu: str = "nested", base: int = 0, cpu: str | None = None
) -> tuple[Bench, list[int]]:
    """Run 32-bit code; returns the bench and where each #DB returned to, from the start of the code."""
    bench = Bench(mmu, cpu)
    bench.protected()
    bench.write(b.HANDLER + 16, b.assemble(handler, 32, b.HANDLER + 16))
    if base:
        bench.segment(b.SPARE, base, 0xFFFFF, b.CODE_32)
        bench.cpu.cs.set(b.SPARE, base, 0xFFFF_FFFF, b.CODE_32)
        bench.cpu.rip = b.CODE - base
        bench.set_eflags(2)
    bench.run(source, 32)
    faults = [event for event in bench.events if isinstance(event, ExceptionDelivery)]
    assert {event.vector for event in faults} <= {1}
    return bench, [event.rip + base - b.CODE for event in faults]


def arm(index: int, address: int, value: int) -> str:
    return f"mov eax, {address:#x}; mov dr{index}, eax; mov eax, {value:#x}; mov dr7, eax;"


ARMING = 16  # bytes of code that arm() makes


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("base", [0, 0x4000])
def test_an_instruction_breakpoint_is_a_fault(index: int, base: int, mmu: str) -> None:
    where = b.CODE + ARMING + 2
    bench, found = debugged(arm(index, where, dr7(index, EXECUTE)) + "nop; nop; inc ecx; nop; nop", mmu=mmu, base=base)
    assert found == [ARMING + 2]
    assert bench.cpu.rbx == 1 and bench.cpu.rcx == 1
    assert bench.cpu.dr6 & 0xF == 1 << index


def test_a_breakpoint_in_a_loop_is_hit_each_time() -> None:
    where = ARMING + 5
    bench, found = debugged(arm(0, b.CODE + where, dr7(0, EXECUTE)) + "mov ecx, 5; l: nop; dec ecx; jnz l; nop")
    assert found == [where] * 5 and bench.cpu.rbx == 5


def test_two_breakpoints_in_one_block() -> None:
    source = arm(0, b.CODE + 2 * ARMING, dr7(0, EXECUTE))
    source += arm(1, b.CODE + 2 * ARMING + 2, dr7(0, EXECUTE) | dr7(1, EXECUTE)) + "nop; nop; nop; nop"
    bench, found = debugged(source)
    assert found == [2 * ARMING, 2 * ARMING + 2] and bench.cpu.dr6 & 0xF == 2


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    ("kind", "length", "offset", "access", "hit"),
    [
        (WRITE, 4, 0, "mov [edi], edx", True),
        (WRITE, 4, 0, "mov edx, [edi]", False),
        (WRITE, 4, 3, "mov byte ptr [edi], dl", True),
        (WRITE, 4, 4, "mov byte ptr [edi], dl", False),
        (WRITE, 4, -1, "mov byte ptr [edi], dl", False),
        (WRITE, 4, -2, "mov [edi], edx", True),
        (WRITE, 1, 0, "lock inc dword ptr [edi]", True),
        (WRITE, 1, 4, "push edx", False),
        (ACCESS, 2, 0, "mov dl, [edi]", True),
        (ACCESS, 2, 1, "add byte ptr [edi], 1", True),
        (ACCESS, 2, 2, "mov edx, [edi]", False),
        (ACCESS, 2, -3, "mov edx, [edi]", True),
        (ACCESS, 1, 0x100, "mov edx, [edi]", False),
        (EXECUTE, 1, 0, "mov edx, [edi]", False),
    ],
)
def test_a_data_breakpoint_is_a_trap(
    mmu: str, index: int, kind: int, length: int, offset: int, access: str, hit: bool
) -> None:
    watched = DATA + 0x10
    source = arm(index, watched, dr7(index, kind, length)) + f"mov edi, {watched + offset:#x}; mov edx, 0x01020304;"
    bench, found = debugged(source + access + "; inc ecx; nop", mmu=mmu)
    behind = ARMING + 10 + len(b.assemble(access, 32))
    assert found == ([behind] if hit else [])
    assert bench.cpu.rcx == 1
    assert bench.cpu.dr6 & 0xF == (1 << index if hit else 0)
    if access == "mov [edi], edx":
        assert bench.read(watched + offset, 4) == 0x01020304  # the store was made, once


def test_every_iteration_of_a_string_instruction_is_seen() -> None:
    source = arm(0, DATA + 8, dr7(0, WRITE, 4)) + f"mov edi, {DATA:#x}; mov ecx, 4; cld; rep stosd; nop"
    bench, found = debugged(source)
    assert len(found) == 1 and bench.cpu.rdi == DATA + 16
    assert bench.words(DATA, 4, 4) == [bench.cpu.rax] * 4


def test_data_next_to_running_code_can_be_watched() -> None:
    watched = b.CODE + 0x800
    source = f"mov [{watched:#x}], ebx; nop; mov [{watched:#x}], eax"
    bench, found = debugged(arm(1, watched, dr7(1, WRITE, 4)) + source)
    assert found == [ARMING + 6, ARMING + 12] and bench.read(watched, 4) == bench.cpu.rax


def test_watched_code_that_is_overwritten_runs_in_its_new_form() -> None:
    where = b.CODE + ARMING + 7  # of INC ECX, which becomes INC EDX
    source = arm(0, where, dr7(0, WRITE)) + f"mov byte ptr [{where:#x}], 0x42; inc ecx; nop"
    bench, found = debugged(source)
    assert found == [ARMING + 7] and (bench.cpu.rcx, bench.cpu.rdx) == (0, 1)


def test_breakpoints_can_be_cleared_and_set_again() -> None:
    store = f"mov [{DATA:#x}], ebx;"
    off = "mov eax, 0x400; mov dr7, eax;"
    on = arm(0, DATA, dr7(0, WRITE, 4))
    bench, found = debugged(on + store + off + store + on + store)
    assert found == [ARMING + 6, 2 * ARMING + 26]
    assert bench.vm.processor.native.debugging == 1


def test_nothing_is_looked_at_once_all_are_clear() -> None:
    bench, found = debugged(arm(0, DATA, dr7(0, WRITE, 4)) + "mov eax, 0x400; mov dr7, eax; jmp l; l: jmp m; m: nop")
    assert not found and bench.vm.processor.native.debugging == 0 and bench.vm.processor.native.watching == 0


def test_changing_an_address_while_enabled() -> None:
    first, second = f"mov [{DATA:#x}], ebx;", f"mov [{DATA + 0x1000:#x}], ebx;"
    source = arm(0, DATA, dr7(0, WRITE, 4)) + second + f"mov eax, {DATA + 0x1000:#x}; mov dr0, eax;" + first + second
    bench, found = debugged(source)
    assert found == [ARMING + 6 + 8 + 12] and bench.cpu.rbx == 1


def test_a_single_step_and_a_data_breakpoint_are_one_trap() -> None:
    source = arm(0, DATA, dr7(0, WRITE, 4)) + f"pushfd; or dword ptr [esp], 0x100; popfd; mov [{DATA:#x}], ebx; nop"
    handler = "inc ebx; mov edx, dr6; and dword ptr [esp + 8], 0xfffffeff; iretd"
    bench, found = debugged(source, handler)
    assert found == [ARMING + 9 + 6]
    assert bench.cpu.rdx & 0x400F == 0x4001


def test_a_watched_instruction_that_faults_first_is_seen_when_it_is_repeated() -> None:
    bench = Bench()
    bench.paged()
    bench.write(b.HANDLER + 16, b.assemble("inc ebx; iretd", 32, b.HANDLER + 16))
    # #PF: map the page and go on
    fix = f"mov dword ptr [{b.TABLES + 0x1000 + (DATA + 0x1000 >> 12) * 4:#x}], {DATA + 0x1007:#x}; add esp, 4; iretd"
    bench.write(0xB000, b.assemble(fix, 32, 0xB000))
    bench.write(b.HANDLER + 16 * 14, b.assemble("jmp 0xb000", 32, b.HANDLER + 16 * 14))
    bench.map_page(DATA + 0x1000, 0)
    source = f"mov esi, {DATA:#x}; mov edi, {DATA + 0x1000:#x};" + arm(0, DATA, dr7(0, ACCESS, 4))
    bench.run(source + ".byte 0xa5; nop", 32)  # MOVSD
    assert bench.delivered() == [14, 1] and bench.cpu.rbx == 1


def test_io_breakpoints() -> None:
    bench = Bench()
    bench.protected()
    bench.write(b.HANDLER + 16, b.assemble("inc ebx; iretd", 32, b.HANDLER + 16))
    access = "mov al, 0x21; out 0xe9, al; nop; out 0x80, al"
    bench.run("mov eax, 8; mov cr4, eax;" + arm(0, 0xE9, dr7(0, 2)) + access, 32)
    assert bench.cpu.rbx == 1


WATCHES = """
    mov word ptr [4], offset comes\\@
    mov word ptr [6], 0
    mov eax, offset shared
    mov dr0, eax
    mov eax, 0x00010402     # G0, one byte, writes
    mov dr7, eax
"""
WRITES = """
    mov cx, {times}
write\\@:
    mov byte ptr [shared], cl
    loop write\\@
    lock inc byte ptr [done]
"""


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("schedule", [None, "seed=1", "seed=2"])
@pytest.mark.parametrize("watcher", [0, 1])
def test_a_data_breakpoint_is_of_one_processor(watcher: int, mmu: str, schedule: str | None) -> None:
    """Both write to the byte, and one of them watches it."""
    watches = WATCHES.replace("\\@", "")
    first, others = (WRITES.replace("\\@", f"_{number}").format(times=times) for number, times in enumerate((300, 200)))
    first, others = (watches + first, others) if watcher == 0 else (first, watches + others)
    finish = "finish:\n    pause\n    cmp byte ptr [done], 2\n    jne finish\n    mov al, 0\n    out 0xF4, al\n"
    data = "comes:\n    inc word ptr [hits]\n    iret\n.space 4096\nshared: .byte 0\ndone: .byte 0\nhits: .word 0\n"
    guest = boot(several(first + finish, others, data), cpus=2, mmu=mmu, schedule=schedule, events=["exception"])
    guest.expect_status(1, max_time="1s")
    assert [(event.cpu, event.vector) for event in guest.events] == [(watcher, 1)] * (300, 200)[watcher]


MOV_SS = f"mov edi, {DATA:#x}; mov [edi], ss;", "mov ss, [edi];"
POP_SS = f"mov word ptr [{DATA:#x}], ss; mov esp, {DATA:#x};", ".byte 0x17;"


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize(
    ("load", "following"),
    [
        (MOV_SS, "inc ecx"),
        (MOV_SS, "mov [0x30000], ecx"),
        (MOV_SS, "push ecx"),
        (MOV_SS, "cli"),
        (POP_SS, f"mov esp, {b.STACK0:#x}"),
    ],
)
def test_a_load_of_ss_holds_its_data_breakpoint_back(mmu: str, load: tuple[str, str], following: str) -> None:
    source = load[0] + arm(0, DATA, dr7(0, ACCESS, 2)) + load[1] + following
    bench, found = debugged(source + "; inc edx; nop", mmu=mmu)
    assert found == [len(b.assemble(source, 32))]
    assert bench.cpu.dr6 & 0xF == 1 and bench.cpu.rdx == 1


def test_an_interrupt_behind_a_load_of_ss_comes_first() -> None:
    bench = Bench("nested")
    bench.protected()
    bench.write(b.HANDLER + 16, b.assemble(COUNT, 32, b.HANDLER + 16))
    bench.write(b.HANDLER + 16 * 3, b.assemble("iretd", 32, b.HANDLER + 16 * 3))
    bench.run(MOV_SS[0] + arm(0, DATA, dr7(0, ACCESS, 2)) + MOV_SS[1] + "int3; nop", 32)
    faults = [event for event in bench.events if isinstance(event, ExceptionDelivery)]
    assert [event.vector for event in faults] == [3, 1]
    assert faults[1].rip == b.HANDLER + 16 * 3  # nothing of the handler has been executed


def test_a_load_of_ss_hides_the_breakpoint_of_the_next_instruction_on_intels_processors() -> None:
    source = "mov esi, ss;" + arm(0, b.CODE + 2 + ARMING + 2, dr7(0, EXECUTE))
    assert debugged(source + "mov ss, esi; inc ecx; nop", cpu="core2duo")[1] == []
    assert debugged(source + "mov ds, esi; inc ecx; nop", cpu="core2duo")[1] == [2 + ARMING + 2]
    assert debugged(source + "mov ss, esi; inc ecx; nop", cpu="qemu64")[1] == [2 + ARMING + 2]


@pytest.mark.parametrize("prefixes", ["", "0x2e, 0x2e, "])
def test_icebp_and_what_a_load_of_ss_holds_back_are_one_exception(prefixes: str) -> None:
    source = MOV_SS[0] + arm(0, DATA, dr7(0, ACCESS, 2)) + MOV_SS[1] + f".byte {prefixes}0xf1"
    bench, found = debugged(source + "; inc edx; nop")
    assert found == [len(b.assemble(source, 32))]
    assert bench.cpu.dr6 & 0xF == 1 and bench.cpu.rdx == 1


def test_a_single_step_ends_hlt() -> None:
    source = "pushfd; or dword ptr [esp], 0x100; popfd; nop; hlt; inc edx; pushfd; and dword ptr [esp], -0x101; popfd"
    bench, found = debugged(source + "; nop", handler="inc ebx; mov ecx, dr6; iretd")
    at = [len(b.assemble("pushfd; or dword ptr [esp], 0x100; popfd; nop" + more, 32)) for more in ("", "; hlt")]
    assert found[:2] == at and bench.cpu.rdx == 1 and bench.cpu.rcx & 1 << 14
