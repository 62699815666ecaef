"""The text side of the assembler: comments, `.include`, macros, conditionals, and respelling for Keystone.

Keystone drops a statement inside a macro expansion silently when it cannot parse it, never returns from some texts, and gives no
line with an error. So macros and conditionals are expanded here, and Keystone only ever sees one plain statement a line.

Directives handled here (everything else is Keystone's):
    .include "file"                       relative to the including file, then to firmware/include
    .macro NAME a, b=default / .endm      \\a and \\b in the body are replaced, \\@ is a number that differs in each expansion;
                                          the last parameter may be c:vararg, which takes all that is left, commas included
    .rept COUNT / .endr                   COUNT and .if conditions may use constants set by .equ, .set or NAME = above them
    .if EXPR, .ifdef NAME, .ifndef NAME / .else / .endif
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from .errors import EmuError


class AssemblyError(EmuError):
    """A source line that does not assemble.

    Attributes:
        file, line: where the line stands (the line of the macro's use when a macro expanded to it).
        text: the statement as it was after macro expansion.
        reason: what is wrong with it.
    """

    def __init__(self, file: Path, line: int, text: str, reason: str) -> None:
        super().__init__(f"{file}:{line}: {reason}: {text.strip()}")
        self.file = file
        self.line = line
        self.text = text
        self.reason = reason


@dataclass(frozen=True)
class Line:
    """One source line and where it came from."""

    file: Path
    number: int
    text: str

    def error(self, reason: str) -> AssemblyError:
        return AssemblyError(self.file, self.number, self.text, reason)


@dataclass(frozen=True)
class Macro:
    """A macro: parameter names with their defaults, whether the last one takes all that is left, and the body."""

    parameters: list[tuple[str, str]]
    vararg: bool
    body: list[Line]


MACRO_DEPTH = 32  # nested expansions before a macro counts as endless
INCLUDE_DEPTH = 8  # nested includes before they count as endless
REPEAT_LIMIT = 65536  # .rept counts above this are mistakes

_STRING = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'')
_TOKEN = re.compile(_STRING.pattern + r"|[#;,()\[\]]")
_NAME = re.compile(r"(?<![\w'])[A-Za-z_.$][\w.$]*")
_LABEL = re.compile(r"\s*([.\w$]+):")
_ASSIGN = re.compile(r"([.\w$]+)\s*=(?!=)\s*(.+)", re.S)
_OPENERS = {".macro": ".endm", ".rept": ".endr", ".if": ".endif", ".ifdef": ".endif", ".ifndef": ".endif"}


def split_outside_strings(text: str, separator: str, nesting: bool = False) -> list[str]:
    """Split at a separator character, but not inside a string, nor (with nesting) inside brackets."""
    if separator not in text:
        return [text]
    parts, start, depth = [], 0, 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token == separator and depth == 0:
            parts.append(text[start : found.start()])
            start = found.end()
        elif nesting and token in "([":
            depth += 1
        elif nesting and token in ")]":
            depth -= 1
    parts.append(text[start:])
    return parts


def strip_comment(line: Line) -> str:
    """The line without its # comment."""
    text = split_outside_strings(line.text, "#")[0].rstrip()
    if '"' in _STRING.sub("", text):
        raise line.error("a string that does not end")
    return text


_BINARY: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv, ast.Mod: operator.mod,
    ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
    ast.BitXor: operator.xor, ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


@lru_cache(maxsize=4096)
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def evaluate(expression: str, constants: Mapping[str, int]) -> int:
    """The value of a constant expression. Raises ValueError when it has none (an unknown name, a label, bad syntax)."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) == 1:
            return ord(node.value)
        if isinstance(node, ast.Name) and node.id in constants:
            return constants[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return _BINARY[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return int(_BINARY[type(node.ops[0])](value(node.left), value(node.comparators[0])))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~value(node.operand)
        raise ValueError(expression)

    if any(name not in constants for name in _NAME.findall(expression)):
        raise ValueError(expression)
    try:
        return value(_parsed(expression.strip()))
    except (SyntaxError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ValueError(expression) from error


@dataclass
class Expander:
    """Turns a source file into plain statements, one a line, in order.

    Attributes:
        include_directories: where `.include` looks after the including file's own directory.
        constants: the values of .equ, .set and NAME = so far, the caller's definitions first.
        labels: the labels defined so far.
    """

    include_directories: list[Path]
    constants: dict[str, int] = field(default_factory=dict)
    labels: dict[str, Line] = field(default_factory=dict)
    _macros: dict[str, Macro] = field(default_factory=dict)
    _expansions: int = 0

    def expand_file(self, path: Path, depth: int = 0) -> Iterator[Line]:
        """The statements of a file. Raises OSError or UnicodeDecodeError when it cannot be read."""
        text = path.read_text(encoding="utf-8")
        lines = [Line(path, number, text) for number, text in enumerate(text.splitlines(), 1)]
        yield from self._expand([Line(line.file, line.number, strip_comment(line)) for line in lines], depth, 0)

    def _expand(self, lines: list[Line], includes: int, macros: int) -> Iterator[Line]:
        at = 0
        while at < len(lines):
            line = lines[at]
            at += 1
            word, _, rest = line.text.strip().partition(" ")
            if word in _OPENERS:
                body, otherwise, at = self._block(lines, at, line)
                yield from self._expand(self._chosen(line, word, rest, body, otherwise), includes, macros)
            elif word in (".endm", ".endr", ".endif", ".else"):
                raise line.error(f"{word} without its beginning")
            elif word == ".include":
                yield from self._include(line, rest, includes)
            else:
                for text in split_outside_strings(line.text, ";"):
                    yield from self._statement(Line(line.file, line.number, text), includes, macros)

    def _block(self, lines: list[Line], at: int, opener: Line) -> tuple[list[Line], list[Line], int]:
        """The body of a block, the part after its .else, and where its end left off."""
        body: list[Line] = []
        otherwise: list[Line] = []
        part = body
        waiting = [_OPENERS[opener.text.split()[0]]]
        while at < len(lines):
            word = (lines[at].text.split() or [""])[0]
            if word in _OPENERS:
                waiting.append(_OPENERS[word])
            elif word == waiting[-1]:
                waiting.pop()
                if not waiting:
                    return body, otherwise, at + 1
            elif word == ".else" and waiting == [".endif"]:
                part = otherwise
                at += 1
                continue
            part.append(lines[at])
            at += 1
        raise opener.error(f"no {waiting[-1]} ends this")

    def _chosen(self, line: Line, word: str, rest: str, body: list[Line], otherwise: list[Line]) -> list[Line]:
        """The lines that a block stands for."""
        if word == ".macro":
            name, _, parameters = rest.strip().partition(" ")
            pairs = [part.strip().removesuffix(":vararg").partition("=") for part in parameters.split(",") if part.strip()]
            vararg = parameters.rstrip().endswith(":vararg")
            self._macros[name] = Macro([(pair[0].strip(), pair[2].strip()) for pair in pairs], vararg, body)
            return []
        if word in (".ifdef", ".ifndef"):
            known = rest.strip() in self.constants or rest.strip() in self.labels
            return body if known == (word == ".ifdef") else otherwise
        try:
            value = evaluate(rest, self.constants)
        except ValueError:
            raise line.error("not a constant expression") from None
        if word == ".if":
            return body if value else otherwise
        if not 0 <= value <= REPEAT_LIMIT:
            raise line.error(f"a count from 0 to {REPEAT_LIMIT} was expected")
        return body * value

    def _include(self, line: Line, rest: str, depth: int) -> Iterator[Line]:
        name = rest.strip().strip('"')
        found = [d / name for d in [line.file.parent, *self.include_directories] if (d / name).is_file()]
        if not found:
            raise line.error("no such file to include")
        if depth >= INCLUDE_DEPTH:
            raise line.error("files that include each other without end")
        yield from self.expand_file(found[0], depth + 1)

    def _statement(self, line: Line, includes: int, macros: int) -> Iterator[Line]:
        text = line.text
        while label := _LABEL.match(text):
            name = label[1]
            if name in self.labels:
                first = self.labels[name]
                raise line.error(f"label {name} is already defined at {first.file.name}:{first.number}")
            self.labels[name] = line
            yield Line(line.file, line.number, f"{name}:")
            text = text[label.end() :]
        text = text.strip()
        if not text:
            return
        word, _, rest = text.partition(" ")
        if word in self._macros:
            if macros >= MACRO_DEPTH:
                raise line.error("macros that use each other without end")
            yield from self._expand(self._instance(line, self._macros[word], rest), includes, macros + 1)
            return
        if "\\" in _STRING.sub("", text):
            raise line.error("a backslash that names no macro parameter")
        assigned = _ASSIGN.fullmatch(text)
        if word in (".equ", ".set"):
            name, _, expression = rest.partition(",")
        elif assigned:
            name, expression = assigned.groups()
        else:
            yield Line(line.file, line.number, text)
            return
        try:
            self.constants[name.strip()] = evaluate(expression, self.constants)
        except ValueError:
            self.constants.pop(name.strip(), None)  # an expression with labels: Keystone's business
        yield Line(line.file, line.number, f".set {name.strip()}, {expression.strip()}")

    def _instance(self, line: Line, macro: Macro, rest: str) -> list[Line]:
        """The body of a macro with its arguments put in; each line is reported at the macro's use."""
        given = [part.strip() for part in split_outside_strings(rest, ",", nesting=True)] if rest.strip() else []
        wanted = len(macro.parameters)
        if macro.vararg and len(given) > wanted:
            given = [*given[: wanted - 1], ", ".join(given[wanted - 1 :])]
        if len(given) > wanted:
            raise line.error(f"at most {wanted} arguments were expected")
        self._expansions += 1
        values = {"@": str(self._expansions)}
        for index, (name, default) in enumerate(macro.parameters):
            values[name] = given[index] if index < len(given) and given[index] else default
            if not values[name]:
                raise line.error(f"no argument for {name}")

        def put(found: re.Match[str]) -> str:
            return values.get(found[1], found[0])

        return [Line(line.file, line.number, re.sub(r"\\(@|\w+)", put, body.text)) for body in macro.body]


# Respelling. One table a mode: mnemonic (and operands where they matter) -> what Keystone assembles as meant.
_SEGMENT_OPCODES = {
    "push": {"es": "0x06", "cs": "0x0e", "ss": "0x16", "ds": "0x1e"},
    "pop": {"es": "0x07", "ss": "0x17", "ds": "0x1f"},
}
_TABLE_OPCODES = {"sgdt": "0x05", "sidt": "0x0d", "lgdt": "0x15", "lidt": "0x1d"}  # ModRM of [disp32] with 0F 01
_NATIVE_WORDS = {
    16: {"retf": ".byte 0xcb"},
    32: {"iret": "iretd", "pushf": "pushfd", "popf": "popfd", "movsd": ".byte 0xa5"},
    64: {"iret": "iretq", "pushf": "pushfq", "popf": "popfq", "movsd": ".byte 0xa5", "sysretq": "sysret", "sysretd": ".byte 0x0f, 0x07"},
}  # fmt: skip
_REGISTER = re.compile(r"\b(?:[re]?(?:[abcd]x|[sd]i|[bs]p)|[abcd][hl]|r(?:8|9|1[0-5])[dwb]?|[cdefgs]s|(?:[cdt]r)\d+)\b", re.I)
_OFFSET = re.compile(r"\boffset\s+", re.I)
_PLAIN = re.compile(r"[\w\s.,:;+\-*/%&|^~<>=!()\[\]$\"']*")  # what statements are made of; other characters can hang Keystone


_FOLDED_DIRECTIVES = (".byte", ".word", ".long", ".quad", ".space", ".fill", ".balign")
_MEMORY = re.compile(r"(.*\[)(.*)(\].*)")


def fold(operands: str, constants: Mapping[str, int]) -> str:
    """The operands with each constant expression replaced by its value: Keystone refuses some, such as ~(1 << 3)."""

    def folded(text: str) -> str:
        try:
            value = evaluate(text, constants)
        except ValueError:
            return text
        return hex(value) if value >= 0 else str(value)

    parts = []
    for part in split_outside_strings(operands, ",", nesting=True):
        memory = _MEMORY.fullmatch(part)
        parts.append(memory[1] + folded(memory[2]) + memory[3] if memory else folded(part))
    return ", ".join(part.strip() for part in parts)


def respell(line: Line, mode: int, constants: Mapping[str, int]) -> str:
    """The statement in the spelling from which Keystone makes what an x86 programmer means by it.

    Args:
        mode: 16, 32 or 64, the size of the code that the statement stands in.
        constants: the constants defined above it.
    Raises:
        AssemblyError: for a statement that Keystone would encode wrongly and that has no right spelling.
    """
    if not _PLAIN.fullmatch(_STRING.sub("''", line.text)):
        raise line.error("a character that belongs to no statement")
    if line.text.endswith(":"):
        return line.text
    word, _, rest = line.text.partition(" ")
    word, rest = word.lower(), rest.strip()
    if '"' not in rest:
        rest = _OFFSET.sub("", rest)
        if not word.startswith(".") or word in _FOLDED_DIRECTIVES:
            rest = fold(rest, constants)
    operand = rest.lower()
    if word in ("rep", "repe", "repz", "repne", "repnz") and operand == "movsd":
        return ".byte 0xf3, 0x66, 0xa5" if mode == 16 else ".byte 0xf3, 0xa5"
    if not rest:
        return _NATIVE_WORDS[mode].get(word, word)
    if mode == 32 and operand in _SEGMENT_OPCODES.get(word, {}):
        return f".byte {_SEGMENT_OPCODES[word][operand]}"
    if word == "push" and not _REGISTER.search(rest) and "[" not in rest:
        if mode == 16:
            return f".byte 0x68; .word {rest}"
        if not rest.lstrip("-").isalnum() or not rest.lstrip("-")[0].isdigit():  # a label: Keystone would push 16 bits
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
