"""Encodings that the processor refuses, and those that it does not, in each state of SSE and the x87 unit."""

from __future__ import annotations

import pytest

from tests.cpu import delivery_bench as b
from tests.cpu.probing import EM, OSFXSR, TS, Fault, prepare, probe, run

UD, NM, GP = 6, 7, 13
DATA = 0x20000

# general registers in VEX or SSE clothes: ANDN BLSR BZHI PEXT PDEP MULX BEXTR SHLX SARX SHRX RORX
GENERAL = {
    "andn": "c4e278f2c1", "blsr": "c4e278f3c9", "blsmsk": "c4e278f3d1", "blsi": "c4e278f3d9", "bzhi": "c4e278f5c1",
    "pext": "c4e27af5c1", "pdep": "c4e27bf5c1", "mulx": "c4e27bf6c1", "bextr": "c4e278f7c1", "shlx": "c4e279f7c1",
    "sarx": "c4e27af7c1", "shrx": "c4e27bf7c1", "rorx": "c4e37bf0c103", "adcx": "660f38f6c1", "adox": "f30f38f6c1",
    "movbe16": "660f38f006", "movbe": "0f38f006",
}  # fmt: skip


@pytest.mark.parametrize("cr0, state", [(0, 0), (EM, 0), (TS, 0), (0, OSFXSR)])
@pytest.mark.parametrize("mode", ["protected", "long"])
@pytest.mark.parametrize("name", GENERAL)
def test_general_registers_need_no_sse(name: str, mode: str, cr0: int, state: int) -> None:
    assert probe(bytes.fromhex(GENERAL[name]), mode, cr0=cr0, cr4=state, rsi=DATA) is None


def test_shlx_shifts_without_osfxsr() -> None:
    bench = prepare("long")
    bench.cpu.r8, bench.cpu.rcx = 5, 3
    bench.follow_control_registers()
    assert run(bench, "shlx rax, r8, rcx", "long") is None
    assert bench.cpu.rax == 40


@pytest.mark.parametrize(
    "code, cr0, cr4, vector",
    [
        ("movaps xmm0, xmm1", 0, OSFXSR, None),
        ("movaps xmm0, xmm1", 0, 0, UD),
        ("movaps xmm0, xmm1", EM, OSFXSR, UD),
        ("movaps xmm0, xmm1", TS, OSFXSR, NM),
        ("crc32 eax, ecx", 0, 0, None),
        ("popcnt eax, ecx", EM | TS, 0, None),
        (bytes.fromhex("c5f058c2"), 0, OSFXSR, UD),  # vaddps: there is no AVX
        (bytes.fromhex("c4e27100c2"), 0, OSFXSR, UD),  # vpshufb
        (bytes.fromhex("c4e270f4c1"), 0, OSFXSR, UD),
        (bytes.fromhex("c4e170f2c1"), 0, OSFXSR, UD),
    ],
)
def test_sse_depends_on_its_state(code: str | bytes, cr0: int, cr4: int, vector: int | None) -> None:
    assert probe(code, "long", cr0=cr0, cr4=cr4) == vector


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
@pytest.mark.parametrize(
    "code, locked",
    [
        ("01 06", True), ("00 06", True), ("29 06", True), ("31 06", True), ("0f ab 06", True), ("0f ba 2e 01", True),
        ("0f c1 06", True), ("0f b1 06", True), ("86 06", True), ("87 06", True), ("fe 06", True), ("ff 0e", True),
        ("f6 16", True), ("f7 1e", True), ("83 06 01", True), ("0f c7 0e", True),
        ("89 c0", False), ("89 06", False), ("8b 06", False), ("90", False), ("03 06", False), ("01 c0", False),
        ("39 06", False), ("83 3e 01", False), ("f6 26", False), ("ff 36", False), ("0f a3 06", False),
        ("0f ba 26 01", False), ("84 06", False), ("50", False), ("c6 06 01", False), ("f4", False), ("fb", False),
    ],
)  # fmt: skip
def test_where_lock_may_stand(code: str, locked: bool, mode: str) -> None:
    instruction = bytes.fromhex(code)
    if mode == "real" and instruction[-1] & 0xC7 == 6 and len(instruction) > 1:
        instruction = instruction[:-1] + bytes([instruction[-1] & ~7 | 4])  # [SI]
    elif mode == "real":
        instruction = b"\x67" + instruction
    assert probe(b"\xf0" + instruction, mode, rsi=0x400) == (None if locked else UD)


