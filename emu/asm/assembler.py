"""The assembler for firmware: Intel-syntax source files to flat images, with Keystone.

``assemble`` gives the bytes, ``assemble_image`` also the symbols. source.py expands includes, macros and conditionals,
grammar.py refuses what is no statement, spelling.py writes each as Keystone needs it, keystone_process.py runs it;
this file puts the program together, proves that nothing of it was dropped, and finds the line that was refused.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emu.asm import result_cache
from emu.asm.grammar import CODE
from emu.asm.keystone_process import Keystone, Refused
from emu.asm.sizes import IMAGE_LIMIT, Sizes
from emu.asm.source import AssemblyError, Expander, Line, is_numbered
from emu.asm.spelling import makes_bytes, rename_labels, respell
from emu.errors import BadInput

__all__ = ["LOAD_GPA", "AssemblyError", "Image", "assemble", "assemble_image"]

LOAD_GPA = 0x8000  # where a flat image is loaded and entered, in 16-bit real mode
_SENTINEL = b"\xf4emu end of image\xf4"  # assembled behind the image: proves that nothing was dropped on the way
_SENTINEL_STATEMENT = '.ascii "\\364emu end of image\\364"'


@dataclass(frozen=True)
class Image:
    """A flat image: its bytes, the gpa it is loaded at, and the gpa of each label in it."""

    data: bytes
    load: int = LOAD_GPA
    symbols: dict[str, int] = field(default_factory=dict)

    @property
    def end(self) -> int:
        """The first gpa behind the image."""
        return self.load + len(self.data)


def assemble(path: Path, defines: Mapping[str, int] | None = None, load: int = LOAD_GPA) -> bytes:
    """The bytes of a source file. Raises as assemble_image does."""
    return assemble_image(path, defines, load).data


def assemble_image(
    path: Path,
    defines: Mapping[str, int] | None = None,
    load: int = LOAD_GPA,
    include_directories: Sequence[Path] = (),
) -> Image:
    """Assemble a source file.

    Args:
        path: the source, Intel syntax; it starts in 16-bit code.
        defines: constants that are defined before the first line.
        load: the gpa of the first byte.
        include_directories: where ``.include`` looks, after the including file's directory and path's ``include``.
    Raises:
        BadInput: a file that cannot be read, or a program that is too large.
        AssemblyError: a line that does not assemble.
        EmuError: the assembler cannot be started here.
    """
    expander = Expander([path.parent / "include", *include_directories], dict(defines or {}))
    lines = [Line(path, 0, f".set {name}, {value}") for name, value in (defines or {}).items()]
    statements = [line.text for line in lines]  # of the lines, as Keystone needs them
    mode = 16
    sizes = Sizes()
    for line in expander.expand_file(path):
        mode = CODE.get(line.text.lower(), mode)
        sizes.check(line, expander.constants)
        lines.append(line)
        statements.append(respell(line, mode, expander.constants))
    statements = rename_labels(statements, expander.labels)
    return _Program(lines, statements, expander.labels, load).image(path)


class _Program:
    """The statements of a program, and how they become an image.

    Behind them go their labels' addresses, for the symbols; the addresses of the statements that make bytes, because
    Keystone drops some that it does not understand; and a mark, because it drops all that follows others.
    """

    def __init__(self, lines: list[Line], statements: list[str], labels: Iterable[str], load: int) -> None:
        self._lines = lines
        self._statements = statements
        self._labels = list(labels)
        self._load = load
        self._makers = [n for n, statement in enumerate(statements) if makes_bytes(statement)]
        marks = set(self._makers)
        self._marked = [f"{_mark(n)}:\n{text}" if n in marks else text for n, text in enumerate(statements)]

    def image(self, path: Path) -> Image:
        addresses = [*map(_mark, self._makers), *rename_labels(self._labels, self._labels, references=True)]
        tail = [_SENTINEL_STATEMENT, *(f".quad {name}" for name in addresses)]
        output = self._assembled([*self._marked, *tail])
        cut = len(output) - 8 * len(addresses)
        code = output[: cut - len(_SENTINEL)]
        values = [value for (value,) in struct.iter_unpack("<Q", output[cut:])]
        begins = values[: len(self._makers)]
        for n, begin, end in zip(self._makers, begins, [*begins[1:], self._load + len(code)], strict=False):
            if begin == end:
                raise self._lines[n].error("Keystone makes nothing of this")
        if len(code) > IMAGE_LIMIT:
            raise BadInput(str(path), f"the program is larger than {IMAGE_LIMIT >> 20}M")
        symbols = dict(zip(self._labels, values[len(self._makers) :], strict=True))
        return Image(code, self._load, {name: gpa for name, gpa in symbols.items() if not is_numbered(name)})

    def _assembled(self, statements: list[str]) -> bytes:
        key = result_cache.key_of(statements, self._load)
        output = result_cache.find(key)
        if output is None:
            with Keystone() as keystone:
                try:
                    output = keystone.assemble(statements, self._load)
                    _check_whole(output, 8 * (len(self._makers) + len(self._labels)))
                except Refused as error:
                    raise self._refused_line(keystone, error) from None
            result_cache.keep(key, output)
        return output

    def _refused_line(self, keystone: Keystone, error: Refused) -> AssemblyError:
        """The error of the first statement that Keystone refuses: the last one of the shortest prefix that fails.

        What a prefix refers to further down is given to it behind its end.
        """

        def refusal(count: int) -> Refused | None:
            definitions = [s for s in self._statements[count:] if s.endswith(":") or s.startswith(".set ")]
            try:
                whole = [*self._statements[:count], *definitions, _SENTINEL_STATEMENT]
                _check_whole(keystone.assemble(whole, self._load), 0)
            except Refused as error:
                return error
            return None

        good, bad = 0, len(self._statements)
        while bad - good > 1:
            middle = (good + bad) // 2
            if refusal(middle) is None:
                good = middle
            else:
                bad = middle
        return self._lines[bad - 1].error(str(refusal(bad) or error))


def _check_whole(output: bytes, tail: int) -> None:
    """Raises Refused when the sentinel does not stand in front of the last ``tail`` bytes."""
    if output[: len(output) - tail][-len(_SENTINEL) :] != _SENTINEL:
        raise Refused("Keystone does not understand this")


def _mark(statement: int) -> str:
    return f"mark_{statement}"
