"""The assembler: Keystone's traps are gone, the text side works, and an error names its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from capstone import CS_ARCH_X86, CS_MODE_16, CS_MODE_32, CS_MODE_64, Cs

from emu.asm.assembler import AssemblyError, assemble, assemble_image
from emu.errors import BadInput, EmuError

MODES = {16: CS_MODE_16, 32: CS_MODE_32, 64: CS_MODE_64}


def write(directory: Path, text: str, name: str = "program.s") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def disassembled(code: bytes, bits: int, start: int = 0x8000) -> list[str]:
    return [f"{i.mnemonic} {i.op_str}".strip() for i in Cs(CS_ARCH_X86, MODES[bits]).disasm(code, start)]


@pytest.mark.parametrize(
    ("bits", "source", "expected"),
    [
        (16, "iret", b"\xcf"),
        (16, "push 0x1234", b"\x68\x34\x12"),
        (16, "push ds", b"\x1e"),
        (16, "retf", b"\xcb"),
        (16, "rep movsd", b"\xf3\x66\xa5"),
        (16, "ljmp 8:0x9000", b"\xea\x00\x90\x08\x00"),
        (32, "iret", b"\xcf"),
        (32, "iretd", b"\xcf"),
        (32, "pushf", b"\x9c"),
        (32, "popf", b"\x9d"),
        (32, "push ds", b"\x1e"),
        (32, "pop es", b"\x07"),
        (32, "push fs", b"\x0f\xa0"),
        (32, "lgdt [x]\nx:", b"\x0f\x01\x15\x07\x80\x00\x00"),
        (32, "lidt [0x1234]", b"\x0f\x01\x1d\x34\x12\x00\x00"),
        (32, "ljmp 8:0x12345678", b"\xea\x78\x56\x34\x12\x08\x00"),
        (32, "movsd", b"\xa5"),
        (32, "rep movsd", b"\xf3\xa5"),
        (32, "push 5", b"\x6a\x05"),
        (32, "push 0x1234", b"\x68\x34\x12\x00\x00"),
        (32, "push offset x\nx:", b"\x68\x05\x80\x00\x00"),
        (32, "push dword ptr [ebx]", b"\xff\x33"),
        (32, "mov eax, offset x\nx:", b"\xb8\x05\x80\x00\x00"),
        (32, "shr eax, 16", b"\xc1\xe8\x10"),  # decimal
        (32, "and eax, ~(1 << 3)", b"\x83\xe0\xf7"),
        (32, "mov word ptr [ebx], (0x8E) << 8", b"\x66\xc7\x03\x00\x8e"),
        (32, ".equ A, 3\n.equ B, 4\nlea edx, [eax + A + B]", b"\x8d\x50\x07"),
        (32, "lea edx, [eax + .Lx]\n.Lx:", b"\x8d\x90\x06\x80\x00\x00"),
        (64, "iret", b"\x48\xcf"),
        (64, "pushf", b"\x9c"),
        (64, "sysretq", b"\x48\x0f\x07"),
        (64, "sysretd", b"\x0f\x07"),
        (64, "rep movsq", b"\xf3\x48\xa5"),
        (64, "mov rsp, gs:[8]", b"\x65\x48\x8b\x24\x25\x08\x00\x00\x00"),
        (64, "mov rbx, [0]", b"\x48\x8b\x1c\x25\x00\x00\x00\x00"),
        (64, "push offset x\nx:", b"\x68\x05\x80\x00\x00"),
        (64, "lea rax, [rip + x]\nx:", b"\x48\x8d\x05\x00\x00\x00\x00"),
    ],
)
def test_statements_become_what_they_say(tmp_path: Path, bits: int, source: str, expected: bytes) -> None:
    assert assemble(write(tmp_path, f".code{bits}\n{source}\n")) == expected


def test_modes_mix_in_one_file(tmp_path: Path) -> None:
    code = assemble(write(tmp_path, "mov ax, 1\n.code32\nmov eax, 1\n.code64\nmov r8, 0x123456789a\n"))
    assert disassembled(code[:3], 16) == ["mov ax, 1"]
    assert disassembled(code[3:8], 32) == ["mov eax, 1"]
    assert disassembled(code[8:], 64) == ["movabs r8, 0x123456789a"]


def test_symbols_are_addresses_in_the_image(tmp_path: Path) -> None:
    image = assemble_image(write(tmp_path, "start: nop\n.Linner: nop\ndata: .long data\n"), load=0x9000)
    assert image.symbols == {"start": 0x9000, ".Linner": 0x9001, "data": 0x9002}
    assert image.data == b"\x90\x90\x02\x90\x00\x00"
    assert image.end == 0x9006


def test_macros(tmp_path: Path) -> None:
    source = """
