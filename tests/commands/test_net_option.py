"""--net on the command line: files, limits, signals, and what is said at the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from emu.cli import main
from emu.devices.pcap import PcapWriter, read_packets
from tests.devices.network_guest import frame
from tests.devices.test_user_network import there

Capture = pytest.CaptureFixture[str]
SLEEP = """\
.code16
    sti
    hlt
"""
needs_libslirp = pytest.mark.skipif(not there(), reason="libslirp is not installed (Debian's libslirp0)")


@pytest.fixture
def sleeper(tmp_path: Path) -> str:
    (tmp_path / "guest.s").write_text(SLEEP)
    return str(tmp_path / "guest.s")


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_the_log_never_overwrites_an_input(tmp_path: Path, sleeper: str, capsys: Capture) -> None:
    log = tmp_path / "log"
    PcapWriter(log).close()
    before = log.read_bytes()
    assert main(["run", sleeper, "--net", f"none,log={sleeper}"]) == 2
    assert main(["run", sleeper, "--net", f"replay={log},log={log}"]) == 2
    assert main(["run", sleeper, "--net", f"none,log={log}", "--events", str(log)]) == 2
    assert capsys.readouterr().err.count("is used by this run already and would be overwritten\n") == 3
    assert Path(sleeper).read_text() == SLEEP and log.read_bytes() == before


def test_a_guest_without_a_wire_sleeps_for_ever(sleeper: str, capsys: Capture) -> None:
    for net in ("none", "none,card=e1000"):
        assert main(["run", sleeper, "--net", net]) == 124
        assert "halted, and nothing can ever wake it" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path, sleeper: str, capsys: Capture) -> None:
    writer = PcapWriter(tmp_path / "frames")
    for number in range(2000):
        writer.write(number * 1000, False, frame())
    writer.close()
    assert main(["run", sleeper, "--net", f"replay={tmp_path / 'frames'},log=/dev/full"]) == 2
    err = capsys.readouterr().err
    assert err == "emu: --net: /dev/full cannot be written: No space left on device\n"


def test_the_log_of_a_replay_is_what_was_replayed(tmp_path: Path, sleeper: str) -> None:
    writer = PcapWriter(tmp_path / "frames")
    for number in range(100):
        writer.write(number * 10_000, False, frame())
    writer.close()
    main(["run", sleeper, "--net", f"replay={tmp_path / 'frames'},card=e1000,log={tmp_path / 'again'}"])
    assert read_packets(tmp_path / "again") == read_packets(tmp_path / "frames")


@needs_libslirp
def test_time_and_signals_are_heard_while_the_host_s_sockets_are_awaited(
    sleeper: str, port: int, capsys: Capture
) -> None:
    command = ["run", sleeper, "--net", f"user,forward={port}:80"]
    begin = time.monotonic()
    assert main([*command, "--timeout", "1"]) == 124
    assert time.monotonic() - begin < 20
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert main(command) == 130
    assert "--net user" not in capsys.readouterr().err  # nobody came


@needs_libslirp
def test_a_port_that_is_taken_is_one_line(sleeper: str, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["run", sleeper, "--net", f"user,forward={port}:80"]) == 2
    err = capsys.readouterr().err
    assert err == f"emu: --net: TCP port {port} of the host's loopback cannot be had\n"
