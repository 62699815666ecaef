"""A host that refuses something: one line that names it, and never the status of a guest's success."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from emu.cli import main
from emu.devices.disk import Disk, DiskFailed

Capture = pytest.CaptureFixture[str]


def limited(limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["bash", "-c", f'{limit}; exec "$@"', "-", sys.executable, "-m", "emu", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("kilobytes", [150_000, 300_000, 500_000, 2_000_000])
def test_address_space(kilobytes: int) -> None:
    done = limited(f"ulimit -v {kilobytes}", "run", "hello")
    success = done.returncode == 1 and done.stdout.startswith("Hello!")
    refusal = done.returncode in (2, 125) and done.stdout == ""
    assert success or refusal, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith("emu: ")
    if kilobytes == 2_000_000:
        assert success


def test_a_file_may_not_grow(tmp_path: Path) -> None:
    done = limited("ulimit -f 0", "run", "hello", "--events", f"{tmp_path}/events")
    assert done.returncode == 2
    assert done.stderr.endswith(f"emu: --events: {tmp_path}/events cannot be written: File too large\n")


def test_no_thread_for_the_time_limit(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert main(["run", "hello", "--timeout", "60"]) == 2
    assert capsys.readouterr().err == (
        "emu: --timeout: this host allows no thread for it (ulimit -u); --max-time needs none\n"
    )
    assert main(["run", "hello"]) == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "this host gives the process no more memory (ulimit -v, or a container's limit)"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            "/tmp/x: this host refuses: No space left on device",
        ),
        (
            ImportError("lib.so: failed to map\nsegment"),
            "a part of emu cannot be loaded: lib.so: failed to map segment",
        ),
    ],
)
def test_what_a_host_lacks_is_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("emu.cli._dispatch", fail)
    assert main(["run", "hello"]) == 125
    err = capsys.readouterr().err
    assert err.startswith(f"emu: {says}") and err.count("\n") == 1


def test_a_full_disk_is_said_once_and_the_drive_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 16))
    disk = Disk(image, writable=True)
    told: list[tuple[str, str]] = []
    disk.on_failure = lambda name, reason: told.append((name, reason))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for _ in range(3):
        with pytest.raises(DiskFailed):
            disk.write(0, bytes(512))
    assert told == [(str(image), "cannot be written: No space left on device")]


def test_the_guest_sees_the_full_disk_and_the_user_reads_of_it(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WRITE SECTORS of the ATA drive: the guest exits with the error bit of its status register."""
    image, source = tmp_path / "image", tmp_path / "guest.s"
    image.write_bytes(bytes(1 << 16))
    source.write_text(
        ".code16\nmov dx, 0x1F6\nmov al, 0xE0\nout dx, al\nmov dx, 0x1F2\nmov al, 1\nout dx, al\n"
        "mov dx, 0x1F7\nmov al, 0x30\nout dx, al\nmov dx, 0x1F0\nmov cx, 256\nx: out dx, ax\nloop x\n"
        "mov dx, 0x1F7\nin al, dx\nand al, 1\nout 0xF4, al\nhlt\n"
    )

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert main(["run", str(source), "--disk", f"{image},writable", "--max-time", "1"]) == 3
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"emu: {image}: cannot be written: No space left on device; the guest sees an error of its drive"
    assert len(err) == 2


def test_an_image_that_cannot_be_read(capsys: Capture) -> None:
    assert main(["run", "hello", "--disk", "/proc/self/mem"]) == 2
    assert capsys.readouterr().err == "emu: /proc/self/mem: cannot be read as a disk image: Invalid argument\n"


def test_looking_at_the_screen_changes_nothing(capsys: Capture) -> None:
    assert main(["run", "smc", "--pool", "16K", "--screen", "-"]) == 124
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--ram={}", "--pool={}", "--cpus={}", "--schedule=seed={}", "--max-time={}", "--quantum={}s",
     "--policy=retire:every={}s", "--policy=retire:every={}", "--policy=swap:memory={}M"],
)  # fmt: skip
def test_numbers_of_many_digits(capsys: Capture, option: str) -> None:
    for digits in (400, 5000):
        assert main(["run", "smc", option.format("7" * digits)]) == 2
        err = capsys.readouterr().err
        assert err.startswith("emu: --") and err.count("\n") == 1
