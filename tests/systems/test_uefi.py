"""UEFI firmware, Debian's package ovmf, in the ROM: to its shell, and a Linux kernel that the shell starts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from emu.boot import packages
from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm
from tests.systems.conftest import fetched


def _ended(disk: Path, until: str, mmu: str) -> tuple[bytes, int]:
    vm = boot_vm(disk, bios=str(fetched(packages.ovmf)), ram="256M", mmu=mmu)
    outcome = run_vm(vm, until=until, max_time=60_000_000_000)
    assert outcome.ending is Ending.UNTIL, outcome.sentence
    end = bytes(vm.platform.console), vm.now
    vm.close()
    return end


def test_the_firmware_comes_to_its_shell(tmp_path: Path) -> None:
    disk = tmp_path / "empty.img"
    disk.write_bytes(bytes(1 << 20))
    seen = [_ended(disk, "Shell> ", mmu) for mmu in ("shadow", "nested")]
    assert b"UEFI Interactive Shell" in seen[0][0]
    assert seen[0] == seen[1]


@pytest.mark.skipif(not shutil.which("mformat"), reason="mtools are not installed")
def test_linux_starts_as_a_program_of_the_firmware(kernel: Path, tmp_path: Path) -> None:
    disk, script = tmp_path / "system.img", tmp_path / "startup.nsh"
    disk.write_bytes(bytes(64 << 20))
    script.write_bytes(b"linux.efi console=ttyS0\r\n")
    for command in (["mformat", "-i", disk, "-h", "16", "-s", "63", "-t", "130", "::"],
                    ["mcopy", "-i", disk, kernel, "::/linux.efi"], ["mcopy", "-i", disk, script, "::/"]):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    console, _ = _ended(disk, "Unable to mount root fs", "shadow")
    assert b"EFI v2.70 by EDK II" in console
