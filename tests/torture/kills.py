"""SIGKILL at random moments over every file that emu writes: the old file or the new, logs in whole pieces, and the
next run goes as if nothing had happened.

Each scenario is a command, run once to its end to see what is right, then killed again and again after a time that is
drawn between its start and its end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emu.devices.pcap import read_packets
from emu.dmm.policies.reference_trace import ReferenceTrace
from emu.errors import BadInput
from tests.torture.workload import SECTORS, disk_image, sector, write_guest

OLD = b"the old contents\n"
ROUNDS = 4
_CACHE = "{folder}/cache"
_LONGEST_RUN_S = 300


class Torn(Exception):
    """A file is neither what it was nor what it should be."""


@dataclass(frozen=True)
class Scenario:
    """Something to kill.

    Attributes:
        prepare: puts the inputs and the old files into a folder.
        command: what to run there, behind ``python -m``.
        check: looks at the folder of a killed run, and at that of one that was not; raises Torn.
        status: of a run that is not killed.
        environment: variables, with {folder} for the folder.
    """

    prepare: Callable[[Path], None]
    command: str
    check: Callable[[Path, Path], None]
    status: int = 1
    environment: tuple[tuple[str, str], ...] = ()

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        environment = os.environ | {name: value.format(folder=folder) for name, value in self.environment}
        command = [sys.executable, "-m", *self.command.split()]
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, start_new_session=True,  # so that what it has started dies with it
        )  # fmt: skip


def _guest(folder: Path) -> None:
    write_guest(folder / "guest.s", ROUNDS)
    disk_image(folder / "disk")
    for name in ("summary", "screen.png", "trace"):
        (folder / name).write_bytes(OLD)
    (folder / "trace").write_bytes(ReferenceTrace.of([1, 2, 3]).packed())


def old_or_new(name: str, same: Callable[[bytes, bytes], bool], old: bytes = OLD) -> Callable[[Path, Path], None]:
    """``name`` is what it was, or what a run that was not killed makes of it."""

    def check(folder: Path, whole: Path) -> None:
        found = (folder / name).read_bytes()
        if found != old and not same(found, (whole / name).read_bytes()):
            raise Torn(f"{name}: {len(found)} bytes, {found[:60]!r}")

    return check


def _same_summary(found: bytes, right: bytes) -> bool:
    try:
        parsed = [json.loads(text) | {"wall_s": 0} for text in (found, right)]
    except ValueError:
        return False
    return bool(parsed[0] == parsed[1])


def whole_pieces(name: str, end: bytes) -> Callable[[Path, Path], None]:
    """A log: the beginning of what it should be, up to the end of a piece."""

    def check(folder: Path, whole: Path) -> None:
        path = folder / name
        found = path.read_bytes() if path.exists() else b""
        if not (whole / name).read_bytes().startswith(found) or not (found.endswith(end) or not found):
            raise Torn(f"{name}: {len(found)} bytes that end with {found[-40:]!r}")

    return check


def _disk(folder: Path, whole: Path) -> None:
    """Each sector is as before, or as the guest wrote it."""
    image = (folder / "disk").read_bytes()
    if len(image) != SECTORS * 512:
        raise Torn(f"disk: {len(image)} bytes")
    for number in range(SECTORS):
        found = image[512 * number : 512 * number + 512]
        if found not in (bytes(512), sector(number)) or (any(found) and number > ROUNDS):
            raise Torn(f"disk: sector {number} is {found[:8]!r}…")


def _packets(folder: Path, whole: Path) -> None:
    """What is there of the packet log can be read, but for an empty file."""
    path = folder / "frames"
    if path.exists() and path.stat().st_size:
        try:
            read_packets(path)
        except BadInput as error:
            raise Torn(f"frames: {error}") from None


def _trace(folder: Path, whole: Path) -> None:
    try:
        found = ReferenceTrace.load(folder / "trace")
    except BadInput as error:
        raise Torn(f"trace: {error}") from None
    if len(found) not in (0, 3, len(ReferenceTrace.load(whole / "trace"))):
        raise Torn(f"trace: {len(found)} references")


def nothing_beside(*known: str) -> Callable[[Path, Path], None]:
    """No files but these and those of a whole run; a file that was being written may have left its hidden one."""

    def check(folder: Path, whole: Path) -> None:
        strange = {path.name for path in folder.iterdir()} - {path.name for path in whole.iterdir()} - set(known)
        if any(not name.startswith(".") for name in strange):
            raise Torn(f"left behind: {', '.join(sorted(strange))}")

    return check


def runs_again(scenario: Scenario) -> Callable[[Path, Path], None]:
    """The same command in the same folder, with its leftovers, ends as if nothing had happened."""

    def check(folder: Path, whole: Path) -> None:
        process = scenario.start(folder)
        _, errors = process.communicate(timeout=_LONGEST_RUN_S)
        if process.returncode != scenario.status:
            raise Torn(f"the next run: status {process.returncode}, {errors.decode()!r}")

    return check


def _image(folder: Path) -> None:
    (folder / "busybox").write_bytes(b"\x7fELF" + random.Random(1).randbytes(1 << 20))
    (folder / "initrd").write_bytes(OLD)


def _cache(folder: Path, whole: Path) -> None:
    """Every entry of the assembler's cache is its checksum and what was assembled."""
    for path in (folder / "cache").glob("emu-assembled/*"):
        data = path.read_bytes()
        if not path.name.startswith(".") and data[:32] != hashlib.sha256(data[32:]).digest():
            raise Torn(f"{path.name} in the assembler's cache")


