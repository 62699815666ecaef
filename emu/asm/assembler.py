"""The assembler for firmware: Intel-syntax source files to flat images, with Keystone.

``assemble`` gives the bytes, ``assemble_image`` also the symbols. source.py expands includes, macros and conditionals,
spelling.py writes each statement as Keystone needs it; this file runs Keystone and finds the line that it refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from keystone import KS_ARCH_X86, KS_MODE_64, Ks, KsError

from emu.asm.sizes import IMAGE_LIMIT, Sizes
from emu.asm.source import AssemblyError, Expander, Line
from emu.asm.spelling import local_name, respell
from emu.errors import BadInput

__all__ = ["LOAD_GPA", "AssemblyError", "Image", "assemble", "assemble_image"]

LOAD_GPA = 0x8000  # where a flat image is loaded and entered, in 16-bit real mode
_SENTINEL = b"\xf4emu end of image\xf4"  # assembled behind the image: proves that nothing was dropped on the way
_SENTINEL_STATEMENT = '.ascii "\\364emu end of image\\364"'
_CODE_DIRECTIVES = {".code16": 16, ".code32": 32, ".code64": 64}


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
    """
    expander = Expander([path.parent / "include", *include_directories], dict(defines or {}))
    lines = [Line(path, 0, f".set {name}, {value}") for name, value in (defines or {}).items()]
    statements = [line.text for line in lines]  # of the lines, as Keystone needs them
    mode = 16
    sizes = Sizes()
    for line in expander.expand_file(path):
        mode = _CODE_DIRECTIVES.get(line.text, mode)
        sizes.check(line, expander.constants)
        lines.append(line)
        statements.append(respell(line, mode, expander.constants))
    labels = list(expander.labels)
    tail = [_SENTINEL_STATEMENT, *(f".quad {local_name(label)}" for label in labels)]
    try:
        output = _keystone([*statements, *tail], load)
    except KsError as error:
        raise _refused_line(lines, statements, load, error) from None
    cut = len(output) - 8 * len(labels)
    if output[cut - len(_SENTINEL) : cut] != _SENTINEL:
        raise BadInput(str(path), "Keystone dropped a part of the program")
    if cut - len(_SENTINEL) > IMAGE_LIMIT:
        raise BadInput(str(path), f"the program is larger than {IMAGE_LIMIT >> 20}M")
    values = [int.from_bytes(output[at : at + 8], "little") for at in range(cut, len(output), 8)]
    return Image(output[: cut - len(_SENTINEL)], load, dict(zip(labels, values, strict=True)))


def _keystone(statements: Sequence[str], load: int) -> bytes:
    """Assemble plain statements. Raises KsError.

    No symbol resolver is set: with one, Keystone reads every number without a prefix as hexadecimal.
    """
    output, _ = Ks(KS_ARCH_X86, KS_MODE_64).asm("\n".join([".code16", *statements, ""]), load, as_bytes=True)
    return output or b""


def _refused_line(lines: list[Line], statements: list[str], load: int, error: KsError) -> AssemblyError:
    """The error of the first statement that Keystone refuses: the last one of the shortest prefix that fails.

    What a prefix refers to further down is given to it behind its end.
    """

    def refusal(count: int) -> KsError | None:
        definitions = [s for s in statements[count:] if s.endswith(":") or s.startswith(".set ")]
        try:
            _keystone([*statements[:count], *definitions], load)
        except KsError as error:
            return error
        return None

    good, bad = 0, len(statements)
    while bad - good > 1:
        middle = (good + bad) // 2
        if refusal(middle) is None:
            good = middle
        else:
            bad = middle
    return lines[bad - 1].error(str(refusal(bad) or error).partition(" (")[0].lower())
