"""What CPUID promises can be executed in every mode, and what it does not is #UD.

An instruction a feature; for each mode and each state of CR0.EM, CR0.TS and CR4.OSFXSR the exception that the manual
names (SDM vol. 2A, 2.4 and 2.5, table 2-18 on; vol. 3A, 2.5 and 13.1; vol. 1, 8.3 and 9.6).
"""

from __future__ import annotations

import pytest

from emu.cpu.features import FEATURES
from tests.cpu.probing import EM, OSFXSR, TS, prepare, probe, run

UD, NM = 6, 7
PLAIN, X87, MMX, SSE, FXSAVE, VEX = "plain", "x87", "mmx", "sse", "fxsave", "vex"

# instructions in registers, or with memory at SI; the same bytes in every mode
INSTRUCTIONS: dict[str, tuple[str, str]] = {
    "fpu": (X87, "d9e8"),  # FLD1
    "tsc": (PLAIN, "0f31"),
    "cx8": (PLAIN, "0fc70c"),  # CMPXCHG8B [SI] or [RSP + ..]
    "cmov": (PLAIN, "0f44c1"),
    "clflush": (PLAIN, "0fae3c"),
    "mmx": (MMX, "0ffcc1"),  # PADDB MM0, MM1
    "fxsr": (FXSAVE, "0fae04"),
    "sse": (SSE, "0f58c1"),  # ADDPS
    "sse2": (SSE, "660f58c1"),
    "pni": (SSE, "f20f7cc1"),  # HADDPS
    "ssse3": (SSE, "660f3800c1"),  # PSHUFB
    "sse4.1": (SSE, "660f3840c1"),  # PMULLD
    "sse4.2": (SSE, "660f3837c1"),  # PCMPGTQ
    "pclmulqdq": (SSE, "660f3a44c100"),
    "aes": (SSE, "660f38dcc1"),
    "sse4a": (SSE, "660f79c1"),  # EXTRQ
    "popcnt": (PLAIN, "f30fb8c1"),
    "movbe": (PLAIN, "0f38f004"),
    "rdrand": (PLAIN, "0fc7f0"),
    "adx": (PLAIN, "660f38f6c1"),
    "rdtscp": (PLAIN, "0f01f9"),
    "bmi1": (VEX, "c4e278f2c1"),  # ANDN
    "bmi2": (VEX, "c4e279f7c1"),  # SHLX
    "3dnow": (MMX, "0f0fc19e"),  # PFADD
    "mmxext": (MMX, "0ff6c1"),  # PSADBW MM0, MM1
}


def code_of(name: str, mode: str) -> bytes:
    """With a memory operand in [SI], [ESI] or [RSI]."""
    code = bytes.fromhex(INSTRUCTIONS[name][1])
    if len(code) > 2 and code[-1] & 0xC7 == 4:
        return code if mode == "real" else code[:-1] + bytes([code[-1] | 2])
    return code


def expected(kind: str, mode: str, cr0: int, cr4: int) -> int | None:
    if kind == VEX:
        return UD if mode == "real" else None
    if kind == X87 and cr0 & (EM | TS) or kind == FXSAVE and cr0 & (EM | TS):
        return NM
    if kind in (MMX, SSE) and cr0 & EM or kind == SSE and not cr4 & OSFXSR:
        return UD
    return NM if kind in (MMX, SSE) and cr0 & TS else None


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_what_is_promised_can_be_executed(name: str, mode: str) -> None:
    kind = INSTRUCTIONS[name][0]
    for cr0, cr4 in ((0, OSFXSR), (0, 0), (EM, OSFXSR), (TS, OSFXSR), (EM | TS, OSFXSR), (TS, 0)):
        if kind in (X87, MMX, FXSAVE, PLAIN, VEX) and not cr4 and cr0:
            continue
        vector = probe(code_of(name, mode), mode, cr0=cr0, cr4=cr4, cpu="max", rsi=0x400)
        assert vector == expected(kind, mode, cr0, cr4), (hex(cr0), hex(cr4))


