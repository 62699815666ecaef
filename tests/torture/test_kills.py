"""A few kills of each kind, and that a torn file would be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.kills import OLD, SCENARIOS, Torn, nothing_beside, old_or_new, torture, whole_pieces


@pytest.mark.parametrize("name", SCENARIOS)
def test_nothing_is_torn(name: str) -> None:
    killed, ended, torn = torture(SCENARIOS[name], 3, seed=5, again_every=2)
    assert killed + ended == 3 and torn == []


def test_what_is_torn_is_seen(tmp_path: Path) -> None:
    folder, whole = tmp_path / "folder", tmp_path / "whole"
    folder.mkdir()
    whole.mkdir()
    (whole / "f").write_bytes(b"one\ntwo\n")
    for contents, check, good in (
        (OLD, old_or_new("f", bytes.__eq__), True),
        (b"one\ntwo\n", old_or_new("f", bytes.__eq__), True),
        (b"", old_or_new("f", bytes.__eq__), False),
        (b"one\n", old_or_new("f", bytes.__eq__), False),
        (b"one\n", whole_pieces("f", b"\n"), True),
        (b"one\ntw", whole_pieces("f", b"\n"), False),
        (b"two\n", whole_pieces("f", b"\n"), False),
    ):
        (folder / "f").write_bytes(contents)
        if good:
            check(folder, whole)
        else:
            with pytest.raises(Torn):
                check(folder, whole)
    (folder / "strange").touch()
    with pytest.raises(Torn, match="left behind: strange"):
        nothing_beside()(folder, whole)
