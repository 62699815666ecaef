"""The command line: what it prints where, its exit statuses, and one line for everything that cannot be."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zstandard

from emu.cli import COMMANDS, main
from emu.commands import host
from emu.commands.arguments import input_files

Capture = pytest.CaptureFixture[str]

SLOW_START = f"emu: {host.COMPILING_ONCE}\n"

LOOP = ".code16\n mov al, 0x21\n out 0xE9, al\nhere:\n jmp here\n"
HALT = ".code16\n cli\n hlt\n"
ECHO = """
.code16
next:
    mov dx, 0x3FD
    in al, dx
    test al, 1
    jz next
    mov dx, 0x3F8
    in al, dx
    out 0xE9, al
    cmp al, '.'
    jne next
    mov al, 0x10
    out 0xF4, al
    hlt
"""


def source(tmp_path: Path, text: str, name: str = "guest.s") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# --- running ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
def test_console_and_closing_line(capsys: Capture, mmu: str) -> None:
    assert main(["run", "hello", "--mmu", mmu, "--audit"]) == 1  # 0 << 1 | 1
    out, err = capsys.readouterr()
    assert out.startswith("Hello!") and out.endswith("protected mode.\n")
    last = err.splitlines()[-1]
    assert last.startswith("emu: hello: the guest wrote 0 to the exit port; status 1, ")
    assert err.removesuffix(last + "\n") in ("", SLOW_START)


def test_until(capsys: Capture) -> None:
    assert main(["run", "hello", "--until", "real mode"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("real mode")
    assert "the console printed 'real mode'" in err


def test_until_may_be_printed_last_and_may_never_come() -> None:
    assert main(["run", "hello", "--until", "protected mode.\n"]) == 0
    assert main(["run", "hello", "--until", "no such text"]) == 1


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x7F, 0xFF), (0x80, 1)])
def test_exit_port(tmp_path: Path, capsys: Capture, value: int, status: int) -> None:
    assert main(["run", source(tmp_path, f".code16\n mov al, {value}\n out 0xF4, al\n hlt\n")]) == status
    assert f"the guest wrote {value} to the exit port" in capsys.readouterr().err


def test_a_crash_is_reported(capsys: Capture) -> None:
    assert main(["run", "crash"]) == 134
    out, err = capsys.readouterr()
    assert "crash: the stack overflows now" in out
    assert "--- guest crash: triple fault" in err and "page walk of gva 0xbadeffc" in err
    assert err.splitlines()[-1].startswith("emu: crash: the guest crashed: triple fault; status 134, ")


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (LOOP, ["--max-time", "0.001"], "the limit in virtual time was reached"),
        (LOOP, ["--timeout", "0.3"], "the limit in wall time was reached"),
        (HALT, [], "the guest halted, and nothing can ever wake it"),
    ],
)
def test_limits(tmp_path: Path, capsys: Capture, text: str, options: list[str], reason: str) -> None:
    assert main(["run", source(tmp_path, text), *options]) == 124
    assert f"guest: {reason}; status 124" in capsys.readouterr().err


def test_max_time_is_exact(tmp_path: Path, capsys: Capture) -> None:
    main(["run", source(tmp_path, LOOP), "--max-time", "0.001"])
    assert "1 ms virtual" in capsys.readouterr().err


def test_out_of_frames(capsys: Capture) -> None:
    assert main(["run", "memory", "--pool", "64K"]) == 124
    err = capsys.readouterr().err
    assert "all 16 frames of the pool are in use" in err and "gfn" in err


def test_serial_input(tmp_path: Path, capsys: Capture) -> None:
    guest = source(tmp_path, ECHO)
    given = tmp_path / "input"
    given.write_bytes(b"typed ahead, more than a FIFO holds.")
    assert main(["run", guest, "--input", str(given), "--max-time", "1"]) == 0x21
    assert capsys.readouterr().out == "typed ahead, more than a FIFO holds."


def test_append_and_policy_and_sizes(capsys: Capture) -> None:
    options = ["--append", "pages=8 rounds=1", "--ram", "2M", "--pool", "2M", "--policy", "static", "--summary", "-"]
    assert main(["run", "memory", *options]) == 1
    summary = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert (summary["ram_bytes"], summary["policies"]) == (2 << 20, {"static": {}})
    assert summary["frames_used"] == summary["pool_frames"] == 512


def test_a_flat_binary_and_a_boot_sector(tmp_path: Path) -> None:
    code = b"\xb0\x01\xe6\xf4\xf4"  # mov al, 1; out 0xF4, al; hlt
    (tmp_path / "kernel").write_bytes(code)
    (tmp_path / "disk").write_bytes(code.ljust(510, b"\0") + b"\x55\xaa")
    assert main(["run", str(tmp_path / "kernel"), "--load", "0x1000"]) == 3
    assert main(["run", str(tmp_path / "disk")]) == 3


# --- files ------------------------------------------------------------------------------------------------------


def test_events_and_summary(tmp_path: Path, capsys: Capture) -> None:
    logs, summaries = [], []
    for number in range(2):
        events, summary = tmp_path / f"events{number}", tmp_path / f"summary{number}"
        main(["run", "hello", "--events", str(events), "--summary", str(summary)])
        logs.append(events.read_bytes())
        summaries.append(json.loads(summary.read_text()) | {"wall_s": 0})
    assert logs[0] == logs[1] and summaries[0] == summaries[1]
    lines = [json.loads(line) for line in logs[0].splitlines()]
    assert len(lines) == sum(summaries[0]["events"].values()) > 0
    assert [line["seq"] for line in lines] == list(range(len(lines)))


def test_events_on_standard_output_leave_it_to_them(capsys: Capture) -> None:
    main(["run", "hello", "--events", "-"])
    out, err = capsys.readouterr()
    assert all(json.loads(line)["vm"] == "vm0" for line in out.splitlines())
    assert "Hello!" in err


def test_an_output_file_that_cannot_be_written_is_found_first(tmp_path: Path, capsys: Capture) -> None:
    for option in ("--events", "--summary"):
        assert main(["run", "hello", option, str(tmp_path / "no" / "such")]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"emu: {option}: ") and err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("option", ["--events", "--summary"])
def test_a_full_disk(capsys: Capture, option: str) -> None:
    assert main(["run", "hello", option, "/dev/full"]) == 2
    assert f"emu: {option}: /dev/full cannot be written: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize("policy", ["swap:memory=4K,file=", "record:file="])
@pytest.mark.parametrize("option", ["--events", "--summary", "--screen", "--serial2"])
def test_a_policy_s_file_is_never_overwritten(tmp_path: Path, capsys: Capture, policy: str, option: str) -> None:
    file = str(tmp_path / "y")
    assert main(["run", "hello", option, file, "--policy", policy + file]) == 2
    assert f"emu: {option}: {file} is used by this run already" in capsys.readouterr().err


def test_a_trace_that_is_the_guest_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    guest = source(tmp_path, HALT)
    assert main(["run", guest, "--policy", f"record:file={guest}"]) == 2
    assert Path(guest).read_text() == HALT and capsys.readouterr().err.count("\n") == 1


def test_who_writes_to_an_image_has_it_alone(tmp_path: Path, capsys: Capture) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4096))
    assert main(["run", "hello", "--disk", f"{image},writable", "--disk", str(image)]) == 2
    assert "being written to by another drive or run" in capsys.readouterr().err
    assert main(["run", "hello", "--disk", str(image), "--disk", f"{image},writable"]) == 2
    assert "used by another drive or run" in capsys.readouterr().err
    assert main(["run", "hello", "--disk", str(image), "--disk", str(image)]) == 1
    assert main(["run", "hello", "--disk", f"{image},writable"]) == 1


def test_an_input_is_never_overwritten(tmp_path: Path, capsys: Capture) -> None:
    guest = source(tmp_path, HALT)
    assert main(["run", guest, "--events", guest]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert Path(guest).read_text() == HALT


@pytest.mark.parametrize("names", [("log", "log"), ("log", "./log"), ("log", "link"), ("-", "-")])
def test_no_file_is_written_twice(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("log")
    assert main(["run", "hello", "--events", names[0], "--summary", names[1]]) == 2
    assert capsys.readouterr().err == f"emu: --summary: {names[1]} is written by --events already\n"


def test_devices_may_be_written_twice() -> None:
    assert main(["run", "hello", "--events", "/dev/null", "--summary", "/dev/null"]) == 1


def test_all_inputs_are_known() -> None:
    named = {"disks": ["c", "d,virtio"], "floppies": ["f,writable"], "cdrom": "g", "net": "replay=h"}
    options = argparse.Namespace(guest="kernel", input="keys", initrd="a arguments,b", bios="e", **named)
    assert {"kernel", "keys", "a", "b", "c", "d", "e", "f", "g", "h"} <= set(input_files(options))


def test_a_source_that_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "bad.s"
    bad.write_bytes(b"nop\xff\n")
    assert main(["run", str(bad)]) == 2
    assert capsys.readouterr().err == f"emu: {bad}: not UTF-8 text: byte 0xff at offset 3\n"


@pytest.mark.parametrize("line", [".space 3000000000", ".space 99999999999", ".fill 3000000000, 8, 1", ".space -1"])
def test_a_source_that_makes_nonsense(tmp_path: Path, capsys: Capture, line: str) -> None:
    guest = source(tmp_path, f".code16\n{line}\n")
    assert main(["run", guest]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"emu: {guest}:2: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("append", "message", "value"),
    [
        ("pages=zz", "pages=zz: expected a decimal number", 1),
        ("pages=-1", "pages=-1: expected a decimal number", 1),
        ("rounds=1 pages=", "pages=: expected a decimal number", 1),
        ("seed=4294967296", "seed=4294967296: expected a decimal number below 4294967296", 1),
        ("page=5", "page=5: no such parameter; there are pages, rounds, steps, seed and mode", 1),
        ("mode=3", "mode=3: expected 0, 1 or 2", 1),
        ("pages=99999999", "pages=99999999: RAM and address space have room for 3836", 2),
    ],
)
def test_the_memory_guest_says_what_is_wrong(capsys: Capture, append: str, message: str, value: int) -> None:
    assert main(["run", "memory", "--append", append]) == value << 1 | 1
    assert capsys.readouterr().out.startswith(f"memory: {message}")


def test_several_processors(capsys: Capture, tmp_path: Path) -> None:
    """The same turns, the same log, which says which processor; other turns, another log."""
    def run(name: str, *turns: str) -> bytes:
        log, summary = tmp_path / f"{name}.log", tmp_path / f"{name}.json"
        files = ["--events", str(log), "--summary", str(summary)]
        assert main(["run", "smp", "--cpus", "3", "--append", "part=2", *turns, *files]) == 1
        assert "smp: 3 processors, all ok" in capsys.readouterr().out
        assert json.loads(summary.read_text())["cpus"] == 3
        return log.read_bytes()

    first = run("a", "--quantum", "20us", "--schedule", "seed=5")
    assert {json.loads(line)["cpu"] for line in first.splitlines()} == {0, 1, 2}
    assert run("b", "--quantum", "20us", "--schedule", "seed=5") == first
    assert len({first, run("c", "--quantum", "20us", "--schedule", "seed=6"), run("d", "--quantum", "20us")}) == 3


# --- bad usage --------------------------------------------------------------------------------------------------

NO_SIZES = ["", "x", "1.5M", "-1", "64 M", "M", "1MM", "0x100000", "٣M"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nosuch"],
        ["run"],
        ["run", "--bogus", "hello"],
        ["run", "hello", "extra"],
        ["run", "hello", "--ram"],
        ["run", "no-such-guest"],
        ["run", "."],
        ["run", "hello", "--mmu", "ept"],
        ["run", "hello", "--mmu", "direct"],
        *(["run", "hello", option, size] for option in ("--ram", "--pool") for size in NO_SIZES),
        ["run", "hello", "--ram", "0"],
        ["run", "hello", "--ram", "60K"],
        ["run", "hello", "--ram", "1000001"],
        ["run", "hello", "--ram", "1025G"],
        ["run", "hello", "--ram", "1024G"],
        ["run", "hello", "--ram", "9" * 30],
        ["run", "hello", "--pool", "0"],
        ["run", "hello", "--pool", "12K"],
        ["run", "hello", "--pool", "17K"],
        ["run", "hello", "--ram", "1M", "--pool", "2M"],
        ["run", "hello", "--pool", "16K", "--policy", "static"],
        *(["run", "hello", "--cpus", number] for number in ("0", "17", "-1", "x", "1.5", "\u0664")),
        *(["run", "hello", "--quantum", time] for time in ("0us", "100", "x", "999ns")),
        *(["run", "hello", "--schedule", text] for text in ("7", "seed=", "seed=x", f"seed={1 << 64}")),
        ["run", "hello", "--policy", "nosuch"],
        ["run", "hello", "--policy", ""],
        ["run", "hello", "--policy", "demand:"],
        ["run", "hello", "--policy", "demand:rate=5"],
        ["run", "hello", "--policy", "demand", "--policy", "demand"],
        ["run", "hello", "--append", "x" * 255],
        ["run", "hello", "--until", ""],
        ["run", "hello", "--max-time", "0"],
        ["run", "hello", "--max-time", "-1"],
        ["run", "hello", "--max-time", "nan"],
        ["run", "hello", "--timeout", "inf"],
        ["run", "hello", "--timeout", "soon"],
        ["run", "hello", "--load", "0x1000"],
        ["run", "/dev/null", "--load", "here"],
        ["run", "/dev/null", "--load", "-1"],
        ["run", "hello", "--input", "no-such-file"],
        ["run", "hello", "--input", "."],
        ["run", ""],
        ["run", "hello", "--input", ""],
        ["run", "hello", "--events", ""],
        ["run", "hello", "--until", "\udcff"],
        ["run", "hello", "--append", "\udcff"],
        ["run", "hello", "--type", "no prompt"],
        ["run", "hello", "--type", r"a\q@b"],
        ["run", "hello", "--interactive"],
        ["image"],
        ["image", "/dev/null"],
        ["image", "no-such-file", "-o", "-"],
        ["image", "/dev/null", "-o", "-"],
        ["bench", "--json", "/no/such/file"],
    ],
)
def test_bad_usage_is_one_line_and_status_2(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("emu: ") and err.count("\n") == 1
    assert "Traceback" not in err and "None" not in err


def test_unknown_names_come_with_the_known_ones(capsys: Capture) -> None:
    main(["run", "hello", "--policy", "swapp"])
    assert "demand, static" in capsys.readouterr().err
    main(["run", "hello", "--mmu", "ept"])
    assert "shadow, nested" in capsys.readouterr().err
    main(["rum"])
    assert ", ".join(COMMANDS) in capsys.readouterr().err


# --- typing -----------------------------------------------------------------------------------------------------


def test_typing(tmp_path: Path, capsys: Capture) -> None:
    guest = source(tmp_path, ECHO.replace("next:", "mov al, '>'\n out 0xE9, al\nnext:"))
    assert main(["run", guest, "--type", r"a\x62\n@>", "--type", r".@b\n", "--max-time", "1"]) == 0x21
    assert capsys.readouterr().out == ">ab\n."


def test_a_prompt_that_never_comes_is_told(capsys: Capture) -> None:
    assert main(["run", "hello", "--type", r"root\n@login: "]) == 1
    assert "emu: --type: the console never printed 'login: '\n" in capsys.readouterr().err


# --- what a slow start says -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "told"),
    [((False, True), ""), ((True, True), host.COMPILING_ONCE), ((True, False), host.COMPILING_AGAIN)],
)
def test_a_slow_start_says_only_what_is_true(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, state: tuple[bool, bool], told: str
) -> None:
    import emu.engine.native_object

    monkeypatch.setattr(emu.engine.native_object, "being_built", lambda: state)
    monkeypatch.setattr(host, "SLOW_START_S", 0.01)
    monkeypatch.setattr(host, "_LOOKS_S", 0.01)
    with host.explain_slow_start():
        time.sleep(0.3)
    assert capsys.readouterr().err == (f"emu: {told}\n" if told else "")


# --- faults of emu ----------------------------------------------------------------------------------------------


def test_an_unexpected_exception_is_status_125(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from emu.devices.exit import ExitPort

    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(ExitPort, "write", fail)
    assert main(["run", "hello"]) == 125
    err = capsys.readouterr().err
    assert "Traceback" in err and "ZeroDivisionError: planted" in err
    assert "please report it" in err.splitlines()[-1]


def test_outputs_are_compressed_by_their_names(tmp_path: Path) -> None:
    logs = [tmp_path / name for name in ("plain", "a.gz", "b.gz", "c.zst")]
    for log in logs:
        assert main(["run", "paging32", "--events", str(log)]) == 1
    plain, first, second, zstd = (log.read_bytes() for log in logs)
    assert gzip.decompress(first) == plain and zstandard.ZstdDecompressor().decompressobj().decompress(zstd) == plain
    assert first == second and len(first) < len(plain) / 4


# --- the other commands -----------------------------------------------------------------------------------------


def test_guests(capsys: Capture) -> None:
    from emu.boot import firmware

    assert main(["guests"]) == 0
    out = capsys.readouterr().out
    for name, guest in firmware.guests().items():
        assert name in out and guest.summary in out


    assert "apt-get download" in out and all(name in out for name in ("busybox-static", "memtest86+", "seabios"))


def test_image(tmp_path: Path, capsys: Capture) -> None:
    busybox, init, output = tmp_path / "busybox", tmp_path / "init", tmp_path / "initrd.gz"
    busybox.write_bytes(b"\x7fELF, or so")
    init.write_text("#!/bin/sh\necho my own init\n")
    assert main(["image", str(busybox), "-o", str(output), "--init", str(init)]) == 0
    assert b"echo my own init" in gzip.decompress(output.read_bytes())
    for same in (busybox, init):
        assert main(["image", str(busybox), "-o", str(same), "--init", str(init)]) == 2
        assert "would be overwritten" in capsys.readouterr().err
    init.write_bytes(b"\xff")
    assert main(["image", str(busybox), "-o", str(output), "--init", str(init)]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_benchmarks_keep_their_columns() -> None:
    from emu.bench.harness import Row, table

    rows = [Row("g", "x" * length, 1.5, 3.0, "peer", "ns", 2.0) for length in (1, 100)]
    lines = table([*rows, Row("g", "alone", 12345678.0, None, "", "s CPU", None)]).splitlines()
    assert len({line.index("g: ") for line in lines[1:]}) == 1


def test_help(capsys: Capture) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"emu {name}" in out for name in COMMANDS)
    assert main(["--version"]) == 0
    for name in COMMANDS:
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0
        assert f"usage: emu {name}" in capsys.readouterr().out


# --- in a process of its own ------------------------------------------------------------------------------------


def emu(*arguments: str, **options: object) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "emu", *arguments]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **(pipes | options))  # type: ignore[call-overload]


def test_the_process_has_the_status() -> None:
    process = emu("run", "hello")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert out.startswith("Hello!")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_complete_files(tmp_path: Path, number: signal.Signals, status: int) -> None:
    events, summary = tmp_path / "events", tmp_path / "summary"
    process = emu("run", source(tmp_path, LOOP), "--events", str(events), "--summary", str(summary))
    assert process.stdout is not None
    assert process.stdout.read(1) == "!"  # printed at once, and the guest is running
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == status, err
    assert "Traceback" not in err
    assert json.loads(summary.read_text())["status"] == status
    assert all(json.loads(line) for line in events.read_text().splitlines())


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = emu("run", "hello", stdout=writing)
    os.close(writing)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 141, err
    assert "Traceback" not in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    ["run hello", "run hello --summary -", "run --help", "guests", "--help", "--version", "step hello"],
)
def test_standard_output_that_is_full(arguments: str) -> None:
    with open("/dev/full", "w") as full:
        process = emu(*arguments.split(), stdout=full)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert err == "emu: standard output: cannot be written: No space left on device\n"


def test_the_first_line_is_enough() -> None:
    reading, writing = os.pipe()
    process = emu("run", "paging32", "--events", "-", stdout=writing)
    os.close(writing)
    assert os.read(reading, 10).startswith(b'{"seq":0')
    os.close(reading)
    assert "Traceback" not in process.communicate(timeout=120)[1]
    assert process.returncode == 141


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = ["sh", "-c", f"exec {sys.executable} -m emu run hello {closed}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_help_and_the_list_of_guests_import_no_engine() -> None:
    program = "import sys; from emu.cli import main; main(['--help']); main(['guests']); import emu"
    program += "; sys.exit(any(name in sys.modules for name in ('numba', 'unicorn', 'numpy', 'capstone')))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL, timeout=60)
    assert process.returncode == 0


def test_every_public_name_exists() -> None:
    import emu as package

    assert all(getattr(package, name) for name in package.__all__)
    with pytest.raises(AttributeError):
        _ = package.no_such_name
