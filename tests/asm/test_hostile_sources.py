"""Sources that are wrong, on which Keystone hangs, dies, or says nothing: one error with file and line."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from emu.asm import keystone_process, result_cache
from emu.asm.assembler import AssemblyError, assemble, assemble_image
from emu.asm.keystone_process import Keystone, Refused
from emu.errors import EmuError

FIRMWARE = Path(__file__).parents[2] / "firmware"
MUTANTS = 20_000 if os.environ.get("EMU_LONG") else 120
REFUSED = {  # source, and the line that is wrong
    "nop\n(": 2,
    "nop\n .quad 99999999999999999999999999": 2,
    ".text\n nop": 1,
    ".cfi_startproc": 1,
    ".bundle_lock": 1,
    "nop\nnop\né": 3,
    "nop\nfoo] 1\nhlt": 2,
    ".byte 1,,2": 1,
    ".byte 1,": 1,
    ".code32\nmov eax, (1\nmov ebx, 2)\nmov ecx, 3": 2,
    "mov ebx, 2)": 1,
    ":start": 1,
    ", nop": 1,
    "+nop": 1,
    "[nop]": 1,
    "!nop": 1,
    "* text": 1,
    "= 5": 1,
    ".co)de16": 1,
    "nop\nmov al, " + "-" * 100_000: 2,
    "mov al, " + "-" * 500 + "1": 1,
    "mov al, " + "(" * 200 + "1" + ")" * 200: 1,
    "mov al, 1 +": 1,
    "mov al, * 2": 1,
    "mov al, [": 1,
    "mov al, 'é'": 1,
    "mov al, 0x": 1,
    "jmp 1f\nnop": 1,
    "jmp 1b\n1:": 1,
    "eax: nop": 1,
    ".if 1\n" * 5_000 + ".endif\n" * 5_000: 33,
    ".section .data": 1,
    ".macro": 1,
    "x: .long x y": 1,
    ".ascii x": 1,
    ".code16 1": 1,
    "nop nop": 1,
    "nop\n.equ a*b, 5": 2,
    "5 = 6": 1,
    ".set eax, 5": 1,
    "nop\ninc dword pt [bx]": 2,
    "\x00": 1,
    "\x85 nop": 1,
}
ACCEPTED = {
    "x: .ascii \"é\"": "é".encode(),
    "nop # é": b"\x90",
    "mov cx, 3\n1: dec cx\njnz 1b": b"\xb9\x03\x00\x49\x75\xfd",
    "1: jmp 1f\nnop\n1: jmp 1b": b"\xeb\x01\x90\xeb\xfe",
    ".byte 0x1b, 0x1f, 11": b"\x1b\x1f\x0b",
    "wait: jmp wait": b"\xeb\xfe",
    "word: jmp word\nmov word ptr [bx], 1": b"\xeb\xfe\xc7\x07\x01\x00",
    ".globl start\nstart: hlt\r\nnop": b"\xf4\x90",
    ".ascii \"\"\nnop": b"\x90",
    "lock inc word ptr [bx]\nrep movsb\nmov ax, es:[di]": b"\xf0\xff\x07\xf3\xa4\x26\x8b\x05",
}  # fmt: skip


def write(directory: Path, source: str) -> Path:
    path = directory / "program.s"
    path.write_bytes(source.encode())
    return path


@pytest.mark.parametrize("source", REFUSED, ids=range(len(REFUSED)))
def test_an_error_names_the_line(tmp_path: Path, source: str) -> None:
    path = write(tmp_path, source)
    with pytest.raises(AssemblyError) as caught:
        assemble(path)
    assert (caught.value.file, caught.value.line) == (path, REFUSED[source])
    assert "\n" not in str(caught.value) and len(caught.value.reason) < 300


@pytest.mark.parametrize("source", ACCEPTED, ids=range(len(ACCEPTED)))
def test_what_is_right_assembles(tmp_path: Path, source: str) -> None:
    assert assemble(write(tmp_path, source)) == ACCEPTED[source]


def test_numeric_labels_are_no_symbols(tmp_path: Path) -> None:
    assert assemble_image(write(tmp_path, "start: nop\n1: jmp 1b\nend:")).symbols == {"start": 0x8000, "end": 0x8003}


@pytest.mark.parametrize(
    "text", ["(", ".quad 99999999999999999999999999", ".text\nnop", ".cfi_startproc", ".bundle_lock"]
)
def test_keystone_may_hang_and_die(text: str) -> None:
    with Keystone() as keystone:
        with pytest.raises(Refused):
            keystone.assemble([text], 0)
        assert keystone.assemble(["nop"], 0) == b"\x90"


def test_a_child_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keystone_process.sys, "executable", str(tmp_path / "gone"))
    with Keystone() as keystone, pytest.raises(EmuError, match="cannot be started"):
        keystone.assemble(["nop"], 0)


def test_what_was_made_is_kept_and_damage_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path, "nop\nhlt")
    assert assemble(path) == b"\x90\xf4"
    (kept,) = (tmp_path / "cache" / "emu-assembled").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(Keystone, "assemble", None)  # not asked again
        assert assemble(path) == b"\x90\xf4"
    data = bytearray(kept.read_bytes())
    data[32] ^= 1
    kept.write_bytes(data)
    assert assemble(path) == b"\x90\xf4"
    for number in range(result_cache._KEPT + 10):
        result_cache.keep(f"{number:064x}", b"")
    assert len(list(kept.parent.iterdir())) == result_cache._KEPT


def mutant(numbers: random.Random, source: str) -> str:
    lines = source.split("\n")
    for _ in range(numbers.randrange(1, 4)):
        at = numbers.randrange(len(lines))
        line = lines[at]
        place = numbers.randrange(len(line) + 1)
        junk = numbers.choice("()[]{}+-*/%&|^~<>=!,.:;\"'\\#$@?` \t0189afxé\x00\x7f")
        lines[at] = numbers.choice(
            (line[:place] + junk + line[place:], line[:place] + line[place + 1 :], line[:place], line[place:],
             line[:place] + junk * numbers.randrange(2, 300) + line[place:], lines[numbers.randrange(len(lines))])
        )  # fmt: skip
    return "\n".join(lines)


def test_mutated_sources_assemble_or_name_a_line(tmp_path: Path) -> None:
    sources = [FIRMWARE / f"{name}.s" for name in ("hello", "crash", "long64", "tasks", "balloon")]
    texts = [path.read_text() for path in sources]
    numbers = random.Random(11)
    refused = 0
    for _ in range(MUTANTS):
        path = write(tmp_path, mutant(numbers, numbers.choice(texts)))
        try:
            assemble_image(path, include_directories=[FIRMWARE / "include"])
        except AssemblyError as error:
            refused += 1
            assert error.line > 0
        except EmuError:
            refused += 1
    assert MUTANTS // 3 < refused < MUTANTS
