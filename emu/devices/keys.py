"""Keys by name: what somebody types at a PC's keyboard, written as text.

Characters stand for the keys of a US keyboard that type them, with Shift where it takes that. Other keys, and keys that
are held together, stand in angle brackets: ``dir<enter>``, ``<f1>``, ``<ctrl-c>``, ``<ctrl-alt-del>``, ``<shift-up>``;
``<lt>`` and ``<gt>`` are the brackets.
"""

from __future__ import annotations

import re

from emu.devices.ps2 import EXTENDED, PLAIN, SHIFT, SHIFTED
from emu.errors import BadInput

Chord = tuple[int, ...]  # make codes of scan code set 1, in the order in which they are pressed

_EXTENDED = EXTENDED << 8
NAMES = {
    "esc": 0x01, "backspace": 0x0E, "tab": 0x0F, "enter": 0x1C, "space": 0x39,
    "ctrl": 0x1D, "shift": SHIFT, "rshift": 0x36, "alt": 0x38, "capslock": 0x3A, "numlock": 0x45, "scrolllock": 0x46,
    **{f"f{number}": 0x3A + number for number in range(1, 11)}, "f11": 0x57, "f12": 0x58,
    "rctrl": _EXTENDED | 0x1D, "altgr": _EXTENDED | 0x38, "win": _EXTENDED | 0x5B, "menu": _EXTENDED | 0x5D,
    "up": _EXTENDED | 0x48, "down": _EXTENDED | 0x50, "left": _EXTENDED | 0x4B, "right": _EXTENDED | 0x4D,
    "home": _EXTENDED | 0x47, "end": _EXTENDED | 0x4F, "pgup": _EXTENDED | 0x49, "pgdn": _EXTENDED | 0x51,
    "ins": _EXTENDED | 0x52, "del": _EXTENDED | 0x53, "print": _EXTENDED | 0x37,
    "minus": PLAIN["-"], "lt": PLAIN[","], "gt": PLAIN["."],
    **{f"kp{number}": code for number, code in enumerate((0x52, 0x4F, 0x50, 0x51, 0x4B, 0x4C, 0x4D, 0x47, 0x48, 0x49))},
    "kpplus": 0x4E, "kpminus": 0x4A, "kpenter": _EXTENDED | 0x1C,
}  # fmt: skip
"""By name: the make code of a key, with 0xE0 in front for extended ones."""

_SHIFTED_NAMES = {"lt", "gt"}
_PART = re.compile(r"<([^<>]+)>|(.)", re.S)


def parse_keys(text: str) -> list[Chord]:
    """The keys to press one after the other, each released before the next.

    Raises:
        BadInput: there is no such key.
    """
    return [_named(name) if name else _character(character) for name, character in _PART.findall(text)]


def _character(character: str) -> Chord:
    if character in PLAIN:
        return (PLAIN[character],)
    if character in SHIFTED:
        return (SHIFT, SHIFTED[character])
    raise BadInput(f"character {character!r}", "a US keyboard has no key for it")


def _named(name: str) -> Chord:
    parts = name.lower().split("-")
    chord = [SHIFT] * (parts[-1] in _SHIFTED_NAMES)
    for part in parts:
        if part in NAMES:
            chord.append(NAMES[part])
        elif len(part) == 1:
            chord += _character(part)
        else:
            raise BadInput(f"key <{name}>", f"there are characters and {', '.join(NAMES)}")
    return tuple(chord)
