"""The text side of the assembler: comments, ``.include``, macros and conditionals.

Keystone drops a statement inside a macro expansion silently when it cannot parse it, never returns from some texts, and
gives no line with an error. So macros and conditionals are expanded here, and Keystone only ever sees one plain
statement a line.

Directives handled here (everything else is Keystone's):
    .include "file"                  looked for beside the including file, then in the include directories
    .incbin "file"                   the same, for the bytes of a file
    .macro NAME a, b=default / .endm \\a and \\b in the body are replaced, \\@ is a number that differs in each
                                     expansion; the last parameter may be c:vararg: all that is left, with its commas
    .rept COUNT / .endr              counts and conditions may use constants set above by .equ, .set or NAME =
    NUMBER:                          a label that may come again; 1b is the last one before, 1f the next one behind
    .if EXPR, .ifdef NAME, .ifndef NAME / .else / .endif
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from emu.asm.expressions import STRING, evaluate, split_outside_strings
from emu.errors import BadInput, EmuError
from emu.infile import read_input


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
BLOCK_DEPTH = 32  # conditionals and repetitions within each other
INCLUDE_DEPTH = 8  # nested includes before they count as endless
REPEAT_LIMIT = 65536  # .rept counts above this are mistakes
LINES_LIMIT = 1 << 18  # lines after all expansion; more are a mistake
LINE_LIMIT = 1 << 16  # characters of one of them
TEXT_LIMIT = 64 << 20  # characters of all of them
PIPE_PATIENCE_S = 60.0  # that a source from a pipe may take
FILE_LIMIT = 16 << 20  # bytes of a source file, and of a file for .incbin

_STRANGE = re.compile(r"[^\t -~]")
_MOST_DIGITS = 9
_NUMBERED = re.compile(r"\.L(\d+)\$\d+")
_REFERENCE = re.compile(STRING.pattern + r"|(?<![\w.$])(?P<digits>\d{1,9})(?P<way>[bf])(?![\w.$])")
_LABEL = re.compile(r"\s*([.\w$]+):")
_ASSIGN = re.compile(r"([.\w$]+)\s*=(?!=)\s*(.+)", re.S)
_OPENERS = {".macro": ".endm", ".rept": ".endr", ".if": ".endif", ".ifdef": ".endif", ".ifndef": ".endif"}


def is_numbered(label: str) -> bool:
    """Whether a label's name was made of a numeric label, which has no name of its own."""
    return _NUMBERED.fullmatch(label) is not None


def strip_comment(line: Line) -> str:
    """The line without its # comment."""
    text = split_outside_strings(line.text, "#")[0].rstrip()
    code = STRING.sub("", text)
    if '"' in code:
        raise line.error("a string that does not end")
    if strange := _STRANGE.search(code):
        raise line.error(f"{strange[0]!r} belongs to no statement")
    return text


def _source_text(path: Path) -> str:
    try:
        return read_input(str(path), path, FILE_LIMIT, named=False, timeout=PIPE_PATIENCE_S).decode()
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start}"
        raise BadInput(str(path), reason) from None