# the engine's translator does not ask for these
ALWAYS = {"fpu", "tsc", "fxsr", "clflush", "cx8", "mmx", "mmxext", "sse", "sse2", "pni", "sse4a"}


@pytest.mark.parametrize("name", sorted(set(INSTRUCTIONS) - ALWAYS))
def test_what_is_not_promised_is_refused(name: str) -> None:
    assert probe(code_of(name, "protected"), "protected", cpu=f"max,-{name}", rsi=0x400) == UD


def test_the_table_knows_the_features() -> None:
    """Those that are no instructions, or that other tests look at, are named here."""
    others = {
        "de", "pse", "msr", "pae", "mce", "apic", "sep", "mtrr", "pge", "mca", "pat", "pse36", "cx16", "pcid",
        "x2apic", "tsc-deadline", "xsave", "hypervisor", "fsgsbase", "tsc_adjust", "smep", "erms", "invpcid", "smap",
        "clflushopt", "clwb", "umip", "pku", "la57", "pks", "syscall", "nx", "pdpe1gb", "lm", "3dnowext", "lahf_lm",
        "cr8legacy", "abm", "invtsc", "xsaveopt", "xgetbv1", "arat",
    }  # fmt: skip
    assert set(INSTRUCTIONS) | others == set(FEATURES)
    assert not set(INSTRUCTIONS) & others


OSXSAVE, FSGSBASE = 1 << 18, 1 << 16


@pytest.mark.parametrize(
    "code, cr4, vector",
    [
        ("xgetbv", OSXSAVE, None),
        ("xgetbv", 0, UD),
        ("xsave [rsi]", OSXSAVE, None),
        ("xsave [rsi]", 0, UD),
        ("xrstor [rsi]", OSXSAVE, None),
        ("xsaveopt [rsi]", OSXSAVE, None),
        ("rdfsbase rax", FSGSBASE, None),
        ("rdfsbase rax", 0, UD),
        ("cmpxchg16b [rsi]", 0, None),
        ("lahf", 0, None),
        ("lzcnt eax, ecx", 0, None),
        ("clflushopt [rsi]", 0, None),
        ("clwb [rsi]", 0, None),
        ("monitor", 0, UD),
        ("mwait", 0, UD),
        ("vmcall", 0, UD),
        ("xsavec [rsi]", OSXSAVE, UD),
        ("xsaves [rsi]", OSXSAVE, UD),
        ("rdseed eax", 0, UD),
        (bytes.fromhex("f30fc7f8"), 0, UD),  # RDPID
        ("sha1msg1 xmm0, xmm1", OSFXSR, UD),
        ("vzeroupper", OSXSAVE | OSFXSR, UD),
        ("vpaddd ymm0, ymm1, ymm2", OSXSAVE | OSFXSR, UD),
        ("vcvtph2ps xmm0, xmm1", OSXSAVE | OSFXSR, UD),
        ("vfmadd132ps xmm0, xmm1, xmm2", OSXSAVE | OSFXSR, UD),
    ],
)
def test_by_state_of_cr4(code: str | bytes, cr4: int, vector: int | None) -> None:
    assert probe(code, cr4=cr4, cpu="max", rcx=0, rsi=0x20000) == vector


def test_the_states_of_xsave_are_those_that_can_be_enabled() -> None:
    bench = prepare("long", cpu="max")
    bench.cpu.cr4 |= OSXSAVE
    bench.follow_control_registers()
    assert run(bench, "mov eax, 0xD; xor ecx, ecx; cpuid; xor edx, edx; xor ecx, ecx; xsetbv; xgetbv", "long") is None
    assert bench.cpu.rax & 0b11 == 0b11 and not bench.cpu.rax & 0b1_1111_1100  # x87, SSE; no AVX, MPX, AVX-512