@pytest.mark.parametrize(
    "code, register, value",
    [
        ("f6 c8 03", "rax", 3),  # TEST, as with /0
        ("4c c7 c0 07 00 00 00", "rax", 7),  # MOV: REX.R says nothing
        ("44 c6 c0 09", "rax", 9),
    ],
)
def test_bits_that_say_nothing(code: str, register: str, value: int) -> None:
    bench = prepare("long")
    bench.cpu.rax = 3
    assert run(bench, bytes.fromhex(code), "long") is None
    assert getattr(bench.cpu, register) == value


def test_the_upper_bits_of_a_predicate_say_nothing() -> None:
    bench = prepare("long")
    bench.cpu.cr4 |= OSFXSR
    bench.follow_control_registers()
    code = "xorps xmm0, xmm0; movaps [0x20000], xmm0;"
    assert run(bench, b.assemble(code, 64) + bytes.fromhex("0fc2042500000200f8" "660f7ec0"), "long") is None
    assert bench.cpu.rax == 0xFFFF_FFFF  # equal


ALIGNED = ["movaps xmm1, [rsi]", "movaps [rsi], xmm1", "movdqa xmm1, [rsi]", "movdqa [rsi], xmm1", "movapd xmm1, [rsi]",
           "movntps [rsi], xmm1", "movntdq [rsi], xmm1", "movntdqa xmm1, [rsi]", "addps xmm1, [rsi]",
           "mulpd xmm1, [rsi]", "cvtdq2ps xmm1, [rsi]",
           "paddd xmm1, [rsi]", "pxor xmm1, [rsi]", "pshufd xmm1, [rsi], 1", "pshufb xmm1, [rsi]",
           "cmpps xmm1, [rsi], 2", "shufps xmm1, [rsi], 1", "haddps xmm1, [rsi]", "movshdup xmm1, [rsi]",
           "pminsb xmm1, [rsi]", "roundps xmm1, [rsi], 1", "aesenc xmm1, [rsi]", "psllw xmm1, [rsi]"]  # fmt: skip
ANYWHERE = ["movups xmm1, [rsi]", "movups [rsi], xmm1", "movdqu xmm1, [rsi]", "movdqu [rsi], xmm1", "lddqu xmm1, [rsi]",
            "addss xmm1, [rsi]", "addsd xmm1, [rsi]", "movq xmm1, [rsi]", "movd xmm1, [rsi]", "movlps xmm1, [rsi]",
            "movhps [rsi], xmm1", "cvtps2pd xmm1, [rsi]", "cvtdq2pd xmm1, [rsi]", "movddup xmm1, [rsi]",
            "pmovzxbw xmm1, [rsi]", "pinsrw xmm1, [rsi], 1", "pcmpistri xmm1, [rsi], 1", "roundss xmm1, [rsi], 1",
            "ucomisd xmm1, [rsi]", "cmpsd xmm1, [rsi], 1", "paddd mm1, [rsi]", "mov rax, [rsi]"]  # fmt: skip


@pytest.mark.parametrize("code", ALIGNED)
def test_operands_that_must_be_aligned(code: str) -> None:
    assert probe(code, rsi=DATA) is None
    for offset in (1, 4, 8, 15):
        assert probe(code, rsi=DATA + offset) == GP


@pytest.mark.parametrize("code", ANYWHERE)
def test_operands_that_may_lie_anywhere(code: str) -> None:
    assert probe(code, rsi=DATA + 1) is None


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_misaligned_operand_faults_at_its_instruction(mmu: str) -> None:
    bench = prepare("long", mmu)
    bench.cpu.cr4 |= OSFXSR
    bench.follow_control_registers()
    bench.cpu.rsi = DATA + 4
    before = "mov ecx, 5; sub ecx, 5;"
    assert run(bench, before + "movaps [rsi], xmm0", "long") == Fault(GP, 0, len(b.assemble(before, 64)))
    assert bench.stack(4, 8)[3] & 0x40  # ZF
    assert bench.read(DATA, 32) == 0
