"""Keys by name."""

from __future__ import annotations

import pytest

from emu.devices.keys import NAMES, parse_keys
from emu.devices.ps2 import TO_SET_2, chord
from emu.errors import BadInput


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("a", [(0x1E,)]),
        ("A!", [(0x2A, 0x1E), (0x2A, 0x02)]),
        ("d\n", [(0x20,), (0x1C,)]),
        ("<enter><up>", [(0x1C,), (0xE048,)]),
        ("<F1><f10><f11><f12>", [(0x3B,), (0x44,), (0x57,), (0x58,)]),
        ("<ctrl-c>", [(0x1D, 0x2E)]),
        ("<ctrl-alt-del>", [(0x1D, 0x38, 0xE053)]),
        ("<shift-tab><lt><gt>", [(0x2A, 0x0F), (0x2A, 0x33), (0x2A, 0x34)]),
        ("<ctrl-minus>", [(0x1D, 0x0C)]),
        ("a<b", [(0x1E,), (0x2A, 0x33), (0x30,)]),
        ("", []),
    ],
)
def test_keys(text: str, keys: list[tuple[int, ...]]) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ä", "<f13>", "<ctrl->", "<hyper-x>", "<-ä>"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(BadInput):
        parse_keys(text)


def test_every_name_is_a_key_of_both_sets() -> None:
    for code in NAMES.values():
        chord((code,))
        assert code & 0xFF in TO_SET_2
    assert len({code for name, code in NAMES.items() if name not in ("minus", "lt", "gt")}) == len(NAMES) - 3