.code32
.macro load register, value=7       # a default
    mov \\register, \\value
.endm
.macro twice instruction:vararg     # all that is left, with its commas
    \\instruction
    \\instruction
.endm
.macro spin                         # a label of its own each time
again\\@:
    jmp again\\@
.endm
    load eax
    load ebx, [esp + 4]
    twice add eax, ebx
    spin
    spin
"""
    code = assemble(write(tmp_path, source))
    assert disassembled(code, 32) == [
        "mov eax, 7",
        "mov ebx, dword ptr [esp + 4]",
        "add eax, ebx",
        "add eax, ebx",
        "jmp 0x800d",
        "jmp 0x800f",
    ]


def test_conditionals_and_repetition(tmp_path: Path) -> None:
    source = """
.equ n, 0
.rept 3
    .byte n
    .equ n, n + 1
.endr
.if (n == 3) + 0
    .byte 0xAA
    .if n > 5
        .byte 0xBB
    .else
        .byte 0xCC
    .endif
.else
    .byte 0xDD
.endif
.ifdef GIVEN
    .byte GIVEN
.endif
.ifndef GIVEN
    .byte 0xEE
.endif
"""
    path = write(tmp_path, source)
    assert assemble(path) == b"\x00\x01\x02\xaa\xcc\xee"
    assert assemble(path, {"GIVEN": 0x12}) == b"\x00\x01\x02\xaa\xcc\x12"


def test_comments_and_strings(tmp_path: Path) -> None:
    source = """.ascii "a # b; c" # a comment; with "marks"\nmov al, '#' # it's one\nmov al, ';'; nop\n"""
    assert assemble(write(tmp_path, source)) == b"a # b; c\xb0\x23\xb0\x3b\x90"


