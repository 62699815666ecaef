"""Input files: what is read whole is regular, bounded, and in time; one line says what was expected."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from emu.errors import BadInput
from emu.infile import read_input


def refusal(path: str | Path, most: int = 100, timeout: float | None = 0.2) -> str:
    with pytest.raises(BadInput) as caught:
        read_input("--input", path, most, timeout=timeout)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"--input: {path} ")
    return caught.value.reason.removeprefix(f"{path} ")


def test_up_to_the_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_input("--input", path, 100) == b"x" * 100
    path.write_bytes(b"x" * 101)
    assert refusal(path) == "has 101 bytes; expected 100 at most"
    os.truncate(path, 1 << 40)
    assert refusal(path, 64 << 20) == "has 1099511627776 bytes; expected 64M at most"


def test_a_file_whose_size_is_not_what_it_says() -> None:
    assert os.stat("/proc/self/maps").st_size == 0
    assert refusal("/proc/self/maps") == "has more than the 100 that are expected at most"
    assert refusal("/proc/self/mem") == "cannot be read: Input/output error"


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a directory; expected a file"
    assert refusal("/dev/zero") == "is a device; expected a file"
    assert refusal(tmp_path / "none") == "cannot be read: No such file or directory"
    assert read_input("--input", "/dev/null", 100) == b""


def test_a_pipe_is_read_to_its_end_or_until_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert refusal(path) == "is a pipe from which not all has come within 0.2 s (--timeout)"
    data = os.urandom(200_000)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    assert read_input("--input", path, 1 << 20, timeout=60) == data
    writer.join()
    writer = threading.Thread(target=path.write_bytes, args=(bytes(500),))
    writer.start()
    assert refusal(path, timeout=60) == "has more than the 100 that are expected at most"
    writer.join()
