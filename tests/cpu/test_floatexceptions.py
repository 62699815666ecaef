"""Floating-point exceptions that are not masked: #XM at once, #MF at the next waiting instruction."""

from __future__ import annotations

import struct

import pytest

from tests.cpu.delivery_bench import Bench
from tests.cpu.probing import OSFXSR, Fault, code_of, prepare, run

OSXMMEXCPT = 1 << 10
BUFFER = 0x20000
IE, ZE, PE = 1, 4, 32
SUMMARY = 0x8080
UNMASKED, MASKED = 0x0340, 0x037F


def bench_with(cr4: int = OSFXSR | OSXMMEXCPT, ne: bool = True) -> Bench:
    bench = prepare("long")
    bench.cpu.cr4 |= cr4
    if ne:
        bench.cpu.cr0 |= 1 << 5
    bench.follow_control_registers()
    bench.cpu.rsi = BUFFER
    bench.write(BUFFER, struct.pack("<ffffIHH", 1.0, 3.0, 0.0, 1e30, 0x1F80, UNMASKED, MASKED))
    return bench


@pytest.mark.parametrize(
    "code, mask, flags",
    [
        ("divss xmm0, xmm2", ZE, ZE),
        ("divss xmm0, xmm1", PE, PE),
        ("sqrtss xmm0, xmm3", IE, IE),
        ("cvttss2si rax, [rsi + 12]", IE, IE),
        ("addss xmm0, [rsi + 4]", ZE, None),
        ("divss xmm0, xmm1", ZE, None),
    ],
)
def test_sse_raises_what_is_not_masked(code: str, mask: int, flags: int | None) -> None:
    bench = bench_with()
    bench.write(BUFFER + 16, struct.pack("<I", 0x1F80 & ~(mask << 7)))
    start = (
        "movss xmm0, [rsi]; movss xmm1, [rsi + 4]; movss xmm2, [rsi + 8]; pcmpeqd xmm3, xmm3; pslld xmm3, 31;"
        "orps xmm3, xmm1; mov eax, 7; ldmxcsr [rsi + 16]"
    )
    before = bench_with()
    assert run(before, f"{start}; movss [rsi], xmm0", "long") is None
    fault = run(bench, f"{start}; {code}", "long")
    assert (fault and fault.vector) == (None if flags is None else 19)
    if flags is not None:
        assert fault is not None and fault.at == len(code_of(start, "long"))
        assert bench.cpu.rax == 7
        assert _mxcsr_in(bench) & 0x3F == flags
        assert _xmm0_in(bench) == before.read(BUFFER, 4)


def _mxcsr_in(bench: Bench) -> int:
    return int.from_bytes(bench.cpu.save()[816:820], "little")


def _xmm0_in(bench: Bench) -> int:
    return int.from_bytes(bench.cpu.save()[824:828], "little")


def test_without_osxmmexcpt_it_is_ud() -> None:
    bench = bench_with(OSFXSR)
    bench.write(BUFFER + 16, struct.pack("<I", 0x1F80 & ~(ZE << 7)))
    code = "movss xmm0, [rsi]; xorps xmm2, xmm2; ldmxcsr [rsi + 16]; divss xmm0, xmm2"
    fault = run(bench, code, "long")
    assert fault is not None and fault.vector == 6


@pytest.mark.parametrize(
    "code, pending",
    [
        ("fld1; fldz; fdivp st(1), st; fld1", "fld1"),
        ("fld1; fldz; fdivp st(1), st; fwait", "fwait"),
        ("fld1; fldz; fdivp st(1), st; paddd mm0, mm0", "paddd mm0, mm0"),
        ("fld1; fchs; fsqrt; fldcw [rsi + 22]", "fldcw [rsi + 22]"),
        ("fld dword ptr [rsi + 12]; fistp dword ptr [rsi]; fnop", "fnop"),
        ("fldpi; fstp dword ptr [rsi]; fld1", "fld1"),
    ],
)
def test_x87_exceptions_wait_for_the_next_instruction(code: str, pending: str) -> None:
    code = f"fninit; fldcw [rsi + 20]; {code}"
    expected = Fault(16, -1, len(code_of(code, "long")) - len(code_of(pending, "long")))
    assert run(bench_with(), code, "long") == expected


@pytest.mark.parametrize("ending", ["fnstsw ax", "fnclex; fld1", "fninit; fld1", "fnstcw [rsi]", "fnstenv [rsi]; nop"])
def test_instructions_that_do_not_wait(ending: str) -> None:
    assert run(bench_with(), f"fninit; fldcw [rsi + 20]; fld1; fldz; fdivp st(1), st; {ending}", "long") is None


def test_an_exception_that_is_unmasked_later_is_pending_then() -> None:
    code = "fninit; fld1; fldz; fdivp st(1), st; fldcw [rsi + 20]; fld1"
    fault = run(bench_with(), code, "long")
    assert fault is not None and (fault.vector, fault.at) == (16, len(code_of(code, "long")) - 2)


