"""Runs a firmware image on QEMU: the independent word on what a guest should do.

QEMU boots a disk with a boot sector of our own (qemu_boot.s), which sets up the boot protocol of flat images and jumps
in. The console is QEMU's debug console at port 0xE9, the exit port its isa-debug-exit at 0xF4.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.asm.assembler import assemble

QEMU = "qemu-system-x86_64"
SECTOR = 512  # bytes
MAX_IMAGE_SECTORS = 64  # up to the end of the first 64 KiB
_BOOT_SOURCE = Path(__file__).with_name("qemu_boot.s")


@dataclass(frozen=True)
class QemuRun:
    """What a run left: the console text, and the process's exit status (None when it had to be stopped)."""

    console: str
    status: int | None


def have_qemu() -> bool:
    """True when the emulator is installed."""
    return shutil.which(QEMU) is not None


def disk_image(image: bytes, ram_bytes: int, command_line: str = "") -> bytes:
    """A raw disk that boots the image with the given boot information."""
    sectors = -(-len(image) // SECTOR)
    if sectors > MAX_IMAGE_SECTORS or len(command_line) > 254:
        raise ValueError("the image or the command line is too long")
    boot = assemble_boot_sector(sectors)
    info = ram_bytes.to_bytes(8, "little") + command_line.encode("ascii") + b"\0"
    disk = boot + info.ljust(SECTOR, b"\0") + image.ljust(sectors * SECTOR, b"\0")
    return disk.ljust(1 << 20, b"\0")  # SeaBIOS wants a disk of a plausible size


def assemble_boot_sector(image_sectors: int) -> bytes:
    """The boot sector, with its signature."""
    code = assemble(_BOOT_SOURCE, {"IMAGE_SECTORS": image_sectors}, load=0x7C00)
    if len(code) > 446:
        raise ValueError("the boot sector is too long")
    return code.ljust(510, b"\0") + b"\x55\xaa"


def run_on_qemu(
    image: bytes,
    ram_mib: int = 16,
    command_line: str = "",
    cpu: str = "max",
    timeout: float = 60.0,
    cpus: int = 1,
    thread: str = "multi",
    options: Sequence[str] = (),
) -> QemuRun:
    """Boot an image on QEMU's TCG and wait for its end.

    Args:
        ram_mib: RAM size in MiB.
        cpu: QEMU's name of the CPU model.
        timeout: seconds of wall time before the run is stopped.
        cpus: number of processors.
        thread: "multi" for a host thread a processor, "single" for one in which they take turns.
        options: more of QEMU's.
    """
    with tempfile.TemporaryDirectory() as directory:
        disk, console = Path(directory, "disk"), Path(directory, "console")
        disk.write_bytes(disk_image(image, ram_mib << 20, command_line))
        console.touch()
        command = [
            QEMU, "-accel", f"tcg,thread={thread}", "-cpu", cpu, "-smp", str(cpus), "-m", f"{ram_mib}M", "-nodefaults",
            "-display", "none", "-no-reboot", "-drive", f"file={disk},format=raw,if=ide",
            "-debugcon", f"file:{console}", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            *options,
        ]  # fmt: skip
        try:
            status = subprocess.run(command, timeout=timeout, stdin=subprocess.DEVNULL, check=False).returncode
        except subprocess.TimeoutExpired:
            status = None
        return QemuRun(_own_output(console.read_text("latin-1")), status)


def memory_after_boot(options: Sequence[str] = (), ram_mib: int = 16, timeout: float = 60.0) -> bytes:
    """Guest memory when SeaBIOS has done its work and has jumped to a boot sector.

    Args:
        options: more of QEMU's.
        timeout: seconds of wall time for the boot. Raises TimeoutError when it takes longer.
    """
    code = bytes((0xE6, 0xE9, 0xF4, 0xEB, 0xFD))  # again: out 0xE9, al; hlt; jmp again + 2
    with tempfile.TemporaryDirectory() as directory:
        disk, console, memory = (Path(directory, name) for name in ("disk", "console", "memory"))
        disk.write_bytes((code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
        console.touch()
        command = [
            QEMU, "-accel", "tcg", "-m", f"{ram_mib}M", "-nodefaults", "-display", "none", "-vga", "std",
            "-drive", f"file={disk},format=raw,if=ide", "-debugcon", f"file:{console}", "-qmp", "stdio", *options,
        ]  # fmt: skip
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, text=True) as qemu:
            try:
                end = time.monotonic() + timeout
                while not console.stat().st_size:
                    if time.monotonic() > end or qemu.poll() is not None:
                        raise TimeoutError("QEMU did not boot")
                    time.sleep(0.02)
                save = {"val": 0, "size": ram_mib << 20, "filename": str(memory)}
                commands = [
                    {"execute": "qmp_capabilities"}, {"execute": "pmemsave", "arguments": save}, {"execute": "quit"},
                ]  # fmt: skip
                qemu.communicate("\n".join(map(json.dumps, commands)), timeout)
            finally:
                qemu.kill()
        return memory.read_bytes()


def _own_output(text: str) -> str:
    """The console without what SeaBIOS wrote to it before the guest ran."""
    marker = "Booting from 0000:7c00\n"
    return text.partition(marker)[2] if marker in text else text
