"""The summary of a fleet: as one JSON object, and as text for people."""

from __future__ import annotations

from typing import Any

from emu.fleet.fleet import Fleet, FleetStop, Member
from emu.observe.outcome import STATUS_LIMIT, STATUS_SUCCESS, Ending, Outcome
from emu.observe.summary import MemoryUse, summarise
from emu.units import format_time

STATUS_NOT_WELL = 1


def status_of(fleet: Fleet, stop: FleetStop) -> int:
    """The exit status of ``emu fleet``: 0 when all VMs ended well, 1 when some did not, 124 when some go on."""
    if stop is not FleetStop.ENDED:
        return STATUS_LIMIT
    return STATUS_SUCCESS if fleet.well == len(fleet.members) else STATUS_NOT_WELL


def summarise_fleet(fleet: Fleet, stop: FleetStop, status: int, wall: float) -> dict[str, Any]:
    """What happened in a fleet.  Everything but ``wall_s`` is the same whenever it is repeated.

    Args:
        status: the exit status.
        wall: seconds that it took.

    Returns:
        ``outcome`` (:class:`emu.fleet.fleet.FleetStop`), ``status``, ``virtual_ns`` (fleet time), ``wall_s``,
        ``quantum_ns``; ``machine``: ``memory_frames`` and the peaks ``committed_pages``, ``pool_frames``,
        ``used_frames``, ``saved_frames`` (:class:`emu.fleet.peaks.Peaks`); ``vms``: for each what
        :func:`emu.observe.summary.summarise` says but for its wall time, then ``well``, ``started_ns`` and ``ended_ns``
        in fleet time, and ``schedule``, where ``refused`` is None for what was done.  Of a VM that never started
        there is no more than ``vm``, ``outcome``, ``message`` and these.
    """
    return {
        "outcome": stop.value,
        "status": status,
        "virtual_ns": fleet.now,
        "wall_s": round(wall, 6),
        "quantum_ns": fleet.plan.quantum,
        "machine": {
            "memory_frames": fleet.machine.memory.frames,
            "committed_pages": fleet.peaks.committed,
            "pool_frames": fleet.peaks.pools,
            "used_frames": fleet.peaks.used,
            "saved_frames": fleet.peaks.saved,
        },
        "vms": [_summarise_member(member) for member in fleet.members],
    }


def _summarise_member(member: Member) -> dict[str, Any]:
    end = member.end
    if member.report is not None:
        report = member.report
    elif member.vm is not None:
        report = summarise(member.vm, Outcome(Ending.STOPPED, STATUS_LIMIT, "the fleet was stopped before its end"), 0)
        report["outcome"] = "unfinished"
    else:
        report = {"vm": member.plan.name, "outcome": member.state, "message": end.sentence if end else "not started"}
    return {key: value for key, value in report.items() if key != "wall_s"} | {
        "well": end is not None and end.well,
        "started_ns": member.started,
        "ended_ns": end.time if end else None,
        "schedule": [
            {"time_ns": result.time, "step": str(result.step), "refused": result.refused} for result in member.steps
        ],
    }


def numbers_of(member: Member) -> MemoryUse | None:
    """Of its memory now, or at its end; None without a life."""
    return MemoryUse.of(member.vm) if member.vm is not None else member.numbers


def lines(fleet: Fleet) -> list[str]:
    """What a table of numbers does not say, as lines of text."""
    memory, peaks = fleet.machine.memory.frames, fleet.peaks
    most = f"{megabytes(peaks.committed)} committed to VMs, {megabytes(peaks.pools)} in pools"
    used = f"{megabytes(peaks.used)} in use, {megabytes(peaks.saved)} saved by sharing"
    said = [f"{megabytes(memory)} of machine memory; at most {most}, {used}"]
    for member in fleet.members:
        name, end = member.plan.name, member.end
        if end is not None and not end.well:
            said.append(f"{name} at {format_time(end.time)}: {end.sentence.removeprefix(f'{name}: ')}")
        for result in member.steps:
            if result.refused is not None:
                why = result.refused.removeprefix(f"{name}: ")
                said.append(f"{name} at {format_time(result.time)}: {result.step} refused: {why}")
    return said


def megabytes(pages: int) -> str:
    """Pages as a size for people, such as 5.1M."""
    return f"{pages / 256:.1f}".removesuffix(".0") + "M"
