"""`emu bench policies`: traces in, tables and pictures out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from emu.bench.policies import PERCENT, Replay, compare, plot, table
from emu.cli import main
from emu.dmm.policies.reference_trace import ReferenceTrace
from emu.dmm.policies.victims import FIFO, VICTIMS
from emu.errors import BadInput

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trace() -> ReferenceTrace:
    """3000 references to 60 pages, most of them to few, and now and then a scan."""
    random = Random(1)
    gfns = list(range(60))
    while len(gfns) < 3000:
        gfns += [min(int(random.expovariate(0.15)), 39) for _ in range(100)]
        gfns += range(40, 60)
    return ReferenceTrace.of(gfns[:3000])


def test_the_optimum_is_the_lowest_and_all_meet_when_all_fits(trace: ReferenceTrace) -> None:
    comparison = compare(trace, "t")
    assert comparison.rates.keys() == VICTIMS.keys()
    assert comparison.frames == [trace.pages * percent // 100 for percent in PERCENT]
    for rates in comparison.rates.values():
        assert all(best <= rate for best, rate in zip(comparison.rates["optimal"], rates, strict=True))
        assert rates[-1] == 100 * trace.pages / len(trace)
    below = [rates[1] for name, rates in comparison.rates.items() if name in ("clock", "aging", "2q")]
    assert all(rate < comparison.rates["fifo"][1] for rate in below)


def test_pages_of_the_window_stay_resident() -> None:
    string = ReferenceTrace.of([1, 2, 3, 1, 4])
    trace = ReferenceTrace(string.time, string.gfn, string.write, 2)
    replay = Replay(trace, 2, FIFO)
    resident = [(gfn, set(replay.resident)) for gfn in replay.steps()]
    assert resident == [(1, {1}), (2, {1, 2}), (3, {2, 3}), (1, {1, 3}), (4, {1, 4})]
    with pytest.raises(ValueError, match="1 frames does not hold the window of 2"):
        Replay(trace, 1, FIFO)
    few = ReferenceTrace(string.time, string.gfn, string.write, 5)
    for unusable in (few, ReferenceTrace.of([])):
        with pytest.raises(BadInput, match="too few"):
            compare(unusable, "t")


def test_the_table_has_a_line_for_each_size_and_a_column_for_each_algorithm(trace: ReferenceTrace) -> None:
    lines = table(compare(trace, "a title")).splitlines()
    assert lines[0].startswith("a title: 3000 references to 60 pages, window 0")
    assert lines[1].split() == ["frames", *VICTIMS]
    assert [line.split()[:2] for line in lines[2:]] == [[str(6 * n), f"{10 * n}%"] for n in range(1, 11)]
    assert len({len(line) for line in lines[1:]}) == 1


def test_any_number_of_algorithms_is_drawn(trace: ReferenceTrace) -> None:
    comparison = compare(trace, "t")
    rates = {f"{name} {number}": each for number in range(3) for name, each in comparison.rates.items()}
    assert plot([replace(comparison, rates=rates)]).startswith(b"\x89PNG")


def test_a_recorded_file(tmp_path: Path, trace: ReferenceTrace, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    trace.save(tmp_path / "trace")
    plot, rows = tmp_path / "plot.png", tmp_path / "rows.json"
    arguments = ["--trace", str(tmp_path / "trace"), "--plot", str(plot), "--json", str(rows)]
    assert main(["bench", "policies", *arguments]) == 0
    out, err = capsys.readouterr()
    assert not err and out == table(compare(trace, str(tmp_path / "trace"))) + "\n\n"
    assert plot.read_bytes().startswith(b"\x89PNG")
    (comparison,) = json.loads(rows.read_text())["comparisons"]
    assert comparison["rates"].keys() == VICTIMS.keys()


def test_a_guest(capsys: Capture) -> None:
    assert main(["bench", "policies", "--append", "pages=30 rounds=1 steps=2"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("memory pages=30 rounds=1 steps=2: ") and first.count("optimal") == 1
    assert main(["bench", "policies", "--guest", "memory", "--append", "pages=30 rounds=1 steps=2"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    "arguments",
    [
        ["policies", "dmm"],
        ["--plot", "x.png"],
        ["dmm", "--guest", "memory"],
        ["policies", "--trace", "/dev/null"],
        ["policies", "--trace", "x", "--guest", "memory"],
        ["policies", "--trace", "x", "--append", ""],
        ["policies", "--guest", "nothing"],
        ["policies", "--guest", "hello"],
        ["policies", "--plot", "/no/such/file"],
        ["policies", "--json", "/no/such/file"],
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], capsys: Capture) -> None:
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and "Traceback" not in err


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("emu.bench.policies.find_spec", lambda name: None)
    assert main(["bench", "policies", "--plot", "x.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