def test_the_operands_stay() -> None:
    """The division by zero does not pop; the conversion does not store."""
    bench = bench_with()
    assert run(bench, "fninit; fldcw [rsi + 20]; fldpi; fldz; fdivp st(1), st; fnstsw [rsi + 24]; fnsave [rsi + 32]",
               "long") is None  # fmt: skip
    assert bench.read(BUFFER + 24, 2) == SUMMARY | 6 << 11 | ZE
    bench = bench_with()
    bench.write(BUFFER, struct.pack("<f", 1e30))
    code = "fninit; fldcw [rsi + 20]; fld dword ptr [rsi]; fistp dword ptr [rsi]; fnstsw ax"
    assert run(bench, code, "long") is None
    assert bench.cpu.rax & 0xFFFF == SUMMARY | 7 << 11 | IE
    assert bench.read(BUFFER, 4) == int.from_bytes(struct.pack("<f", 1e30), "little")


def test_fnstenv_masks_all() -> None:
    bench = bench_with()
    assert run(bench, "fninit; fldcw [rsi + 20]; fnstenv [rsi + 32]; fnstcw [rsi]", "long") is None
    assert (bench.read(BUFFER + 32, 2), bench.read(BUFFER, 2)) == (UNMASKED, MASKED)


@pytest.mark.parametrize("mxcsr, expected", [(0x1F80, 1), (0x9F80, 0)])
def test_results_are_flushed_to_zero(mxcsr: int, expected: int) -> None:
    """MXCSR.FZ: SSE's results, and none of the x87's."""
    bench = bench_with()
    bench.write(BUFFER, struct.pack("<IfIf", 0x0080_0000, 0.5, mxcsr, 1.0))
    code = "ldmxcsr [rsi + 8]; movss xmm0, [rsi]; mulss xmm0, [rsi + 4]; movss [rsi + 16], xmm0;"
    code += "fninit; fld dword ptr [rsi]; fmul dword ptr [rsi + 4]; fstp dword ptr [rsi + 20]"
    assert run(bench, code, "long") is None
    assert bench.read(BUFFER + 16, 4) == 0x0040_0000 * expected
    assert bench.read(BUFFER + 20, 4) == 0x0040_0000


@pytest.mark.parametrize("code, flags", [("rcpps xmm0, xmm1", 0), ("rsqrtss xmm0, xmm1", 0),
                                         ("roundss xmm0, xmm1, 8", 0), ("roundss xmm0, xmm1, 0", PE)])  # fmt: skip
def test_approximations_and_roundings_that_are_not_exact(code: str, flags: int) -> None:
    bench = bench_with()
    bench.write(BUFFER, struct.pack("<4f", 0.3, 0.3, 0.3, 0.3))
    assert run(bench, f"ldmxcsr [rsi + 16]; movups xmm1, [rsi]; {code}; stmxcsr [rsi]", "long") is None
    assert bench.read(BUFFER, 4) & 0x3F == flags


@pytest.mark.parametrize("code", ["phaddd {0}, {0}", "phaddw {0}, {0}", "phsubd {0}, {0}"])
@pytest.mark.parametrize("register", ["xmm1", "mm1"])
def test_horizontal_sums_of_a_register_with_itself(code: str, register: str) -> None:
    copy = {"xmm1": "movdqa xmm2, xmm1", "mm1": "movq mm2, mm1"}[register]
    load, store, size = {"xmm1": ("movups xmm1, [rsi]", "movups [rsi + 32], ", 16),
                         "mm1": ("movq mm1, [rsi]", "movq [rsi + 32], ", 8)}[register]  # fmt: skip
    seen = []
    for program in (code.format(register), f"{copy}; {code.split()[0]} {register}, {register.replace('1', '2')}"):
        bench = bench_with()
        bench.write(BUFFER, bytes(range(3, 19)))
        assert run(bench, f"{load}; {program}; {store}{register}", "long") is None
        seen.append([bench.read(BUFFER + 32 + offset, 8) for offset in range(0, size, 8)])
    assert seen[0] == seen[1]


def test_mmx_instructions_of_ssse3_make_all_registers_valid() -> None:
    bench = bench_with()
    assert run(bench, "fninit; fld1; pabsd mm0, mm1; fnstenv [rsi]", "long") is None
    assert bench.read(BUFFER + 8, 2) != 0xFFFF and bench.read(BUFFER + 4, 2) >> 11 & 7 == 0


@pytest.mark.parametrize("code", [b"\x41\x9f", b"\x48\x9f"])
def test_lahf_does_not_look_at_rex(code: bytes) -> None:
    bench = bench_with()
    rsp = bench.cpu.rsp
    assert run(bench, b"\x31\xc0" + code, "long") is None  # xor eax, eax: ZF, PF
    assert (bench.cpu.rax, bench.cpu.rsp) == (0x4600, rsp)


@pytest.mark.parametrize("code, size", [("cvtps2pd xmm0, [rsi]", 8), ("cvtdq2pd xmm0, [rsi]", 8),
                                        ("roundsd xmm0, [rsi], 0", 8), ("roundss xmm0, [rsi], 0", 4),
                                        ("punpcklbw mm0, [rsi]", 4)])  # fmt: skip
def test_no_more_than_the_operand_is_read(code: str, size: int) -> None:
    """An operand at the very end of the last mapped page."""
    for missing, vector in ((0, None), (1, 14)):
        bench = bench_with()
        bench.cpu.rsi = (1 << 20) - size + missing  # the bench maps 1 MiB
        fault = run(bench, code, "long")
        assert (fault and fault.vector) == vector