def _assembled_anew(folder: Path) -> None:
    """A guest, a cache without what was assembled, and the native plane that there is."""
    _guest(folder)
    (folder / "cache").mkdir()
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emu"
    own.mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "emu").symlink_to(own)


def _native(folder: Path, whole: Path) -> None:
    """A shared object of the native plane has its name only when it is complete."""
    sizes = {path.name: path.stat().st_size for path in whole.glob("cache/emu/*.*o")}
    for path in folder.glob("cache/emu/*.*o"):
        if path.stat().st_size != sizes.get(path.name):
            raise Torn(f"{path.name} in the native plane's cache: {path.stat().st_size} bytes")


def _all(*checks: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def check(folder: Path, whole: Path) -> None:
        for one in checks:
            one(folder, whole)

    return check


_RUN = (
    "emu run guest.s --ram 1M --pool 256K --policy swap:memory=64,file=swap --disk disk,writable --serial2 serial2 "
    "--events events --summary summary --screen screen.png --net none,log=frames --timeout 100"
)
_FILES = _all(
    old_or_new("summary", _same_summary), old_or_new("screen.png", bytes.__eq__), whole_pieces("events", b"\n"),
    whole_pieces("serial2", b""), _disk, _packets, nothing_beside("swap"),
)  # fmt: skip
SCENARIOS = {
    "run": Scenario(_guest, _RUN, _FILES),
    "trace": Scenario(_guest, "emu run guest.s --ram 1M --policy record:file=trace --disk disk,writable", _trace),
    "image": Scenario(
        _image, "emu image busybox -o initrd", _all(old_or_new("initrd", bytes.__eq__), nothing_beside()), 0
    ),
    "assembler": Scenario(
        _assembled_anew, "emu run guest.s --ram 1M --disk disk,writable", _cache, 1, (("XDG_CACHE_HOME", _CACHE),)
    ),
}
SLOW = {  # a run takes half a minute, where the native plane is not installed
    "native": Scenario(
        lambda folder: (folder / "cache").mkdir(), "emu run hello", _native, 1, (("XDG_CACHE_HOME", _CACHE),)
    ),
}


def torture(scenario: Scenario, count: int, seed: int, again_every: int = 5) -> tuple[int, int, list[str]]:
    """Kill ``count`` runs.

    Returns:
        Runs that were killed, runs that had ended before, and what was torn.
    """
    chance = random.Random(seed)
    killed, torn = 0, []
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        whole.mkdir()
        scenario.prepare(whole)
        runs_again(scenario)(whole, whole)  # fills caches
        begin = time.monotonic()
        shutil.rmtree(whole)
        whole.mkdir()
        scenario.prepare(whole)
        runs_again(scenario)(whole, whole)
        longest = 1.1 * (time.monotonic() - begin)
        for number in range(count):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            scenario.prepare(folder)
            after = chance.uniform(0, longest)
            process = scenario.start(folder)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
            process.communicate()
            try:
                scenario.check(folder, whole)
                if number % again_every == 0:
                    runs_again(scenario)(folder, whole)
            except Torn as error:
                torn.append(f"killed after {after:.3f} s: {error}")
            shutil.rmtree(folder)
    return killed, count - killed, torn


def main(arguments: list[str]) -> int:
    """``--count N``, ``--seed N``, ``--only SCENARIO``."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture kills", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="kills, over all scenarios (default 1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=[*SCENARIOS, *SLOW], help=f"{', '.join(SLOW)} only when asked for")
    options = parser.parse_args(arguments)
    names = [options.only] if options.only else list(SCENARIOS)
    failed = False
    for name in names:
        killed, ended, torn = torture((SCENARIOS | SLOW)[name], options.count // len(names), options.seed)
        print(f"{name}: {killed} killed, {ended} had ended before, {len(torn)} torn", flush=True)
        for line in torn:
            print(f"  {line}")
        failed |= bool(torn)
    return int(failed)