@dataclass
class Expander:
    """Turns a source file into plain statements, one a line, in order.

    Attributes:
        include_directories: where ``.include`` looks after the including file's own directory.
        constants: the values of .equ, .set and NAME = so far, the caller's definitions first.
        labels: the labels defined so far.
    """

    include_directories: list[Path]
    constants: dict[str, int] = field(default_factory=dict)
    labels: dict[str, Line] = field(default_factory=dict)
    _macros: dict[str, Macro] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)  # of each numeric label: how often it was defined
    _wanted: dict[str, Line] = field(default_factory=dict)  # what "1f" means, until it comes
    _expansions: int = 0
    _lines: int = 0
    _characters: int = 0

    def expand_file(self, path: Path, depth: int = 0) -> Iterator[Line]:
        """The statements of a file.

        Raises:
            BadInput: it cannot be read.
            AssemblyError: a line of it cannot be expanded.
        """
        text = _source_text(path)
        lines = [Line(path, number, text.rstrip("\r")) for number, text in enumerate(text.split("\n"), 1)]
        yield from self._expand([Line(line.file, line.number, strip_comment(line)) for line in lines], depth, 0)
        if depth == 0 and self._wanted:
            name, line = next(iter(self._wanted.items()))
            raise line.error(f"no label {_NUMBERED.fullmatch(name)[1]} follows")  # type: ignore[index]

    def _expand(self, lines: list[Line], includes: int, macros: int, blocks: int = 0) -> Iterator[Line]:
        at = 0
        while at < len(lines):
            line = lines[at]
            at += 1
            self._count(line)
            word, _, rest = line.text.strip().partition(" ")
            if word in _OPENERS:
                if blocks >= BLOCK_DEPTH:
                    raise line.error(f"more than {BLOCK_DEPTH} blocks within each other")
                body, otherwise, at = self._block(lines, at, line)
                yield from self._expand(self._chosen(line, word, rest, body, otherwise), includes, macros, blocks + 1)
            elif word in (".endm", ".endr", ".endif", ".else"):
                raise line.error(f"{word} without its beginning")
            elif word == ".include":
                yield from self._include(line, rest, includes)
            else:
                for text in split_outside_strings(line.text, ";"):
                    yield from self._statement(Line(line.file, line.number, text), includes, macros)

    def _count(self, line: Line) -> None:
        """A program that is expanded without end must not fill the host's memory."""
        self._lines += 1
        self._characters += len(line.text)
        if self._lines > LINES_LIMIT or self._characters > TEXT_LIMIT or len(line.text) > LINE_LIMIT:
            shown = line.text if len(line.text) < 80 else line.text[:77] + "..."
            raise Line(line.file, line.number, shown).error("the program becomes too long when it is expanded")

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
            parts = [part.strip().removesuffix(":vararg") for part in parameters.split(",") if part.strip()]
            pairs = [part.partition("=") for part in parts]
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
        if value * len(body) > LINES_LIMIT:
            raise line.error("the program becomes too long when it is expanded")
        return body * value

    def _include(self, line: Line, rest: str, depth: int) -> Iterator[Line]:
        path = self._found(line, rest)
        if depth >= INCLUDE_DEPTH:
            raise line.error("files that include each other without end")
        yield from self.expand_file(path, depth + 1)

    def _incbin(self, line: Line, rest: str) -> Line:
        path = self._found(line, rest)
        if path.stat().st_size > FILE_LIMIT:
            raise line.error(f"the file is larger than {FILE_LIMIT >> 20}M")
        if re.search(r'["\\]', str(path)):
            raise line.error("the file's path has a character that Keystone cannot read")
        return Line(line.file, line.number, f'.incbin "{path.resolve()}"')

    def _found(self, line: Line, rest: str) -> Path:
        """The file that an .include or .incbin names."""
        name = rest.strip().strip('"')
        try:
            found = [d / name for d in [line.file.parent, *self.include_directories] if (d / name).is_file()]
        except (OSError, ValueError):  # no name of a file: too long, or with a NUL
            found = []
        if not found:
            raise line.error("no such file to include")
        return found[0]

    def _statement(self, line: Line, includes: int, macros: int) -> Iterator[Line]:
        text = line.text
        while label := _LABEL.match(text):
            name = label[1]
            if name.isdigit():
                name = self._number(line, name)
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
        if "\\" in STRING.sub("", text):
            raise line.error("a backslash that names no macro parameter")
        text = self._numbered_references(line, text)
        word, _, rest = text.partition(" ")
        assigned = _ASSIGN.fullmatch(text)
        if word == ".incbin":
            yield self._incbin(Line(line.file, line.number, text), rest)
            return
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

    def _number(self, line: Line, digits: str) -> str:
        """The name of the next one of the labels ``digits:``."""
        if len(digits) > _MOST_DIGITS:
            raise line.error(f"a number of at most {_MOST_DIGITS} digits was expected")
        self._numbers[digits] = self._numbers.get(digits, 0) + 1
        name = f".L{digits}${self._numbers[digits]}"
        self._wanted.pop(name, None)
        return name

    def _numbered_references(self, line: Line, text: str) -> str:
        """The statement with 1b and 1f, the labels 1: before and behind it, replaced by their names."""

        def name(found: re.Match[str]) -> str:
            if found["digits"] is None:  # a string
                return found[0]
            last = self._numbers.get(found["digits"], 0)
            if found["way"] == "b" and last == 0:
                raise line.error(f"no label {found['digits']} comes before this")
            name = f".L{found['digits']}${last + (found['way'] == 'f')}"
            if found["way"] == "f":
                self._wanted.setdefault(name, line)
            return name

        return _REFERENCE.sub(name, text)

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
