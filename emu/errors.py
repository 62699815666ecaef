"""The exceptions that emu raises on purpose."""

from __future__ import annotations


class EmuError(Exception):
    """Base of every error that emu raises on purpose."""


class BadInput(EmuError):
    """An input that cannot be used: one line, no traceback at the command line.

    Attributes:
        what: the file, option or value.
        reason: what is wrong with it and what was expected.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what = _in_one_line(what)
        self.reason = _in_one_line(reason)
        super().__init__(f"{self.what}: {self.reason}")


def _in_one_line(text: str) -> str:
    """``text`` with escapes for what a terminal does not print, which values that people give may hold."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


class EngineMismatch(EmuError):
    """The installed Unicorn is laid out otherwise than this version of emu knows."""


class CompilerFailed(EmuError):
    """The native plane could not be compiled."""
