"""A guest that makes the engine translate a page of code for each instruction still hears whoever wants it to stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.machine.vm import Stop
from emu.session import boot_vm

# BOUND fails, and its handler is not there: from 0 on zeros are executed, each of which stores into its own page
CODE = bytes.fromhex("fab080624f00e6f480624f")


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_code_that_changes_its_own_page_for_ever_is_left_often(tmp_path: Path, mmu: str) -> None:
    guest = tmp_path / "guest.bin"
    guest.write_bytes(CODE)
    vm = boot_vm(guest, load=0x7C00, ram="16M", mmu=mmu)
    assert vm.run(3_000) is Stop.DEADLINE
    assert vm.exits.counts["stop"] > 5  # once at the deadline; the others are for the time that translating takes
    vm.close()
