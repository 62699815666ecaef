"""What a statement may look like: everything else is refused before Keystone sees it.

Keystone was made for statements that are right.  On others it may never return, take memory without end, end the
process, or drop what it does not understand.  The grammar, where ``[ ]`` is optional and ``{ }`` is repeated::

    statement   = label ":" | directive | [prefix {prefix}] mnemonic [operand {"," operand}]
    operand     = string | {word} [expression ":"] (memory | expression)        word = size, "ptr", "offset", "short", …
    memory      = [expression] "[" expression "]" {"[" expression "]"}
    expression  = unary {operator unary}         unary = {"-" | "+" | "~" | "!"} (number | name | "(" expression ")")
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from emu.asm.source import Line

DEEPEST = 32  # parentheses within each other, and signs in front of a number
MOST_OPERANDS = 1 << 12

DATA = frozenset((".byte", ".word", ".short", ".hword", ".2byte", ".long", ".int", ".4byte", ".quad", ".8byte"))
TEXT = frozenset((".ascii", ".asciz", ".string"))
SPACE = frozenset((".space", ".skip", ".zero", ".fill", ".align", ".balign", ".p2align", ".org"))
IGNORED = frozenset((".global", ".globl", ".intel_syntax"))  # a flat image has no symbols for others, and one syntax
CODE = {".code16": 16, ".code32": 32, ".code64": 64}
OTHERS = frozenset((".set", ".equ", ".incbin"))
DIRECTIVES = (*CODE, *sorted(DATA | TEXT | SPACE | OTHERS))

PREFIXES = frozenset("lock rep repe repz repne repnz data16 data32 addr16 addr32 es cs ss ds fs gs".split())
SIZES = frozenset("byte word dword fword qword tbyte xword oword xmmword ymmword zmmword".split())
WORDS = SIZES | frozenset(("ptr", "offset", "short", "near", "far"))
REGISTER = re.compile(
    r"(?:[re]?(?:[abcd]x|[sd]i|[bsi]p)|[abcd][hl]|(?:[sd]i|[bs]p)l|r(?:8|9|1[0-5])[dwb]?|[c-gs]s|[cdt]r1?\d|st|k[0-7]"
    r"|(?:mm|[xyz]mm[123]?|bnd)\d|[re]iz|[re]?flags)",
    re.I,
)  # fmt: skip

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*")|(?P<character>'(?:\\.|[^'\\])')
    |(?P<number>0x[0-9a-f]+|0b[01]+|[0-9][0-9a-f]*h|[0-9]+)(?![\w.$])|(?P<name>[a-z_.$][\w.$]*)
    |(?P<sign><<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>()\[\],:]))""",
    re.I | re.X | re.A,
)
_MNEMONIC = re.compile(r"[a-z][a-z0-9]*", re.I | re.A)
_LABEL_NAME = re.compile(r"[a-z_.$][\w.$]*", re.I | re.A)
_BINARY = frozenset("<< >> <= >= == != && || + - * / % & | ^ < >".split())
_UNARY = frozenset("-+~!")
_MOST = 1 << 64  # numbers are below it


def check_label(line: Line, name: str) -> None:
    """Raises AssemblyError when ``name`` cannot be a label."""
    if not _LABEL_NAME.fullmatch(name):
        raise line.error("a label's name has letters, digits, _, . and $")
    if REGISTER.fullmatch(name):
        raise line.error(f"{name} is a register and cannot be a label")


def check_statement(line: Line) -> None:
    """Look at a directive or an instruction.

    Raises:
        AssemblyError: it is not one.
    """
    text = line.text.strip()
    word, _, rest = text.partition(" ")
    while word.lower() in PREFIXES and rest.strip():
        word, _, rest = rest.strip().partition(" ")
    if not word.startswith("."):
        if not _MNEMONIC.fullmatch(word):
            raise line.error(f"{word[:40]} is no instruction")
        if rest.strip():
            _Operands(line, rest).check()
        return
    directive = word.lower()
    if directive in CODE:
        if rest.strip():
            raise line.error(f"{directive} stands alone")
    elif directive in DATA | SPACE | TEXT | OTHERS:
        if not rest.strip():
            raise line.error(f"{directive} needs an operand")
        if directive in (".set", ".equ"):
            name, comma, rest = rest.partition(",")
            if not _LABEL_NAME.fullmatch(name.strip()) or REGISTER.fullmatch(name.strip()) or not comma:
                raise line.error("a name and its value were expected")
        _Operands(line, rest, strings=directive in TEXT | {".incbin"}).check()
    elif directive not in IGNORED:
        raise line.error(f"there is no {word[:40]} here, but: {', '.join(DIRECTIVES)}")
    elif directive == ".intel_syntax" and rest.strip() not in ("", "noprefix"):
        raise line.error("registers have no prefix here")


