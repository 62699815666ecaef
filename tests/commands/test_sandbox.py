"""--sandbox: a run in it is the same run, and the process can do nothing else any more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emu.cli import main
from emu.commands import sandbox
from emu.errors import BadInput
from tests.torture.workload import console, disk_image, sector, write_guest

Capture = pytest.CaptureFixture[str]
ROUNDS = 3
PROBES = {  # what is tried in the sandbox
    "open": "open('/etc/passwd')",
    "create": "open('new', 'w')",
    "truncate by name": "os.truncate('kept', 0)",
    "rename": "os.rename('kept', 'moved')",
    "remove": "os.unlink('kept')",
    "folder": "os.mkdir('folder')",
    "list": "os.listdir('.')",
    "socket": "socket.socket()",
    "UNIX socket": "socket.socket(socket.AF_UNIX)",
    "socket pair": "socket.socketpair()",
    "exec": "os.execv('/bin/true', ['true'])",
    "spawn": "subprocess.run(['/bin/true'])",
    "fork": "os._exit(0) if os.fork() == 0 else None",
    "kill": "os.kill(os.getppid(), 0)",
    "anonymous file": "os.memfd_create('m')",
    "trace": "check(libc.ptrace(16, os.getppid(), 0, 0))",
    "io_uring": "check(libc.syscall(425, 1, 0))",
    "type for the user": "check(libc.ioctl(0, 0x5412, b'x'))",
}
PROBE = """
import ctypes, errno, json, os, socket, subprocess, sys, threading
from emu.commands.sandbox import enter_sandbox
from emu.session import boot_vm, run_vm

libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

open("kept", "w").write("kept")
waiting, go, elsewhere = threading.Event(), threading.Event(), []
def before():  # a thread that is there already is in the sandbox, too
    waiting.set()
    go.wait()
    elsewhere.append(attempt("open('/etc/passwd')"))
def attempt(what):
    try:
        exec(what)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
thread = threading.Thread(target=before)
thread.start()
waiting.wait()
vm = boot_vm("hello")
enter_sandbox(vm)
found = {name: attempt(what) for name, what in json.loads(sys.argv[1]).items()}
go.set()
thread.join()
found["in another thread"] = elsewhere[0]
late = threading.Thread(target=lambda: found.update({"in a new thread": attempt("open('/etc/passwd')")}))
late.start()
late.join()
print(json.dumps([found, run_vm(vm).status]))
"""


def emu(directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "emu", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, timeout=120)


def test_nothing_but_the_run_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROBE, json.dumps(PROBES)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, status = json.loads(done.stdout)
    assert found == dict.fromkeys([*PROBES, "in another thread", "in a new thread"], "EPERM")
    assert status == 1
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept").read_text() == "kept"


def workload(directory: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """The guest with every file that a run can write; it runs in ``directory``."""
    directory.mkdir()
    write_guest(directory / "guest.s", ROUNDS)
    disk_image(directory / "disk")
    policy = "swap:memory=64,file=swap"
    files = ("--disk", "disk,writable", "--serial2", "serial2", "--events", "events", "--summary", "summary")
    more = ("--screen", "screen.png", "--net", "none,log=frames", "--timeout", "60")
    return emu(
        directory, "run", "guest.s", "--ram", "1M", "--pool", "256K", "--policy", policy, *files, *more, *options
    )


def test_a_run_with_every_output_is_the_same(tmp_path: Path) -> None:
    free, confined = workload(tmp_path / "free"), workload(tmp_path / "confined", "--sandbox")
    assert (free.returncode, confined.returncode) == (1, 1), confined.stderr
    assert free.stdout == confined.stdout == console(ROUNDS)
    names = sorted(path.name for path in (tmp_path / "free").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "confined").iterdir()) and "swap" not in names
    for name in set(names) - {"summary"}:
        assert (tmp_path / "free" / name).read_bytes() == (tmp_path / "confined" / name).read_bytes(), name

    def summary(which: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / which / "summary").read_text())
        return found | {"wall_s": 0}

    assert summary("free") == summary("confined") and summary("confined")["policies"]["swap"]["spilled"] > 100
    assert (tmp_path / "confined" / "disk").read_bytes()[512:1024] == sector(1)


def test_a_trace_is_saved(tmp_path: Path) -> None:
    traces = []
    for more in ((), ("--sandbox",)):
        done = emu(tmp_path, "run", "hello", "--policy", "record:file=trace", *more)
        assert done.returncode == 1, done.stderr
        traces.append((tmp_path / "trace").read_bytes())
    assert traces[0] == traces[1] and len(traces[0]) > 40  # its header


@pytest.mark.parametrize("guest", ["hello", "paging32", "crash"])
@pytest.mark.parametrize("screen", ["-", "screen.png"])
def test_guests_that_come_with_emu(tmp_path: Path, guest: str, screen: str) -> None:
    results = [emu(tmp_path, "run", guest, "--screen", screen, *more) for more in ((), ("--sandbox",))]
    assert results[0].returncode == results[1].returncode == (134 if guest == "crash" else 1)
    assert results[0].stdout == results[1].stdout
    told = [result.stderr.rpartition(b"virtual, ")[0] for result in results]  # wall time follows
    assert told[0] == told[1]


RESET = """\
.code16
    mov dx, 0xcf9
    mov al, 6
    out dx, al
