"""Where execution cannot go on, and accesses that are not canonical: which exception, and at which instruction."""

from __future__ import annotations

import pytest

from emu.engine.vectors import VECTOR_AC, VECTOR_GP, VECTOR_SS
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench
from tests.cpu.probing import Fault, code_of, prepare, probe, run

NONCANONICAL = 0x8000_0000_0000
MMUS = ("shadow", "nested")


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize(
    "branch",
    ["call rax", "jmp rax", "call [rbx]", "jmp [rbx]", "push rax; ret", "push rax; ret 0x18", "push rax; ret 0x9000"],
)
def test_a_branch_to_nowhere_faults_itself(branch: str, mmu: str) -> None:
    bench = prepare("long", mmu)
    bench.cpu.rax, bench.cpu.rbx = NONCANONICAL, 0x20000
    bench.write(0x20000, NONCANONICAL.to_bytes(8, "little"))
    before, _, last = branch.rpartition("; ")
    begin = "nop; nop; nop;" + before + ";" * bool(before)
    fault = run(bench, begin + last, "long")
    assert fault == Fault(VECTOR_GP, 0, len(code_of(begin, "long")))
    frame = bench.stack(6, 8)
    assert frame[4] == b.STACK0 - 8 * bool(before)  # RSP as it was before the branch


def test_a_far_return_to_nowhere() -> None:
    assert probe("mov rax, 0x800000000000; push 8; push rax; rex64 retf".replace("rex64 retf", "retfq")) == VECTOR_GP


@pytest.mark.parametrize(
    "code, vector",
    [
        ("mov rbx, [rax]", VECTOR_GP),
        ("mov [rax + 8], rbx", VECTOR_GP),
        ("mov rbx, [rbp]", VECTOR_SS),
        ("mov rbx, [rbp + rcx * 2]", VECTOR_SS),
        ("mov rbx, [rax + rbp]", VECTOR_GP),
        ("mov rbx, [rsp]", VECTOR_SS),
        ("mov rbx, ds:[rbp]", VECTOR_SS),  # DS, ES and SS prefixes say nothing in 64-bit mode
        ("mov rbx, fs:[rbp]", VECTOR_GP),
        ("push rbx", VECTOR_SS),
        ("pop rbx", VECTOR_SS),
        ("call 0x8010", VECTOR_SS),
        ("ret", VECTOR_SS),
        ("leave", VECTOR_SS),
        ("push [rax]", VECTOR_GP),
        ("mov rbx, [r13]", VECTOR_GP),
    ],
)
def test_stack_accesses_that_are_not_canonical(code: str, vector: int) -> None:
    bench = prepare("long")
    bench.gate64(VECTOR_SS, ist=1)
    bench.gate64(VECTOR_GP, ist=1)
    bench.write(b.TSS + 36, b.STACK_TSS.to_bytes(8, "little"))
    for register in ("rax", "rbp", "r13"):
        setattr(bench.cpu, register, NONCANONICAL)
    bench.cpu.rcx = 0
    if "push [" not in code:
        bench.cpu.rsp = NONCANONICAL + 0x100
    assert run(bench, code, "long") == Fault(vector, 0, 0)


def test_a_return_releases_up_to_64k() -> None:
    bench = prepare("long")
    bench.cpu.rsp = 0x30000
    assert run(bench, "push 0x8010; ret 0x8008; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop", "long") is None
    assert bench.cpu.rsp == 0x38008
    bench = prepare("protected")
    bench.cpu.rsp = 0x30000
    assert run(bench, "push 0x8010; ret 0xFFFC; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop", "protected") is None
    assert bench.cpu.rsp == 0x3FFFC


def _real_at(ip: int, code: bytes) -> Bench:
    bench = prepare("real")
    bench.cpu.cs.set(0, 0, 0xFFFF, b.CODE_16)
    bench.write(ip, code)
    bench.cpu.rip = ip
    return bench


