"""The summary of a run."""

from __future__ import annotations

import json

import pytest

from emu.observe.summary import format_summary, summarise
from emu.session import boot_vm, run_vm
from emu.units import format_time


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_a_run_in_numbers(mmu: str) -> None:
    vm = boot_vm("hello", ram="2M", pool="1M", mmu=mmu)
    summary = summarise(vm, run_vm(vm), wall=0.25)
    assert json.loads(format_summary(summary)) == summary
    assert summary["guest"] == "hello" and summary["vm"] == "vm0"
    assert (summary["outcome"], summary["status"], summary["exit_value"]) == ("exit", 1, 0)
    assert (summary["ram_bytes"], summary["pool_bytes"], summary["pool_frames"]) == (2 << 20, 1 << 20, 256)
    assert summary["mmu"] == mmu and summary["policies"] == {"demand": {}}
    assert 0 < summary["frames_used"] < 256
    assert summary["frames_used"] == summary["events"]["dmm-fault"] == summary["exits"]["need"]
    assert summary["virtual_ns"] == vm.now and summary["wall_s"] == 0.25
    assert summary["console_bytes"] == len(vm.platform.console)
    assert (summary["shadow_tables"] > 0) == (mmu == "shadow")


def test_a_vm_without_a_guest_and_without_an_end() -> None:
    vm = boot_vm("hello")
    outcome = run_vm(vm, max_time=1)
    summary = summarise(vm, outcome, 0)
    assert (summary["outcome"], summary["status"], summary["exit_value"]) == ("max-time", 124, None)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1260, "1.26 us"),
        (19_399, "19.4 us"),
        (3_250_000, "3.25 ms"),
        (90 * 10**9, "90 s"),
    ],
)
def test_times(ns: int, text: str) -> None:
    assert format_time(ns) == text
