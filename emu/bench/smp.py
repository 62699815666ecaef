"""Group ``smp``: several processors, against QEMU's TCG with as many that take turns in one thread, as they do here.

User CPU time: of the guest ``smp``'s lock workload alone (what a run without it takes is subtracted), and of Debian's
cloud kernel from power-on to power-off.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emu.bench.harness import Case, Round
from emu.bench.linux import INIT
from emu.boot import firmware, packages
from emu.boot.flat import BOOT_INFO
from emu.boot.initramfs import build_initramfs
from emu.errors import BadInput
from emu.session import boot_vm, run_vm

QEMU = "qemu-system-x86_64"
PEER = f"{QEMU} -accel tcg,thread=single"
LOCK_CPUS = (1, 2, 4)
LINUX_CPUS = (1, 4)
ROUNDS = 100_000  # how often each processor takes each lock
LOCKS, START = 2, 1  # parts of the guest
SUCCESS = 1  # exit status of a guest that writes 0 to the exit port
LINUX_ARGUMENTS = "console=ttyS0 nokaslr mitigations=off"
POWER_DOWN = b"reboot: Power down"
_RAM_MIB = 4  # of the guest ``smp``
_ROM_BYTES = 64 << 10
_JUMP = b"\xea\x00\x80\x00\x00"  # to 0000:8000, at the reset vector


def _user_seconds(command: Sequence[str], status: int, text: bytes = b"") -> float:
    """User CPU time of a command that must end with a status and, somewhere in its output, a text."""
    with tempfile.TemporaryFile() as output:
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
        _, waited, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(waited)
        output.seek(0)
        said = output.read()
    if process.returncode != status or text not in said:
        raise BadInput("smp", f"{' '.join(command)}: status {process.returncode}, {said[-500:].decode('latin-1')!r}")
    return float(usage.ru_utime)


def _locks(part: int, mmu: str, cpus: int) -> float:
    options: dict[str, Any] = {"cpus": cpus} if cpus > 1 else {}
    vm = boot_vm("smp", mmu=mmu, append=f"part={part} rounds={ROUNDS}", **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    outcome = run_vm(vm)
    if outcome.status != SUCCESS:
        raise BadInput("smp", f"{outcome.sentence}: {vm.platform.console.decode('latin-1')!r}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime - before


def _locks_on_qemu(part: int, cpus: int, directory: Path) -> float:
    """The guest's image lies in RAM when QEMU starts, and its ROM does nothing but jump there."""
    files = {
        "rom": bytes(_ROM_BYTES - 16) + _JUMP.ljust(16, b"\0"),
        "image": firmware.load("smp").data,
        "info": (_RAM_MIB << 20).to_bytes(8, "little") + f"part={part} rounds={ROUNDS} patience=65536".encode() + b"\0",
    }
    for name, data in files.items():
        (directory / name).write_bytes(data)
    load = firmware.guests()["smp"].load
    devices = [
        f"loader,file={directory}/image,addr={load:#x},force-raw=on",
        f"loader,file={directory}/info,addr={BOOT_INFO:#x},force-raw=on",
        "isa-debug-exit,iobase=0xf4,iosize=4",
    ]
    machine = ["-smp", str(cpus), "-m", f"{_RAM_MIB}M", "-nodefaults", "-display", "none", "-no-reboot"]
    command = [*PEER.split(), *machine, "-bios", f"{directory}/rom"]
    return _user_seconds([*command, *(word for device in devices for word in ("-device", device))], SUCCESS)


def _lock_cases(mmu: str, qemu: bool, directory: Path) -> Iterator[Case]:
    for cpus in LOCK_CPUS:

        def ours(cpus: int = cpus) -> float:
            return _locks(LOCKS, mmu, cpus) - _locks(START, mmu, cpus)

        def peer(cpus: int = cpus) -> float:
            return _locks_on_qemu(LOCKS, cpus, directory) - _locks_on_qemu(START, cpus, directory)

        name = f"locks taken {ROUNDS} times by each of {cpus}, {mmu}"
        yield Case("smp", name, ours, peer if qemu else None, PEER if qemu else "", 1, "s user")


def _linux_cases(mmu: str, qemu: bool, directory: Path) -> Iterator[Case]:
    try:
        kernel, busybox = packages.kernel(), packages.busybox()
    except packages.NoPackage as error:
        raise BadInput("smp", str(error)) from None
    initrd = directory / "initrd.gz"
    initrd.write_bytes(build_initramfs(busybox, INIT))
    guest = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", LINUX_ARGUMENTS]

    def ours(cpus: int) -> Round:
        run = [sys.executable, "-m", "emu", "run", str(kernel), "--ram", "128M", "--mmu", mmu]
        run += ["--initrd", str(initrd), "--append", LINUX_ARGUMENTS, *(["--cpus", str(cpus)] if cpus > 1 else [])]
        return lambda: _user_seconds(run, 0, POWER_DOWN)

    def peer(cpus: int) -> Round:
        machine = ["-smp", str(cpus), "-m", "128", "-nographic", "-no-reboot"]
        return lambda: _user_seconds([*PEER.split(), *machine, *guest], 0, POWER_DOWN)

    for cpus in LINUX_CPUS:
        name = f"Linux with {cpus} processors to {POWER_DOWN.decode()!r}, {mmu}"
        yield Case("smp", name, ours(cpus), peer(cpus) if qemu else None, PEER if qemu else "", 1, "s user")
    several = max(LINUX_CPUS)
    yield Case("smp", f"Linux with {several} processors, {mmu}", ours(several), ours(1), "1 processor", 1, "s user")


def cases() -> Iterator[Case]:
    """The lock workload and Linux, in both paging architectures."""
    qemu = shutil.which(QEMU) is not None
    with tempfile.TemporaryDirectory() as name:
        for mmu in ("shadow", "nested"):
            yield from _lock_cases(mmu, qemu, Path(name))
        for mmu in ("shadow", "nested"):
            yield from _linux_cases(mmu, qemu, Path(name))
