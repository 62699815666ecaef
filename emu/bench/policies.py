"""Replacement algorithms side by side: one recorded run, replayed through each of them in pools of several sizes."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle

from emu.dmm.policies.reference_trace import ReferenceRecorder, ReferenceTrace, Window
from emu.dmm.policies.replacement import Pages, Victims
from emu.dmm.policies.victims import VICTIMS
from emu.errors import BadInput
from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm

DEFAULT_GUEST = "memory"
PATTERNS = tuple(f"pages=256 {rest}" for rest in ("rounds=40 mode=0", "rounds=1 mode=1", "rounds=2 mode=2"))
TICKS, AGES = 100, 10  # how often the period of ``aging`` and the tau of ``wsclock`` fit into a run
PERCENT = range(10, 101, 10)  # pool sizes, of the pages that the run touches


class Replay:
    """A trace in a pool of ``frames``, and what an algorithm may ask about it (``Pages`` of
    :mod:`emu.dmm.policies.replacement`).

    The pages in the trace's window stay resident, see :mod:`emu.dmm.policies.reference_trace`.

    Args:
        make: makes the algorithm for the replay.

    Attributes:
        now: virtual time in ns.
        resident: the gfns that have a frame.
        faults: references to pages that had none.

    Raises:
        ValueError: the pool is smaller than the window.
    """

    def __init__(self, trace: ReferenceTrace, frames: int, make: Callable[[Pages], Victims]) -> None:
        if frames < max(trace.window, 1):
            raise ValueError(f"a pool of {frames} frames does not hold the window of {trace.window} pages")
        self.now = 0
        self.resident: set[int] = set()
        self.faults = 0
        self._trace = trace
        self._frames = frames
        self._window = Window(trace.window)
        self._accessed: set[int] = set()
        self._dirty: set[int] = set()
        self._victims = make(self)

    def accessed(self, gfn: int) -> bool:
        return gfn in self._accessed

    def dirty(self, gfn: int) -> bool:
        return gfn in self._dirty

    def take_accessed(self, gfns: Sequence[int]) -> list[bool]:
        accessed = [gfn in self._accessed for gfn in gfns]
        self._accessed.difference_update(gfns)
        return accessed

    def run(self) -> int:
        """Replay all of the trace; returns the number of faults."""
        for _ in self.steps():
            pass
        return self.faults

    def steps(self) -> Iterator[int]:
        """Replay the trace; yields each gfn after the reference to it."""
        trace, victims = self._trace, self._victims
        period = victims.period
        tick = period
        for time, gfn, write in zip(trace.time.tolist(), trace.gfn.tolist(), trace.write.tolist(), strict=True):
            self.now = time
            while tick is not None and period is not None and time >= tick:
                victims.tick()
                tick += period
            self._window.add(gfn)
            if gfn not in self.resident:
                self._fault(gfn)
            self._accessed.add(gfn)
            if write:
                self._dirty.add(gfn)
            yield gfn

    def _fault(self, gfn: int) -> None:
        self.faults += 1
        if len(self.resident) == self._frames:
            victim = self._victims.victim(self._window.__contains__)
            assert victim is not None  # the window does not fill the pool
            self.resident.remove(victim)
            self._accessed.discard(victim)
            self._dirty.discard(victim)
            self._victims.left(victim)
        self.resident.add(gfn)
        self._victims.entered(gfn)


@dataclass(frozen=True)
class Comparison:
    """What one trace comes to.

    Attributes:
        title: what was recorded.
        references, pages, window: of the trace.
        frames: the pool sizes.
        rates: by algorithm, for each pool size: faults in percent of the references.
    """

    title: str
    references: int
    pages: int
    window: int
    frames: list[int]
    rates: dict[str, list[float]]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def runs(file: str | None, guest: str | None, append: str | None) -> Iterator[tuple[str, ReferenceTrace]]:
    """What to compare, each with a title: a recorded file; or a guest, by default ``memory`` with three patterns.

    Raises:
        BadInput: the file is no trace, or as :func:`record`.
    """
    if file is not None:
        yield file, ReferenceTrace.load(file)
        return
    patterns = PATTERNS if guest is None and append is None else (append or "",)
    guest = guest or DEFAULT_GUEST
    for pattern in patterns:
        yield f"{guest} {pattern}".strip(), record(guest, pattern)


def record(guest: str, append: str) -> ReferenceTrace:
    """The references of a guest's whole run.

    Raises:
        BadInput: there is no such guest, or one of its instructions needs more pages than the recorder's window holds.
    """
    vm = boot_vm(guest, append=append)
    assert vm.guest is not None
    recorder = ReferenceRecorder(vm.guest.image)
    vm.attach(recorder)
    outcome = run_vm(vm)
    if outcome.ending == Ending.OUT_OF_FRAMES:
        raise BadInput(guest, f"cannot be recorded: {outcome.sentence}")
    return recorder.trace()


def compare(trace: ReferenceTrace, title: str) -> Comparison:
    """Replay ``trace`` through every algorithm.

    Raises:
        BadInput: the run touches fewer pages than the window holds.
    """
    sizes = sorted({max(1, trace.pages * percent // 100) for percent in PERCENT})
    frames = [size for size in sizes if size >= trace.window]
    if not len(trace) or not frames:
        raise BadInput(title, f"touches {trace.pages} pages: too few for a window of {trace.window}")
    span = int(trace.time[-1] - trace.time[0])
    offered = {"period": max(1, span // TICKS), "tau": max(1, span // AGES), "trace": trace}
    rates = {}
    for name, algorithm in VICTIMS.items():
        make = partial(algorithm.factory, **{key: offered[key] for key in offered if key in algorithm.options})
        rates[name] = [100 * Replay(trace, size, make).run() / len(trace) for size in frames]
    return Comparison(title, len(trace), trace.pages, trace.window, frames, rates)


def table(comparison: Comparison) -> str:
    """A comparison for people: a line for each pool size, a column for each algorithm."""
    lines = [
        f"{comparison.title}: {comparison.references} references to {comparison.pages} pages, "
        f"window {comparison.window}; faults in % of the references",
        f"{'frames':>6}{'':>7}" + "".join(f"{name:>10}" for name in comparison.rates),
    ]
    for index, frames in enumerate(comparison.frames):
        rates = "".join(f"{rates[index]:>10.2f}" for rates in comparison.rates.values())
        lines.append(f"{frames:>6}{100 * frames / comparison.pages:>6.0f}%{rates}")
    return "\n".join(lines)


def check_plotting() -> None:
    """Make sure that :func:`plot` can do its work.

    Raises:
        BadInput: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise BadInput("--plot", "needs matplotlib, which is not installed: pip install matplotlib")


def plot(comparisons: Sequence[Comparison]) -> bytes:
    """The comparisons as a PNG picture, a panel for each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(comparisons) + 1.6, 4.8), layout="constrained")
    panels = figure.subplots(1, len(comparisons), squeeze=False)[0]
    for panel, comparison in zip(panels, comparisons, strict=True):
        for (name, rates), marker in zip(comparison.rates.items(), cycle("os^vDXP"), strict=False):
            best = name == "optimal"
            panel.plot(
                [100 * frames / comparison.pages for frames in comparison.frames], rates, label=name, marker=marker,
                markersize=5, color="black" if best else None, linewidth=2.2 if best else 1.3,
            )  # fmt: skip
        size = f"{comparison.references} references to {comparison.pages} pages"
        panel.set_title(f"{comparison.title}\n{size}", fontsize=10)
        panel.set_xlabel("pool size in % of the pages touched")
        panel.set_ylabel("faults in % of the references")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
