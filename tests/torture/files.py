"""Damaged files: every kind that emu reads, and option strings, with bytes and words changed at random.

``python -m tests.torture files --seed N --count K`` (0: without end).  Each file either works or is refused with one of
emu's own errors, in one line; nothing else is raised, nothing hangs, and nothing takes memory without bound.  The
whole files that they come from are made here.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emu.cpu.models import parse_cpu
from emu.devices.net import parse_net
from emu.devices.pcap import read_packets
from emu.dmm import catalog
from emu.dmm.errors import OutOfFrames, StoreError
from emu.dmm.policies.reference_trace import ReferenceTrace
from emu.errors import EmuError
from emu.fleet.file import load_fleet
from emu.observe.typist import parse_keys_typing, parse_typing
from emu.options import disk_options, floppy_options
from emu.session import boot_vm
from emu.units import parse_size, parse_time
from tests.boot.bios_disks import boot_sector
from tests.boot.discs import disc
from tests.boot.kernels import Load, elf, header1, header2
from tests.boot.test_linux import Header, bzimage

RUNS_NS = 200_000  # virtual time that a guest which was taken gets
_PATIENCE_S = 60  # wall time; what takes longer hangs
_MOST_MEMORY = 2 << 30  # bytes that the process may hold at most
_HALT = b"\xb0\x00\xe6\xf4\xf4"


class Hangs(Exception):
    """It takes too long."""


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        suffix: of its file; empty for an option's text, which needs none.
        whole: inputs that work.
        use: takes a path, or a text.
    """

    name: str
    suffix: str
    whole: tuple[bytes, ...]
    use: Callable[[str], object]


def _boot(path: str, **options: object) -> None:
    try:
        vm = boot_vm(path, **{"ram": "16M", **options})
    except (OutOfFrames, StoreError):
        return
    try:
        vm.run(RUNS_NS)
    except (OutOfFrames, StoreError):
        pass
    finally:
        vm.close()


@cache
def kinds() -> tuple[Kind, ...]:
    code = b"\xfa" + _HALT
    elf32 = elf([Load(0x10_0000, header1() + code * 9)], 0x10_000C)
    elf64 = elf([Load(0x10_0000, header2() + code * 9)], 0x10_0018, bits=64, machine=62)
    kludge = struct.pack("<8I", 0x1BADB002, 0x10003, -0x1BAE_B005 & 0xFFFF_FFFF, 0x10_0000, 0x10_0000, 0, 0, 0x10_0020)
    rom = (b"\xeb\xfe" + code).ljust((1 << 16) - 16, b"\0") + b"\xea\2\0\0\xf0".ljust(16, b"\0")
    source = (
        b".code16\n.equ N, 3\nstart: mov ax, N*2\n1: dec ax\njnz 1b\n.macro put c\nmov al, \\c\nout 0xe9, al\n.endm\n"
        b'put 65\n.ascii "text\\n"\n.align 4\n.fill 3, 2, 7\n.if N > 2\nmov al, 0\n.endif\nout 0xf4, al\nhlt\n'
    )
    fleet = b'[machine]\nmemory = "8M"\n[[vm]]\nname = "a"\nguest = "hello"\ncount = 2\n'
    fleet += b'ram = "1M"\npool = "256K"\npolicies = ["swap"]\n'
    packets = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + struct.pack("<4I", 0, 5, 60, 60) + bytes(60)
    return (
        Kind("elf", ".elf", (elf32, elf64), _boot),
        Kind("multiboot", ".bin", (kludge + code,), _boot),
        Kind(
            "linux", "", (bzimage(code), bzimage(code * 200, Header(xloadflags=1))), lambda path: _boot(path, ram="64M")
        ),
        Kind("disk", ".img", (boot_sector(code), boot_sector(code).ljust(1 << 16, b"\1")), _boot),
        Kind("floppy", ".img", (boot_sector(code).ljust(160 << 10, b"\0"),), _boot),
        Kind("disc", ".iso", (disc(boot_sector(code)),), _boot),
        Kind("rom", ".img", (rom,), lambda path: _boot(path, bios=path)),
        Kind("flat", ".bin", (code,), lambda path: _boot(path, load=0x7C00)),
        Kind("source", ".s", (source,), _boot),
        Kind("fleet", ".toml", (fleet,), load_fleet),
        Kind("trace", ".npz", (ReferenceTrace.of([1, 2, 3, 1, 2]).packed(),), ReferenceTrace.load),
        Kind("packets", ".pcap", (packets,), read_packets),
        Kind("--cpu", "", (b"Skylake-Client,-smap", b"max", b"qemu64,+popcnt"), parse_cpu),
        Kind(
            "--policy", "", (b"swap:memory=4K,victims=2q", b"share:rate=10", b"retire:every=1ms,count=3"), catalog.parse
        ),
        Kind("--net", "", (b"user,card=e1000,forward=80:81", b"replay=x.pcap,mac=52:54:00:12:34:56"), parse_net),
        Kind("--disk", "", (b"file,virtio,writable",), disk_options),
        Kind("--floppy", "", (b"file,writable",), floppy_options),
        Kind("--type", "", (b"root\\n@login: ", b"a\\x41@b"), parse_typing),
        Kind("--keys", "", (b"<f1><ctrl-c>dir<enter>@C:", b"a@b"), parse_keys_typing),
        Kind("size", "", (b"16M", b"4K"), parse_size),
        Kind("time", "", (b"10us", b"3ms"), parse_time),
    )