def test_includes(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    write(tmp_path / "include", ".equ K, 5\n", "shared.inc")
    assert assemble(write(tmp_path, '.include "shared.inc"\n.byte K\n')) == b"\x05"


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("nop\nfrobnicate\nnop", 2, "mnemonic"),
        ("nop\nnop\nmov al, ebx", 3, "operand"),
        ("jmp later\nmov eax, nowhere\nlater: nop", 2, "symbol"),
        ("x: nop\nx: nop", 2, "already defined"),
        (".macro m a\nmov eax, \\a\n.endm\nnop\nm bl", 5, "operand"),
        (".macro m a\nmov eax, \\a\n.endm\nm", 4, "no argument"),
        (".macro m a\nmov eax, \\a\n.endm\nm 1, 2", 4, "at most 1"),
        (".macro m\nm\n.endm\nm", 4, "without end"),
        ("nop\n.if 1\nnop", 2, "no .endif"),
        ("nop\n.macro m\nnop", 2, "no .endm"),
        ("nop\n.endr", 2, "without its beginning"),
        (".rept x\n.endr", 1, "not a constant"),
        (".rept 1 << 40\n.endr", 1, "count"),
        ('nop\n.include "gone.inc"', 2, "no such file"),
        ('nop\n.include "program.s"', 2, "without end"),
        ('nop\n.ascii "abc', 2, "does not end"),
        ("nop\nl\\@: nop", 2, "backslash"),
        ("nop\n@@ foo", 2, "no instruction"),
        (".code64\nljmp 8:0x9000", 2, "64-bit"),
        (".code32\nlgdt [ebx]", 2, "label"),
        ("nop\n.byte 300", 2, "range"),
        ("nop\n.space 3000000000", 2, "larger than 16M"),
        ("nop\n.space 99999999999", 2, "larger than 16M"),
        ("nop\n.fill 3000000000, 8, 1", 2, "larger than 16M"),
        ("nop\n.align 1073741824", 2, "power of two"),
        ("nop\n.rept 65536\n.space 65536\n.endr", 3, "larger than 16M"),
        ("nop\n.org 3000000000", 2, "larger than 16M"),
        ("nop\nstart: .org start + 3000000000", 2, "larger than 16M"),
        ("nop\n.space -1", 2, "0 or more"),
        ("nop\n.skip 0 - 1", 2, "0 or more"),
        ("nop\n.fill -1", 2, "0 or more"),
        ("nop\n.fill 2, 9, 1", 2, "1 to 8"),
        ("nop\n.fill 2, 0", 2, "1 to 8"),
        ("nop\n.align 3", 2, "power of two"),
        ("nop\n.balign -4", 2, "power of two"),
        ("nop\n.p2align 99", 2, "exponent"),
        ("nop\n.p2align -1", 2, "exponent"),
        ("nop\n.space", 2, "constant"),
        ("nop\n.space 4,", 2, "constant"),
        ("a: nop\nb: .space b - a", 2, "constant"),  # Keystone would drop it silently
        ("start: nop\n.fill 510 - (. - start), 1, 0", 2, "constant"),  # Keystone would never return
        ("nop\n.balignw 4, 0x9090", 2, "use .balign"),
        (".rept 65536\n.rept 65536\nnop\n.endr\n.endr", 3, "too long"),
        (".rept 65536\n" + "nop\n" * 100 + ".endr", 1, "too long"),
        ("nop\n.ascii \"" + "x" * 70000 + "\"", 2, "too long"),
        ("nop\n.long 1 << 99999999999", 2, "range"),
        (".equ n, 3\n.rept 60\n.equ n, n * n\n.endr\n.long n", 5, "range"),
        ('nop\n.incbin "gone"', 2, "no such file"),
        ('nop\n.incbin "/dev/zero"', 2, "no such file"),
    ],
)
def test_an_error_names_its_line(tmp_path: Path, source: str, line: int, reason: str) -> None:
    path = write(tmp_path, source)
    with pytest.raises(AssemblyError) as caught:
        assemble(path)
    error = caught.value
    assert isinstance(error, EmuError)
    assert (error.file, error.line) == (path, line)
    assert reason in error.reason
    assert str(error).startswith(f"{path}:{line}: ") and "\n" not in str(error)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    gone = tmp_path / "gone.s"
    with pytest.raises(BadInput) as caught:
        assemble(gone)
    assert str(caught.value) == f"{gone}: cannot be read: No such file or directory"
    binary = tmp_path / "binary.s"
    binary.write_bytes(b"nop\xff\xfe\x00")
    with pytest.raises(BadInput) as caught:
        assemble(binary)
    assert str(caught.value) == f"{binary}: not UTF-8 text: byte 0xff at offset 3"
    with pytest.raises(BadInput, match="binary.s: not UTF-8"):
        assemble(write(tmp_path, '.include "binary.s"'))


def test_sizes(tmp_path: Path) -> None:
    source = "start: .space 2, 0xFF\n.skip 1\n.zero 2\n.fill 2, 2, 7\n.align 4, 0xCC\n.p2align 3, 0\n"
    source += ".org start + 18, 0xEE\n.byte 1\n.equ AT, 0x8014\n.org AT\n.byte 2\n"
    wanted = "ffff 00 0000 07000700 cccccc 00000000 eeee 01 00 02"
    assert assemble(write(tmp_path, source)) == bytes.fromhex(wanted)
    assert len(assemble(write(tmp_path, ".space 16 << 20"))) == 16 << 20
    with pytest.raises(BadInput, match="larger than 16M"):
        assemble(write(tmp_path, ".space 16 << 20\nnop"))


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "picture.bin").write_bytes(b"\0\1\2")
    assert assemble(write(tmp_path, 'x: .incbin "picture.bin"; .byte 3\n')) == b"\0\1\2\3"
