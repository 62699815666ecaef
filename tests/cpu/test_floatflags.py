"""The exception flags of x87 and SSE, as FNSTSW, FNSAVE, FXSAVE and STMXCSR show them."""

from __future__ import annotations

import struct

import pytest

from tests.cpu.probing import OSFXSR, prepare, probe, run

IE, ZE, OE, UE, PE = 1, 4, 8, 16, 32
BUFFER = 0x20000
QNAN, SNAN, HUGE = 0x7FC0_0000, 0x7FA0_0000, 0x7F00_0000


def status(code: str) -> int:
    bench = prepare("long")
    bench.cpu.rsi = BUFFER
    bench.write(BUFFER, struct.pack("<IIIf", QNAN, SNAN, HUGE, 1e10))
    assert run(bench, f"fninit; {code}; fnstsw ax", "long") is None
    return bench.cpu.rax & 0x3F


@pytest.mark.parametrize(
    "code, flags",
    [
        ("fldpi; fistp dword ptr [rsi]", PE),
        ("fldpi; fisttp dword ptr [rsi]", PE),
        ("fldpi; fist word ptr [rsi]", PE),
        ("fldpi; fisttp qword ptr [rsi]", PE),
        ("fld1; fistp dword ptr [rsi]", 0),
        ("fld dword ptr [rsi + 12]; fistp dword ptr [rsi]", IE),
        ("fld dword ptr [rsi + 12]; fisttp dword ptr [rsi]", IE),
        ("fld dword ptr [rsi + 12]; fistp word ptr [rsi]", IE),
        ("fld dword ptr [rsi + 12]; fisttp word ptr [rsi]", IE),
        ("fldpi; fsqrt", PE),
        ("fld1; fchs; fsqrt", IE),
        ("fldpi; fstp dword ptr [rsi]", PE),
        ("fld1; fstp dword ptr [rsi]", 0),
        ("fld1; fldl2t; fyl2x", PE),
        ("fldpi; fsin", PE),
        ("fld dword ptr [rsi]; fld1; fcomip st, st(1)", IE),
        ("fld dword ptr [rsi]; fld1; fucomip st, st(1)", 0),
        ("fld dword ptr [rsi + 4]; fld1; fucomip st, st(1)", IE),
        ("fld1; fldz; fdivp", ZE),
        ("fldpi; fld1; fprem", 0),
        ("fldpi; fld1; faddp", PE),
        ("fldpi; fstp dword ptr [rsi]; fnclex", 0),
        ("fldpi; fstp dword ptr [rsi]; fninit", 0),
        ("fldpi; fstp dword ptr [rsi]; fnstenv [rsi]; fninit; fldenv [rsi]", PE),
        ("fldpi; fstp dword ptr [rsi]; fnsave [rsi]; fnclex; frstor [rsi]", PE),
        ("fldpi; fstp dword ptr [rsi]; fnsave [rsi]", 0),
        ("fldpi; fstp dword ptr [rsi]; fxsave [rsi]; fninit; fxrstor [rsi]", PE),
    ],
)
def test_the_status_word(code: str, flags: int) -> None:
    if code == "fld1; fldz; fdivp":
        code = "fldz; fld1; fdivrp"
    assert status(code) == flags or flags == ZE and status(code) & ~IE == ZE


def test_an_invalid_conversion_gives_the_indefinite() -> None:
    bench = prepare("long")
    bench.cpu.rsi = BUFFER
    bench.write(BUFFER, struct.pack("<f", 1e20))
    code = "fninit; fld dword ptr [rsi]; fld dword ptr [rsi]; fld dword ptr [rsi]; fisttp dword ptr [rsi + 8];"
    assert run(bench, code + "fistp word ptr [rsi + 16]; fisttp qword ptr [rsi + 24]", "long") is None
    assert bench.read(BUFFER + 8, 4) == 1 << 31
    assert bench.read(BUFFER + 16, 2) == 1 << 15
    assert bench.read(BUFFER + 24, 8) == 1 << 63


def mxcsr(code: str) -> int:
    bench = prepare("long")
    bench.cpu.cr4 |= OSFXSR
    bench.follow_control_registers()
    bench.cpu.rsi = BUFFER
    bench.write(BUFFER, struct.pack("<ffffI", 1.0, 3.0, 0.0, 3e38, 0x1F80))
    assert run(bench, f"ldmxcsr [rsi + 16]; movss xmm0, [rsi]; {code}; stmxcsr [rsi + 20]", "long") is None
    return bench.read(BUFFER + 20, 4) & 0x3F


@pytest.mark.parametrize(
    "code, flags",
    [
        ("addss xmm0, xmm0", 0),
        ("divss xmm0, [rsi + 4]", PE),
        ("divss xmm0, [rsi + 8]", ZE),
        ("xorps xmm0, xmm0; divss xmm0, [rsi + 8]", IE),
        ("movss xmm0, [rsi + 12]; addss xmm0, xmm0", OE | PE),
        ("divss xmm0, [rsi + 4]; ldmxcsr [rsi + 16]", 0),
        ("divss xmm0, [rsi + 4]; fxsave [rsi + 0x100]; ldmxcsr [rsi + 16]; fxrstor [rsi + 0x100]", PE),
    ],
)
def test_mxcsr(code: str, flags: int) -> None:
    assert mxcsr(code) == flags


def test_reserved_bits_of_mxcsr() -> None:
    assert probe("mov dword ptr [rsi], 0x11F80; ldmxcsr [rsi]", rsi=BUFFER) == 13


def test_the_control_word_after_power_up() -> None:
    bench = prepare("long")
    bench.cpu.rsi = BUFFER
    assert run(bench, "fnstcw [rsi]; fnstsw [rsi + 2]; fninit; fnstcw [rsi + 4]", "long") is None
    assert bench.words(BUFFER, 3, 2) == [0x40, 0, 0x37F]


SNAN_64, SNAN_80 = b"\x01" + bytes(5) + b"\xf0\x7f", bytes(7) + b"\xa0\xff\x7f"


@pytest.mark.parametrize(
    ("load", "store"),
    [
        ("fld dword ptr [rsi]", None),
        ("fld qword ptr [rsi + 16]", None),
        ("fld1; fadd dword ptr [rsi]", None),
        ("fld1; fadd qword ptr [rsi + 16]", None),
        ("fld tbyte ptr [rsi + 32]; fld tbyte ptr [rsi + 32]", "fstp dword ptr [rsi + 64]"),
        ("fld tbyte ptr [rsi + 32]; fld tbyte ptr [rsi + 32]", "fstp qword ptr [rsi + 64]"),
    ],
)
def test_a_signalling_nan_becomes_quiet(load: str, store: str | None) -> None:
    bench = prepare("long")
    bench.cpu.rsi = BUFFER
    bench.write(BUFFER, struct.pack("<I", SNAN))
    bench.write(BUFFER + 16, SNAN_64)
    bench.write(BUFFER + 32, SNAN_80)
    code = f"fninit; {load}; {store or 'nop'}; fnstsw ax; mov ebx, eax; fstp tbyte ptr [rsi + 80]"
    assert run(bench, code, "long") is None
    assert bench.cpu.rbx & 0x3F == IE
    significand = bench.read(BUFFER + 80, 8)
    if store is None:
        assert significand >> 62 == 3
    else:
        assert significand == 0xA000_0000_0000_0000  # the register keeps it as it is
        narrow = "dword" in store
        assert bench.read(BUFFER + 64, 4 if narrow else 8) == (0x7FE0_0000 if narrow else 0x7FFC_0000_0000_0000)