_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF, 0x10_0000)
_WORDS = (
    b",",
    b"=",
    b":",
    b"-1",
    b"9" * 40,
    b"\xff",
    b"\0",
    b"\n",
    b'"',
    b"[[",
    b"(",
    b"1e999",
    b"\xc3\xa4",
    b"..",
    b"\\",
)


def damaged(chance: random.Random, data: bytes, is_text: bool) -> bytes:
    """The input with one to six changes."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 7)):
        if not out:
            break
        at = chance.randrange(min(len(out), 4096)) if chance.random() < 0.8 else chance.randrange(len(out))
        how = chance.randrange(7)
        if how == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            size = chance.choice((1, 2, 4, 8))
            out[at : at + size] = (chance.choice(_NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
        elif how == 2:
            del out[at:]
        elif how == 3:
            del out[at : at + chance.randrange(1, 40)]
        elif how == 4:
            begin = chance.randrange(len(out))
            out[at:at] = out[begin : begin + chance.randrange(1, 60)]
        elif how == 5 and is_text:
            out[at:at] = chance.choice(_WORDS)
        else:
            out[at] = chance.randrange(256)
    return bytes(out)


def draw(seed: int) -> tuple[Kind, bytes]:
    """The kind and the damaged input of a seed."""
    chance = random.Random(seed)
    kind = chance.choice(kinds())
    is_text = not kind.suffix or kind.suffix in (".s", ".toml")
    return kind, damaged(chance, chance.choice(kind.whole), is_text and kind.name != "linux")


def given(kind: Kind, data: bytes, folder: Path) -> str:
    """What the kind's use takes: the text, or the path of a file with it."""
    if kind.name[:2] == "--" or kind.name in ("size", "time"):
        return data.decode("utf-8", "surrogateescape")
    path = folder / f"input{kind.suffix}"
    path.write_bytes(data)
    return str(path)


def wrong(kind: Kind, data: bytes, folder: Path) -> str | None:
    """What is wrong with how an input is taken; None if nothing is."""
    taken = given(kind, data, folder)
    try:
        with _patience():
            kind.use(taken)
    except Hangs:
        return "it takes too long"
    except (EmuError, argparse.ArgumentTypeError) as error:
        text = str(error)
        return None if text.strip() and "\n" not in text else f"the message is no line: {text!r}"
    except ValueError as error:
        return None if kind.name in ("size", "time") and "\n" not in str(error) else f"ValueError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _patience() -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(_PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory() -> int:
    """Bytes that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture files", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1000, help="how many inputs; 0: without end")
    options = parser.parse_args(arguments)
    found = tried = 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            while options.count == 0 or tried < options.count:
                kind, data = draw(options.seed + tried)
                what = wrong(kind, data, Path(folder))
                if what is not None:
                    found += 1
                    print(f"seed {options.seed + tried}, {kind.name}: {what}", flush=True)
                tried += 1
                if memory() > _MOST_MEMORY:
                    print(f"seed {options.seed + tried - 1}, {kind.name}: {memory() >> 20} MiB of memory", flush=True)
                    return 1
        except KeyboardInterrupt:
            pass
    print(f"{tried} inputs; {found} went wrong; {memory() >> 20} MiB at most")
    return int(found > 0)