def _tokens(line: Line, text: str) -> Iterator[tuple[str, str]]:
    """(kind, text) of each token; kinds are the names of the groups of _TOKEN."""
    at, text = 0, text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise line.error(f"{text[at:].split()[0][:20]} belongs to no statement")
        kind = found.lastgroup or ""
        yield kind, found[kind]
        at = found.end()


class _Operands:
    """The operands of one statement: a recursive descent through their tokens."""

    def __init__(self, line: Line, text: str, strings: bool = False) -> None:
        self._line = line
        self._strings = strings
        self._tokens = list(_tokens(line, text))
        self._at = 0
        self._depth = 0

    def check(self) -> None:
        """Raises AssemblyError."""
        self._operand()
        count = 1
        while self._takes(","):
            self._operand()
            count += 1
        if self._at < len(self._tokens):
            raise self._line.error(f"{self._next[1]} is not expected here")
        if count > MOST_OPERANDS:
            raise self._line.error(f"more than {MOST_OPERANDS} operands")

    @property
    def _next(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "the end of the line")

    def _takes(self, *signs: str) -> bool:
        found = self._next[0] == "sign" and self._next[1] in signs
        self._at += found
        return found

    def _takes_offset(self) -> bool:
        found = self._next[0] == "name" and self._next[1].lower() == "offset"
        self._at += found
        return found

    def _expects(self, sign: str) -> None:
        if not self._takes(sign):
            raise self._line.error(f"{sign} was expected, not {self._next[1]}")

    def _operand(self) -> None:
        if self._strings:
            if self._next[0] != "string":
                raise self._line.error(f"a string was expected, not {self._next[1]}")
            self._at += 1
            return
        while self._next[1].lower() in WORDS and self._is_followed():
            self._at += 1
        if not self._memory():
            self._expression()
            if self._takes(":") and not self._memory():
                self._expression()
            self._memory()

    def _is_followed(self) -> bool:
        """Whether the next token is no label: "word" is a size in front of "ptr" and of an address."""
        kind, text = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else ("end", "")
        if self._next[1].lower() in SIZES:
            return text.lower() in ("ptr", "[")
        return kind in ("name", "number") or text in ("[", "(")

    def _memory(self) -> bool:
        """[…] as often as it stands here; whether it does."""
        found = False
        while self._takes("["):
            found = True
            self._expression()
            self._expects("]")
        return found

    def _expression(self) -> None:
        self._unary()
        while self._takes(*_BINARY):
            self._unary()

    def _unary(self) -> None:
        signs = 0
        while self._takes(*_UNARY) or self._takes_offset():
            signs += 1
        kind, text = self._next
        if signs > DEEPEST or self._depth > DEEPEST:
            raise self._line.error("too deep an expression")
        if self._takes("("):
            self._depth += 1
            self._expression()
            self._depth -= 1
            self._expects(")")
            return
        if kind not in ("number", "name", "character"):
            raise self._line.error(f"a value was expected, not {text}")
        if kind == "number" and _value(text) >= _MOST:
            raise self._line.error(f"{text[:40]} is larger than 64 bits")
        if kind == "character" and not text.isascii():
            raise self._line.error(f"{text} is no single byte")
        self._at += 1
        if kind == "name" and text.lower() == "st" and self._takes("("):
            self._expression()
            self._expects(")")


def _value(number: str) -> int:
    if number.lower().endswith("h") and not number.lower().startswith("0x"):
        return int(number[:-1], 16)
    return int(number) if number.isdigit() else int(number, 0)
