"""TF, RF, and the shadows of STI and MOV SS (SDM vol. 2A, MOV; vol. 2B, POP, STI; vol. 3B, 17.3.1)."""

from __future__ import annotations

import pytest

from emu.engine.events import ExceptionDelivery
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench
from tests.cpu.probing import code_of

MMUS = ("shadow", "nested")
SET = "pushfd; or dword ptr [esp], 0x100; popfd;"
CLEAR = "pushfd; and dword ptr [esp], 0xFFFFFEFF; popfd;"


def traps(source: str, mmu: str = "nested") -> list[str]:
    """Run 32-bit code whose instructions are separated by ``;``: those behind which #DB came, by their text."""
    bench = Bench(mmu)
    bench.protected()
    bench.write(b.HANDLER + 16, b.assemble("inc ebx; iretd", 32, b.HANDLER + 16))
    bench.write(b.HANDLER + 16 * 0x20, b.assemble("iretd", 32))
    bench.cpu.rsi, bench.cpu.rdi, bench.cpu.rcx = 0x20000, 0x21000, 3
    bench.run(source, 32)
    at, ends = b.CODE, {}
    for text in filter(None, map(str.strip, source.split(";"))):
        at += len(b.assemble(text, 32, at))
        ends[at] = text
    faults = [event for event in bench.events if isinstance(event, ExceptionDelivery) and event.vector == 1]
    assert all(event.error == -1 for event in faults)
    return [ends.get(event.rip, f"{event.rip - b.CODE:#x}") for event in faults]


END = ["pushfd", "and dword ptr [esp], 0xFFFFFEFF", "popfd"]


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize(
    "code, expected",
    [
        ("nop; inc eax", ["nop", "inc eax"]),
        ("mov eax, 0x10; mov ss, ax; nop; inc eax", ["mov eax, 0x10", "nop", "inc eax"]),
        ("push ss; pop ss; nop; inc eax", ["push ss", "nop", "inc eax"]),
        ("sti; nop; cli", ["sti", "nop", "cli"]),
        ("mov eax, cr0; mov cr0, eax; cpuid", ["mov eax, cr0", "mov cr0, eax", "cpuid"]),
        ("out 0x80, al; in al, 0x80", ["out 0x80, al", "in al, 0x80"]),
    ],
)
def test_single_steps(code: str, expected: list[str], mmu: str) -> None:
    assert traps(f"{SET} {code}; {CLEAR} nop", mmu) == expected + END


def test_each_pass_of_a_string_instruction_is_a_step() -> None:
    found = traps(f"{SET} rep movsb; nop; {CLEAR} nop")
    assert len(found) == 3 + 1 + 3 and found[2:4] == ["rep movsb", "nop"]


def test_int_is_no_step() -> None:
    assert traps(f"{SET} int 0x20; nop; inc eax; {CLEAR} nop") == ["nop", "inc eax", *END]


@pytest.mark.parametrize("mmu", MMUS)
def test_a_fault_pushes_rf_and_pushf_does_not_show_it(mmu: str) -> None:
    bench = Bench(mmu)
    bench.protected()
    # the handler keeps its image of EFLAGS and makes the access good; the instruction behind is PUSHF
    bench.write(b.HANDLER + 16 * 6, b.assemble("mov eax, [esp + 8]; mov dword ptr [esp], 0x8002; iretd", 32))
    bench.run("ud2; pushfd; pop ebx; pushfd; pop ecx", 32)
    assert bench.cpu.rax & b.RF and not bench.cpu.rbx & b.RF and not bench.cpu.rcx & b.RF


@pytest.mark.parametrize("debugging", [0x400, 0x402])
def test_iret_may_load_rf_for_one_instruction(debugging: int) -> None:
    bench = Bench()
    bench.protected()
    bench.cpu.dr7 = debugging
    code = "pushfd; or dword ptr [esp], 0x10000; push cs; push 0x8010; iretd; nop; nop; nop"
    padding = 0x10 - len(code_of(code[: code.index("; nop")], "protected"))
    bench.run(code[: code.index("; nop")] + "; nop" * padding + "; pushfd; pop ebx; pushfd; pop ecx", 32)
    assert not bench.cpu.rbx & b.RF and not bench.cpu.rcx & b.RF and not bench.eflags & b.RF


def test_rf_outlives_a_wait_for_memory() -> None:
    """An instruction with a breakpoint that waits for the DMM after RF has let it begin is not hit again."""
    bench = Bench()
    bench.protected()
    bench.write(b.HANDLER + 16, b.assemble("inc ebx; or dword ptr [esp + 8], 0x10000; iretd", 32, b.HANDLER + 16))
    arm = "mov eax, {:#x}; mov dr0, eax; mov eax, 0x402; mov dr7, eax; nop;"
    at = b.CODE + len(code_of(arm.format(0x12345), "protected"))
    bench.run(arm.format(at) + "mov dword ptr [0x70000], 7; nop", 32)  # a page that nobody has touched
    assert bench.cpu.rbx == 1 and bench.read(0x70000, 4) == 7
