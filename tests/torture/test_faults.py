"""The first call of each kind fails in each way; all of them: ``python -m tests.torture faults``."""

from __future__ import annotations

import pytest

from tests.torture.faults import KINDS, Result, inject, judge

RIGHT = Result(1, b"out", "emu: ended", "", (b"file",))


def test_the_first_call_of_each_kind() -> None:
    table = inject(every=1_000_000)
    assert table.wrong == []
    assert {name: row.total() for name, row in table.rows.items()} == {
        name: len(kind.faults) for name, kind in KINDS.items()
    }


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        (Result(1, b"out", "", "", (b"file",)), "no effect"),
        (Result(1, b"ou", "", "", (b"file",)), "wrong"),
        (Result(1, b"out", "", "", (b"",)), "wrong"),
        (Result(2, b"", "emu: disk: cannot be read\n", "", ()), "told"),
        (Result(2, b"", "", "", ()), "wrong"),
        (Result(2, b"", "OSError\n", "", ()), "wrong"),
        (Result(125, b"", "Traceback …\nemu: this is a fault of emu\n", "", ()), "wrong"),
        (Result(134, b"", "emu: crash\n", "", ()), "wrong"),
        (Result(2, b"", "emu: disk: cannot be read\n", "frame 3 has two users", ()), "wrong"),
    ],
)
def test_what_is_wrong_is_seen(result: Result, verdict: str) -> None:
    assert judge(KINDS["pread"], result, RIGHT)[0] == verdict


def test_somebody_else_s_fault_may_have_a_traceback() -> None:
    result = Result(125, b"", "Traceback …\nRuntimeError: broken on purpose\nemu: this is a fault of emu\n", "", ())
    assert judge(KINDS["policy keep"], result, RIGHT)[0] == "told"
    assert judge(KINDS["compress"], result, RIGHT)[0] == "wrong"
