"""Models of processors: what CPUID shows, and that nothing is promised which cannot be executed."""

from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

import emu
from emu.bench.longmode import CODE, DATA, USER_CODE, USER_DATA, USER_STACK, assemble, long_mode_vm
from emu.cli import main
from emu.cpu.features import ALIASES, FEATURES, NEEDS
from emu.cpu.models import DEFAULT, MODELS, parse_cpu
from emu.errors import BadInput
from emu.machine.vm import Stop

LEAVES = {  # by word, of the model that is the default: as Linux has seen them on emu ever since
    "1.edx": 0x078B_FBFD, "1.ecx": 0xC7F8_2203, "7.ebx": 0x0098_018B, "80000001.edx": 0x2DD3_FBFD,
    "80000001.ecx": 0x71, "80000007.edx": 0x100, "d.1.eax": 5, "6.eax": 4, "d.0.eax": 3,
}  # fmt: skip

CPUID_GUEST = """
.code16
    mov di, 0x6000
    lea si, [leaves]
again:
    mov eax, [si]
    mov ecx, [si + 4]
    cpuid
    mov [di], eax
    mov [di + 4], ebx
    mov [di + 8], ecx
    mov [di + 12], edx
    add di, 16
    add si, 8
    lea bx, [end]
    cmp si, bx
    jne again
    mov al, 0
    out 0xF4, al
leaves:
    .long 0, 0, 1, 0, 7, 0, 0xD, 0, 0xD, 1, 0x80000000, 0, 0x80000001, 0, 0x80000008, 0, 2, 0
end:
"""
ASKED = ("0", "1", "7", "d.0", "d.1", "80000000", "80000001", "80000008", "2")


def seen(cpu: str | None) -> dict[str, tuple[int, int, int, int]]:
    """What a guest gets from CPUID: EAX, EBX, ECX, EDX of the leaves of ASKED."""
    from emu.testing import boot

    guest = boot(CPUID_GUEST, ram="1M", mmu="nested", cpu=cpu)
    assert guest.run(max_time="1ms") == 1
    words = struct.unpack("<36I", guest.vm.memory.read(0x6000, 144))
    return {leaf: words[4 * i : 4 * i + 4] for i, leaf in enumerate(ASKED)}  # type: ignore[misc]


def test_the_default_is_what_it_was() -> None:
    assert dict(parse_cpu(None).identity.words) == LEAVES
    leaves = seen(None)
    assert leaves["0"] == (0xD, 0x6874_7541, 0x444D_4163, 0x6974_6E65)
    assert leaves["1"][0] == 0x80_0F12 and leaves["1"][2:] == (LEAVES["1.ecx"], LEAVES["1.edx"])
    assert leaves["7"][1:] == (LEAVES["7.ebx"], 0, 0)
    assert (leaves["80000000"][0], leaves["80000001"][2:]) == (0x8000_001E, (0x71, 0x2DD3_FBFD))
    assert leaves["d.0"][0] == 3 and leaves["80000008"][0] == 0x3028


@pytest.mark.parametrize("name", MODELS)
def test_a_guest_sees_its_model(name: str) -> None:
    model = MODELS[name]
    leaves = seen(name)
    vendor = struct.pack("<3I", leaves["0"][1], leaves["0"][3], leaves["0"][2]).decode()
    version = leaves["1"][0]
    family, number = version >> 8 & 15, version >> 4 & 15
    if family == 15:
        family += version >> 20 & 255
    if family >= 6:
        number |= version >> 12 & 0xF0
    assert (vendor, family, number, version & 15) == (model.vendor, model.family, model.model, model.stepping)
    shown = {
        "1.edx": leaves["1"][3], "1.ecx": leaves["1"][2], "7.ebx": leaves["7"][1], "7.ecx": leaves["7"][2],
        "80000001.edx": leaves["80000001"][3], "80000001.ecx": leaves["80000001"][2], "d.1.eax": leaves["d.1"][0],
    }  # fmt: skip
    for feature, (word, bit) in FEATURES.items():
        if word in shown and (leaves["80000000"][0] >= 0x8000_0001 or not word.startswith("8")):
            if int(word.partition(".")[0], 16) <= leaves["0"][0] or word.startswith("8"):
                assert bool(shown[word] & bit) == (feature in model.features), feature
    if 2 <= leaves["0"][0] < 4:  # FF refers to leaf 4; the C library would look for its end for ever
        assert b"\xff" not in struct.pack("<4I", *leaves["2"])
    if "lm" in model.features:
        assert leaves["80000008"][0] == (0x3928 if "la57" in model.features else 0x3028)


def test_models_are_whole() -> None:
    for name, model in MODELS.items():
        for feature in model.features:
            assert model.features.issuperset(NEEDS.get(feature, ())), (name, feature)
    assert MODELS["max"].features == frozenset(FEATURES)
    assert set(NEEDS) <= set(FEATURES) and set(ALIASES.values()) <= set(FEATURES)


