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
        super().__init__(f"{what}: {reason}")
        self.what = what
        self.reason = reason


class EngineMismatch(EmuError):
    """The installed Unicorn is laid out otherwise than this version of emu knows."""


class CompilerFailed(EmuError):
    """The native plane could not be compiled."""
