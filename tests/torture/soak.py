"""Soak: two equal fleets of Linux guests without end, under all policies, in a process each, their event logs compared
while they are written.  Memory must stay flat and virtual time must go on.

The logs are read in step through pipes, so the fleet that is ahead waits for the other one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from emu.boot import packages
from emu.boot.initramfs import build_initramfs

INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
while true; do
    i=0; while [ $i -lt 10 ]; do busybox ls / > /dev/null; i=$((i+1)); done
    dd if=/dev/urandom of=/tmp/a bs=65536 count=8 2> /dev/null
    md5sum < /tmp/a > /tmp/b; gzip -c /tmp/a | md5sum > /tmp/c; rm /tmp/a
    cat /proc/uptime
done
"""
ARGUMENTS = "console=ttyS0 nolapic noapic acpi=off nokaslr mitigations=off quiet"
SWAP = "swap:memory=2M,file={folder}/swap-{victims},victims={victims}"
POLICIES = {  # name of a VM: its policies
    "demand": ["demand:readahead=4"],
    "static": ["static"],
    "2q": [SWAP.format(folder="{folder}", victims="2q"), "share:rate=20"],
    "clock": [SWAP.format(folder="{folder}", victims="clock"), "balance:period=20ms"],
    "wsclock": [SWAP.format(folder="{folder}", victims="wsclock") + ",algorithm=zstd", "share:rate=50", "balance"],
    "pools": ["swap", "pool:schedule=900ms:24M/1200ms:40M/1500ms:28M", "share:rate=20"],
    "retire": ["swap", "retire:every=50ms,count=1,seed=7"],
}
SMALL, LARGE = "32M", "96M"  # pools; RAM is LARGE
_CHUNK = 1 << 16
_TIME = re.compile(rb'"time":([0-9]+),"vm":"([^"]+)"')


@dataclass
class Fleet:
    """One of the two processes.

    Attributes:
        ahead: bytes of its log that the other one has not written yet.
        digest: of the log up to where both have come.
        rss: its resident memory in KiB, a sample a second.
    """

    process: subprocess.Popen[bytes]
    ahead: bytearray = field(default_factory=bytearray)
    rss: list[int] = field(default_factory=list)

    def sample(self) -> None:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        self.rss.append(int(text.partition("VmRSS:")[2].split()[0]))


def fleet_file(folder: Path, kernel: Path, initrd: Path) -> Path:
    """The plan, with files of its own in ``folder``."""
    folder.mkdir()
    text = ['[machine]\nmemory = "1200M"\nquantum = "2ms"\n']
    for name, policies in POLICIES.items():
        pool = LARGE if name in ("demand", "static") else SMALL
        listed = ", ".join(f'"{policy.format(folder=folder)}"' for policy in policies)
        text.append(
            f'[[vm]]\nname = "{name}"\nguest = "{kernel}"\ninitrd = "{initrd}"\nappend = "{ARGUMENTS}"\n'
            f'ram = "{LARGE}"\npool = "{pool}"\npolicies = [{listed}]\n'
        )
    path = folder / "fleet.toml"
    path.write_text("\n".join(text))
    return path


def start(folder: Path, kernel: Path, initrd: Path) -> Fleet:
    command = [sys.executable, "-m", "emu", "fleet", str(fleet_file(folder, kernel, initrd)), "--events", "-"]
    errors = (folder / "errors").open("wb")
    console = ["--console", str(folder / "consoles")]
    return Fleet(subprocess.Popen([*command, *console], stdout=subprocess.PIPE, stderr=errors))


def growth(rss: list[int]) -> float:
    """How much the memory grew from the second third of the samples to the last one, as a part of it."""
    third = len(rss) // 3
    if not third:
        return 0.0
    before, after = max(rss[third : 2 * third]), max(rss[2 * third :])
    return (after - before) / before


def soak(folder: Path, seconds: float, fleets: list[Fleet]) -> int:
    """Compare until the time is over; prints what was measured, returns a status."""
    digest, compared, times = hashlib.sha256(), 0, dict.fromkeys(POLICIES, 0)
    begin = sampled = told = time.monotonic()
    while (now := time.monotonic()) < begin + seconds:
        if now >= sampled + 1:
            sampled = now
            for fleet in fleets:
                fleet.sample()
        if now >= told + 60:
            told = now
            virtual = ", ".join(f"{name} {at / 1e9:.2f} s" for name, at in times.items())
            print(f"{now - begin:.0f} s: {compared >> 20} MiB equal; {virtual}; RSS {fleets[0].rss[-1] >> 10} MiB",
                  flush=True)  # fmt: skip
        waiting = [fleet for fleet in fleets if len(fleet.ahead) < _CHUNK]
        pipes = {fleet.process.stdout: fleet for fleet in waiting}
        for pipe in select.select([pipe for pipe in pipes if pipe], [], [], 1)[0]:
            data = os.read(pipe.fileno(), _CHUNK)
            if not data:
                print("a fleet ended by itself:", (folder / "0/errors").read_text(), (folder / "1/errors").read_text())
                return 1
            pipes[pipe].ahead += data
        count = min(len(fleet.ahead) for fleet in fleets)
        pieces = [bytes(fleet.ahead[:count]) for fleet in fleets]
        if pieces[0] != pieces[1]:
            at = compared + next(i for i, pair in enumerate(zip(*pieces, strict=True)) if pair[0] != pair[1])
            print(f"the event logs differ at byte {at}")
            return 1
        for at_ns, name in _TIME.findall(pieces[0]):
            times[name.decode()] = int(at_ns)
        digest.update(pieces[0])
        compared += count
        for fleet in fleets:
            del fleet.ahead[:count]
    grown = [growth(fleet.rss) for fleet in fleets]
    print(f"compared {compared} bytes of events, sha256 {digest.hexdigest()} in both")
    print("virtual s:", ", ".join(f"{name} {at / 1e9:.3f}" for name, at in times.items()))
    for fleet, part in zip(fleets, grown, strict=True):
        print(f"RSS: at most {max(fleet.rss) >> 10} MiB, last third against the one before {part:+.1%}")
    return int(max(grown) > 0.05 or not all(times.values()))


def main(arguments: list[str]) -> int:
    """``--minutes N``."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args(arguments).minutes
    kernel, busybox = packages.kernel(), packages.busybox()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        initrd = folder / "initrd.gz"
        initrd.write_bytes(build_initramfs(busybox, INIT))
        fleets = [start(folder / str(number), kernel, initrd) for number in range(2)]
        try:
            status = soak(folder, 60 * minutes, fleets)
        finally:
            for fleet in fleets:
                fleet.process.send_signal(signal.SIGTERM)
            for fleet in fleets:
                fleet.process.communicate()
        ends = [fleet.process.returncode for fleet in fleets]
        rounds = {path.stem: path.read_bytes().count(b"\n") for path in sorted((folder / "0/consoles").glob("*.txt"))}
        left = sorted(path.name for path in folder.glob("?/swap*"))
        print(f"lines on the consoles: {rounds}; statuses after SIGTERM {ends}; swap files left behind: {left}")
    return status or int(ends != [143, 143] or bool(left))
