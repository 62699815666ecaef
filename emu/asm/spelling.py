"""Respelling: what a statement must look like for Keystone to make of it what an x86 programmer means.

Keystone 0.9.2 encodes some instructions for another operand size than that of the code they stand in, reads some
addresses otherwise than written, and has no spelling at all for a few instructions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from emu.asm.expressions import STRING, fold
from emu.asm.grammar import DATA, IGNORED, SPACE, TEXT, WORDS, check_label, check_statement
from emu.asm.source import Line

_FOLDED_DIRECTIVES = DATA | SPACE
_SEGMENT_OPCODES = {
    "push": {"es": "0x06", "cs": "0x0e", "ss": "0x16", "ds": "0x1e"},
    "pop": {"es": "0x07", "ss": "0x17", "ds": "0x1f"},
}
_TABLE_OPCODES = {"sgdt": "0x05", "sidt": "0x0d", "lgdt": "0x15", "lidt": "0x1d"}  # ModRM of [disp32] with 0F 01
_BARE_WORDS = {  # instructions without operands that Keystone encodes for another size, by size of the code
    16: {"retf": ".byte 0xcb"},
    32: {"iret": "iretd", "pushf": "pushfd", "popf": "popfd", "movsd": ".byte 0xa5"},
    64: {"iret": "iretq", "pushf": "pushfq", "popf": "popfq", "movsd": ".byte 0xa5"}
    | {"sysretq": "sysret", "sysretd": ".byte 0x0f, 0x07"},
}
_REGISTER = re.compile(r"\b(?:[re]?(?:[a-d]x|[sd]i|[bs]p)|[a-d][hl]|r(?:8|9|1[0-5])[dwb]?|[c-gs]s|[cdt]r\d+)\b", re.I)
_OFFSET = re.compile(r"\boffset\s+", re.I)
# In 64-bit mode Keystone makes a constant address relative to RIP, but not always rightly.
_ABSOLUTE = re.compile(r"\[(0x[0-7]?[0-9a-f]{1,7})\]")
_VALUE = re.compile(r"\s+[\w.$]|\s*[\[(]")
_NAME = re.compile(STRING.pattern + r"|(?<![\w.$])[A-Za-z_.$][\w.$]*", re.A)


def rename_labels(statements: Iterable[str], labels: Iterable[str], references: bool = False) -> list[str]:
    """The statements with each label under a name that has no other meaning to Keystone, such as ``wait`` or ``.L1``.

    Args:
        statements: as respell makes them, or (``references``) names alone.
        labels: the names of all labels.
    """
    names = {label: f"label_{n}" for n, label in enumerate(labels)}

    def renamed(found: re.Match[str]) -> str:
        name = found[0]
        if name.lower() in WORDS and _VALUE.match(found.string, found.end()):
            return name
        return names.get(name, name)

    def of(statement: str) -> str:
        if references or statement.endswith(":"):
            return _NAME.sub(renamed, statement)
        word, space, rest = statement.partition(" ")
        return word + space + _NAME.sub(renamed, rest)

    return [of(statement) for statement in statements]


def makes_bytes(statement: str) -> bool:
    """Whether a statement, as respell makes it, becomes at least one byte."""
    word, _, rest = statement.partition(" ")
    if word in TEXT:
        return word != ".ascii" or rest.strip('"') != ""
    return bool(word) and not word.endswith(":") and (word in DATA or not word.startswith("."))


def _plain_text(operands: str) -> str:
    """Strings with what is not ASCII as the bytes of its UTF-8 form, which Keystone takes in octal."""
    return "".join(c if c.isascii() else "".join(f"\\{byte:03o}" for byte in c.encode()) for c in operands)


def respell(line: Line, mode: int, constants: Mapping[str, int]) -> str:
    """The statement in the spelling from which Keystone makes what an x86 programmer means by it.

    Args:
        mode: 16, 32 or 64, the size of the code that the statement stands in.
        constants: the constants defined above it.
    Raises:
        AssemblyError: for a statement that Keystone would encode wrongly and that has no right spelling.
    """
    if line.text.endswith(":"):
        check_label(line, line.text[:-1])
        return line.text
    check_statement(line)
    word, _, rest = line.text.partition(" ")
    word, rest = word.lower(), rest.strip()
    if word in IGNORED:
        return ""
    if '"' in rest:
        rest = _plain_text(rest)
    else:
        rest = _OFFSET.sub("", rest)
        if not word.startswith(".") or word in _FOLDED_DIRECTIVES:
            rest = fold(rest, constants)
    if mode == 64:
        rest = _ABSOLUTE.sub(r"[riz*1 + \1]", rest)
    operand = rest.lower()
    if word in ("rep", "repe", "repz", "repne", "repnz") and operand == "movsd":
        return ".byte 0xf3, 0x66, 0xa5" if mode == 16 else ".byte 0xf3, 0xa5"
    if not rest:
        return _BARE_WORDS[mode].get(word, word)
    if mode == 32 and operand in _SEGMENT_OPCODES.get(word, {}):
        return f".byte {_SEGMENT_OPCODES[word][operand]}"
    if word == "push" and not _REGISTER.search(rest) and "[" not in rest:
        if mode == 16:
            return f".byte 0x68; .word {rest}"
        if not rest.lstrip("-")[0].isdigit():  # of a label Keystone would push 16 bits
            return f".byte 0x68; .long {rest}"
    if mode == 32 and word in _TABLE_OPCODES:
        if _REGISTER.search(rest):
            raise line.error("Keystone gives this a 24-bit base with a register operand; use a label")
        return f".byte 0x0f, 0x01, {_TABLE_OPCODES[word]}; .long {rest.strip('[] ')}"
    if word == "ljmp" and ":" in rest:
        if mode == 64:
            raise line.error("no far jump with an immediate target exists in 64-bit mode")
        selector, _, target = rest.partition(":")
        if mode == 32:
            return f".byte 0xea; .long {target}; .word {selector}"
    return f"{word} {rest}"