def test_features_come_and_go() -> None:
    assert parse_cpu("+pcid").features == MODELS[DEFAULT].features | {"pcid"}
    assert parse_cpu("EPYC,-smap,+smap") == parse_cpu("EPYC") == parse_cpu(None)
    left = parse_cpu("Nehalem,-sse4_1").features
    assert MODELS["Nehalem"].features - left == {"sse4.1", "sse4.2"}  # which needs it
    assert "pku" not in parse_cpu("max,-xsave").features


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ryzen", "--cpu: no model 'ryzen'; there are 486, pentium,"),
        ("EPYC,avx", "--cpu: 'avx': expected +feature or -feature"),
        ("EPYC,+avx2", "--cpu: no feature 'avx2' that can be executed; --cpu help lists them"),
        ("486,+sse", "--cpu: sse needs fxsr: +fxsr"),
        ("", "--cpu: no model ''"),
        ("EPYC,", "--cpu: '': expected +feature or -feature"),
    ],
)
def test_what_cannot_be(text: str, message: str) -> None:
    with pytest.raises(BadInput) as raised:
        emu.BootOptions(cpu=text)
    assert str(raised.value).startswith(message)


def test_help_is_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--cpu", "help"])
    printed = capsys.readouterr().out
    assert not ended.value.code and all(word in printed.split() for word in (*MODELS, *FEATURES))


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs qemu-system-x86_64")
def test_names_are_those_of_qemu() -> None:
    listed = subprocess.run(["qemu-system-x86_64", "-cpu", "help"], capture_output=True, text=True, check=True).stdout
    words = set(listed.split())
    assert set(FEATURES) <= {word.replace("-", "_") for word in words} | words
    assert set(MODELS) <= words


def ends_with(source: str, cpu: str) -> int:
    """The exit value of a 64-bit program at CPL 0, 6 for #UD and 13 for #GP."""
    handlers = {vector: f"mov al, {vector}; out 0xF4, al" for vector in (6, 13)}
    blob = assemble(source + "; xor eax, eax; out 0xF4, al").ljust(0x400, b"\xcc")
    gates = {}
    for vector, text in handlers.items():
        gates[vector] = CODE + len(blob)
        blob += assemble(text).ljust(64, b"\xcc")
    vm = long_mode_vm(blob, "nested", gates, cpu=cpu)
    vm.cpu.cr4 |= 0x600  # OSFXSR
    assert vm.run(1_000_000) is Stop.EXIT
    return int(vm.exit_value or 0)


@pytest.mark.parametrize(
    ("feature", "source"),
    [
        ("popcnt", "popcnt eax, ebx"),
        ("sse4.1", "pmulld xmm0, xmm1"),
        ("aes", "aesenc xmm0, xmm1"),
        ("movbe", "movbe eax, [rsp]"),
        ("adx", "adcx eax, ebx"),
        ("rdrand", "rdrand eax"),
        ("x2apic", "mov ecx, 0x1B; rdmsr; or ah, 4; wrmsr"),
        ("tsc-deadline", "mov ecx, 0x6E0; rdmsr"),
        ("tsc_adjust", "mov ecx, 0x3B; rdmsr"),
        ("rdtscp", "rdtscp"),
    ],
)
def test_what_is_taken_away_is_refused(feature: str, source: str) -> None:
    assert ends_with(source, "EPYC") == 0
    assert ends_with(source, f"EPYC,-{feature}") == (13 if "msr" in source else 6)


REAL_MODE = """
.code16
    lea ax, [refused]
    mov word ptr [6 * 4], ax
    mov word ptr [6 * 4 + 2], 0
    {}
    mov al, 0
    out 0xF4, al
refused:
    mov al, 6
    out 0xF4, al
"""


@pytest.mark.parametrize(
    ("source", "without", "with_it"),
    [
        ("rdtsc", "486", "pentium"),
        ("mov ecx, 0x10\n rdmsr", "486", "pentium"),
        (".byte 0x0F, 0xEF, 0xC0", "486", "pentium"),  # PXOR
        ("cmove ax, bx", "pentium", "pentium2"),
        ("sysexit", "pentium", "qemu32"),
        ("sfence", "pentium2", "pentium3"),
    ],
)
def test_what_older_processors_lack(source: str, without: str, with_it: str) -> None:
    from emu.testing import boot

    ends = [boot(REAL_MODE.format(source), ram="1M", cpu=cpu).run(max_time="1ms") for cpu in (without, with_it)]
    if source == "sysexit":  # in real mode #GP, which nobody handles here
        assert ends[0] == 13 and ends[1] != 13
    else:
        assert ends == [13, 1]


@pytest.mark.parametrize(("cpu", "expected"), [("Nehalem", (6, 0)), ("EPYC", (0, 6))])
def test_system_calls_of_two_makers(cpu: str, expected: tuple[int, int]) -> None:
    """In compatibility mode Intel has SYSENTER and no SYSCALL, AMD it is the other way round."""
    ends = []
    for instruction in ("0x0F, 0x05", "0x0F, 0x34"):
        code = f"mov ecx, 0x174; mov eax, 8; xor edx, edx; wrmsr; mov ecx, 0xC0000083; mov eax, {DATA}; wrmsr;"
        code += "mov ecx, 0x176; wrmsr; mov rbx, 0xFEEBF4E6C031; mov [rdi], rbx;"  # xor eax, eax; out 0xF4, al
        code += f"push {USER_DATA}; push {USER_STACK}; push 0x202; push {USER_CODE}; lea rax, [rip + user]; push rax;"
        code += "iretq; user: push 0x1B; lea rax, [rip + narrow]; push rax; .byte 0x48, 0xCB;"
        ends.append(ends_with(f"{code} narrow: .byte {instruction}; ud2", cpu))
    assert tuple(ends) == expected
