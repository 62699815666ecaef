"""Other kernels of Debian's, each to a script and to power-off in both paging architectures.

By default the newest 6.12, whose decompressor uses BMI2 before it sets CR4.OSFXSR.  ``EMU_LONG=1`` runs all of them;
for those of the architecture i386 apt has to know that (``dpkg --add-architecture i386``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.observe.outcome import Ending
from emu.session import boot_vm, run_vm
from tests.systems.conftest import fetched

LONG = bool(os.environ.get("EMU_LONG"))
KERNELS = [("cloud-amd64", "6.12")] + [("amd64", "6.12"), ("amd64", ""), ("686:i386", ""), ("686-pae:i386", "")] * LONG
SCRIPT = "#!/bin/sh\nbusybox echo \"release $(busybox uname -r)\"\npoweroff -f\n"


@pytest.mark.parametrize("flavour, series", KERNELS)
def test_the_kernel_reaches_its_script(flavour: str, series: str, busybox: Path, tmp_path: Path) -> None:
    kernel = fetched(lambda: packages.kernel(flavour, series))
    initrd = tmp_path / "initrd.gz"
    initrd.write_bytes(build_initramfs(busybox, SCRIPT))
    seen = []
    for mmu in ("shadow", "nested"):
        vm = boot_vm(kernel, ram="512M" if flavour == "amd64" else "256M", mmu=mmu, initrd=str(initrd),
                     append="console=ttyS0")  # fmt: skip
        outcome = run_vm(vm, max_time=120_000_000_000)
        assert outcome.ending is Ending.POWER_OFF, outcome.sentence
        seen.append((bytes(vm.platform.console), vm.now))
        vm.close()
    assert b"release " + kernel.name.removeprefix("vmlinuz-").encode() in seen[0][0]
    assert seen[0] == seen[1]