"""
BIOS_CALL = """\
.code16
    mov ax, 0x0e41          # INT 10h, 0Eh: print A; the BIOS is assembled when somebody looks at it
    int 0x10
    xor al, al
    out 0xf4, al
"""


def test_a_reset_loads_the_guest_again(tmp_path: Path) -> None:
    (tmp_path / "guest.s").write_text(RESET)
    done = emu(tmp_path, "run", "guest.s", "--sandbox", "--max-time", "0.0001")
    assert done.returncode == 124 and b"was reached (after " in done.stderr, done.stderr


def test_what_is_made_when_it_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "guest.s").write_text(BIOS_CALL)
    done = emu(tmp_path, "run", "guest.s", "--sandbox", "--screen", "-")  # console and screen
    assert (done.returncode, done.stdout) == (1, b"AA\n"), done.stderr


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    write_guest(tmp_path / "guest.s", 2000)
    disk_image(tmp_path / "disk")
    command = [sys.executable, "-m", "emu", "run", "guest.s", "--ram", "1M", "--disk", "disk,writable", "--sandbox"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""


def test_a_signal_is_answered(tmp_path: Path) -> None:
    write_guest(tmp_path / "guest.s", 65534)
    disk_image(tmp_path / "disk")
    command = [sys.executable, "-m", "emu", "run", "guest.s", "--ram", "1M", "--disk", "disk,writable", "--sandbox"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and b"Traceback" not in errors, errors


def test_without_the_library_it_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    assert main(["run", "hello", "--sandbox"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("emu: --sandbox: needs Linux, pip install 'emu[sandbox]', and the system's libseccomp")


def test_a_kernel_that_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    class Refused:
        def load(self) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(sandbox, "_filter", lambda seccomp: Refused())
    assert main(["run", "hello", "--sandbox"]) == 2
    assert capsys.readouterr().err == "emu: --sandbox: the kernel refuses the filter: Invalid argument\n"


def test_the_user_network_is_refused(capsys: Capture) -> None:
    assert main(["run", "hello", "--sandbox", "--net", "user"]) == 2
    assert "emu: --sandbox: there is no user network in it" in capsys.readouterr().err


def test_a_library_that_is_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("Unable to find libseccomp")

    monkeypatch.setattr(sandbox, "import_module", fail)
    with pytest.raises(BadInput, match="Unable to find libseccomp"):
        sandbox.find_seccomp()