@pytest.mark.parametrize("mmu", MMUS)
@pytest.mark.parametrize(
    "code, at",
    [
        (b"\x90\x66\xe9\x00\x00\x02\x00", 0xF001),  # JMP rel32 beyond FFFF
        (b"\x90\x66\xe8\x00\x00\x02\x00", 0xF001),  # CALL
        (b"\x66\x68\x00\x00\x01\x00\x66\xc3", 0xF006),  # RET
    ],
)
def test_ip_beyond_ffff_in_real_mode(code: bytes, at: int, mmu: str) -> None:
    bench = _real_at(0xF000, code)
    sp = bench.cpu.rsp
    fault = run(bench, b"", "real")
    assert fault is not None and (fault.vector, fault.at) == (VECTOR_GP, at)
    assert bench.cpu.rsp & 0xFFFF in ((sp - 6) & 0xFFFF, (sp - 10) & 0xFFFF)


def test_straight_code_past_the_segment() -> None:
    bench = _real_at(0xFFFE, b"\x40\x40\x40\x40")
    fault = run(bench, b"", "real")
    assert fault is not None and fault.vector == VECTOR_GP and bench.cpu.rax == 2
    bench = _real_at(0xFFFD, b"\x40\x05\x11\x11\x11")  # ADD AX, imm16 does not lie within it
    fault = run(bench, b"", "real")
    assert fault is not None and (fault.vector, fault.at) == (VECTOR_GP, 0xFFFE) and bench.cpu.rax == 1


def test_eip_has_32_bits() -> None:
    bench = prepare("protected")
    bench.cpu.cs.set(b.CODE0, 0x20000, 0xFFFF_FFFF, b.CODE_32)
    bench.segment(b.CODE0, 0x20000, 0xFFFFF, b.CODE_32)
    bench.write(0x1FFFC, b"\x40\x40\x40\x40\x43\xf4")
    bench.cpu.rip = 0xFFFF_FFFC
    assert run(bench, b"", "protected") is None
    assert (bench.cpu.rax, bench.cpu.rbx, bench.cpu.rip) == (4, 1, 2)


@pytest.mark.parametrize("prefixes", [b"", b"\x66", b"\x2e\x66\x67\x36", b"\x48"])
def test_a_refused_int_is_reported_at_its_first_byte(prefixes: bytes) -> None:
    bench = prepare("long", ring=3)
    fault = run(bench, b"\x90" + prefixes + b"\xcd\x20", "long")  # the gate has DPL 0
    assert fault == Fault(VECTOR_GP, 0x102, 1)


AM, AC = 1 << 18, 1 << 18


@pytest.mark.parametrize(
    "code, misaligned",
    [
        ("mov eax, [rsi + 1]", True), ("mov ax, [rsi + 1]", True), ("mov al, [rsi + 1]", False),
        ("mov [rsi + 4], rax", True), ("mov [rsi + 8], rax", False), ("add [rsi + 2], eax", True),
        ("fld dword ptr [rsi + 2]", True), ("push rax", False), ("movups xmm0, [rsi + 4]", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ring, flags, cr0", [(3, AC, AM), (3, 0, AM), (3, AC, 0), (0, AC, AM)])
def test_alignment_checks(code: str, misaligned: bool, ring: int, flags: int, cr0: int) -> None:
    bench = prepare("long", ring=ring)
    bench.cpu.cr0 |= cr0
    bench.cpu.cr4 |= 1 << 9
    bench.cpu.rsi = 0x20000
    bench.set_eflags(2 | flags | b.IOPL3)
    bench.follow_control_registers()
    fault = run(bench, "nop; " + code, "long")  # HLT at its end is #GP at CPL 3
    if misaligned and ring == 3 and flags and cr0:
        assert fault == Fault(VECTOR_AC, 0, 1)
    else:
        assert fault is None or fault.vector != VECTOR_AC


def test_cr8_is_the_task_priority() -> None:
    bench = prepare("long")
    assert run(bench, "mov eax, 5; mov cr8, rax; xor eax, eax; mov rbx, cr8", "long") is None
    assert bench.cpu.rbx == 5
    assert bench.vm.platform.lapics[0].registers[8] == 0x50
