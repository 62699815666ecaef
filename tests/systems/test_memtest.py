"""memtest86+ 6, which drives the APIC, reads ACPI tables and PCI, and finds faults in memory if there are any."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_the_first_tests_find_no_error(memtest: Path, mmu: str) -> None:
    vm = boot_vm(memtest, ram="8M", mmu=mmu, append="console=ttyS0,115200")
    assert run_vm(vm, until="#6  ", max_time=60_000_000_000).ending is Ending.UNTIL  # it shows some of them only
    console = bytes(vm.platform.console).decode("latin1")
    assert "[Address test, walking ones, no cache]" in console
    assert set(re.findall(r"Errors: *(\d+)", console)) == {"0"}
    vm.audit()
