"""Mutated files and options: each works or gives one typed error of one line, in bounded time.

``python -m tests.torture files --seed N --count K`` (0: without end). A finding is printed as the call that repeats it.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType

from emu.boot.detect import detect
from emu.boot.make import make_guest
from emu.cpu.models import parse_cpu
from emu.devices.net import parse_net
from emu.devices.pcap import read_packets
from emu.dmm import catalog
from emu.errors import EmuError
from emu.fleet.file import load_fleet
from emu.options import disk_options
from emu.units import parse_duration, parse_size, parse_time
from tests.torture.mutants import FLEET, KERNELS, PCAP, TEXTS, mutate_bytes, mutate_text

_RAM = 16 << 20  # bytes
_LIMIT = 10  # seconds that one input may take

TEXT_PARSERS: dict[str, tuple[Callable[[str], object], ...]] = {
    "cpu": (parse_cpu,),
    "policy": (catalog.parse,),
    "net": (parse_net,),
    "disk": (disk_options,),
    "size": (parse_size,),
    "time": (parse_time, parse_duration),
}
FORMATS = (*KERNELS, "pcap", "fleet", *TEXTS)


class Late(Exception):
    """An input took longer than the limit."""


def attempt(name: str, seed: int, folder: Path) -> str | None:
    """Give mutant ``seed`` of a format to its parser: None if that took it, else the line of its typed error.

    Raises:
        AssertionError: the error has more than one line, or none.
        Exception: whatever else the parser raised: a finding.
    """
    random = Random(f"{name} {seed}")
    try:
        if name in TEXTS:
            text = mutate_text(random.choice(TEXTS[name]), random)
            random.choice(TEXT_PARSERS[name])(text)
            return None
        path = folder / name
        path.write_bytes(mutate_bytes({"pcap": PCAP, "fleet": FLEET, **KERNELS}[name], random))
        if name == "pcap":
            read_packets(path)
        elif name == "fleet":
            load_fleet(path)
        else:
            make_guest(detect(path), _RAM)
    except (EmuError, ValueError) as error:
        if not isinstance(error, EmuError) and name not in ("size", "time"):  # units raise ValueError by contract
            raise
        line = str(error)
        assert line and "\n" not in line, f"no single line: {line!r}"
        return line
    return None


def _late(number: int, frame: FrameType | None) -> None:
    raise Late


def torture(seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """Try ``count`` mutants (0: without end) in turn over the formats: how many ended how, and the findings."""
    ends: Counter[str] = Counter()
    findings = []
    before = signal.signal(signal.SIGALRM, _late)
    try:
        with tempfile.TemporaryDirectory() as folder:
            at = seed
            while not count or at < seed + count:
                name = FORMATS[at % len(FORMATS)]
                signal.alarm(_LIMIT)
                try:
                    ends["worked" if attempt(name, at, Path(folder)) is None else "refused"] += 1
                except Exception as error:
                    ends["finding"] += 1
                    findings.append(f"attempt({name!r}, {at}, folder): {type(error).__name__}: {str(error)[:160]!r}")
                    print(findings[-1], flush=True)
                finally:
                    signal.alarm(0)
                at += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    return ends, findings


def main(arguments: list[str]) -> int:
    """Status 0 without findings, else 1."""
    parser = argparse.ArgumentParser("python -m tests.torture files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000, help="0: without end")
    options = parser.parse_args(arguments)
    ends, findings = torture(options.seed, options.count)
    print(", ".join(f"{count} {name}" for name, count in sorted(ends.items())))
    return 1 if findings else 0
