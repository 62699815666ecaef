"""Group ``linux``: Debian's cloud kernel to its end, against QEMU's TCG with the same guest; and with all policies."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from emu.bench.dmm import ALL_POLICIES
from emu.bench.harness import Case, Round
from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.errors import BadInput

INIT = """\
#!/bin/sh
mount -t proc proc /proc
i=0; while [ $i -lt 20 ]; do busybox ls / > /dev/null; i=$((i+1)); done
dd if=/bin/busybox bs=4096 2>/dev/null | md5sum
poweroff -f
"""
ARGUMENTS = "console=ttyS0 nolapic noapic acpi=off nokaslr mitigations=off"
HALTED = "System halted"
_TIMEOUT = 300  # s


def _wall_seconds(command: list[str]) -> Round:
    def one_round() -> float:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if HALTED.encode() in line:
                    return time.perf_counter() - begin
        finally:
            process.kill()
            process.wait(_TIMEOUT)
        raise BadInput("linux", f"{command[0]} ended before {HALTED!r}")

    return one_round


def cases() -> Iterator[Case]:
    """The boot in both paging architectures."""
    try:
        kernel, busybox = packages.kernel(), packages.busybox()
    except packages.NoPackage as error:
        raise BadInput("linux", str(error)) from None
    qemu = shutil.which("qemu-system-x86_64")
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory) / "initrd.gz"
        initrd.write_bytes(build_initramfs(busybox, INIT))
        peer = None
        if qemu:
            machine = ["-accel", "tcg", "-m", "128", "-nographic", "-no-reboot"]
            peer = _wall_seconds(
                [qemu, *machine, "-kernel", str(kernel), "-initrd", str(initrd), "-append", ARGUMENTS]
            )
        run = [sys.executable, "-m", "emu", "run", str(kernel), "--ram", "128M"]
        run += ["--initrd", str(initrd), "--append", ARGUMENTS]
        for mmu in ("shadow", "nested"):
            ours = _wall_seconds([*run, "--mmu", mmu])
            yield Case("linux", f"boot to {HALTED!r}, {mmu}", ours, peer, "qemu-system-x86_64 -accel tcg", 1, "s")
        all_policies = _wall_seconds([*run, *(f"--policy={policy}" for policy in ALL_POLICIES)])
        static = _wall_seconds([*run, "--policy=static"])
        yield Case("linux", "the same with all policies", all_policies, static, "static mapping", 1, "s")
