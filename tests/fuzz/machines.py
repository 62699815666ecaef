"""Runs a batch of cases on a machine, and reads back how each ended."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emu.asm.assembler import assemble
from tests.fuzz import layout
from tests.fuzz.cases import Case

_SOURCE = Path(__file__).with_name("guest64.s")
_BOOT = Path(__file__).with_name("boot.s")
_BOCHS = "/usr/share/bochs"
_QEMU = (
    "qemu-system-x86_64",
    "-accel",
    "tcg",
    "-cpu",
    "max",
    "-nodefaults",
    "-display",
    "none",
    "-no-reboot",
    "-m",
    "16M",
)


@dataclass(frozen=True)
class End:
    """How a case ended: what differs from its start, by index into layout.FIELDS."""

    changed: dict[int, int]

    def value(self, case: Case, name: str) -> int:
        """What a field of layout.FIELDS is."""
        index = layout.FIELDS.index(name)
        return self.changed.get(index, start_of(case, index))


def start_of(case: Case, index: int) -> int:
    """What a qword of the state is before the case; 0 for code."""
    if index < layout.REGISTER_QWORDS:
        return case.registers[index]
    if index < layout.STATE_QWORDS:
        return int.from_bytes(_fx(case.fx)[8 * (index - layout.REGISTER_QWORDS) :][:8], "little")
    index -= layout.STATE_QWORDS
    return 0 if index < 1024 else int.from_bytes(_window()[8 * index :][:8], "little")


def image(cases: list[Case]) -> bytes:
    """The batch guest with these cases."""
    memory = bytearray(layout.CASES - layout.LOAD)

    def put(gpa: int, data: bytes) -> None:
        memory[gpa - layout.LOAD : gpa - layout.LOAD + len(data)] = data

    put(layout.LOAD, _guest())
    put(layout.TEMPLATE, _window())
    put(layout.BEFORE_WINDOW, _window())
    put(layout.FX_TEMPLATES, b"".join(_fx(number) for number in range(4)))
    return bytes(memory) + b"".join(case.record() for case in cases) + bytes(layout.CASE_BYTES)


def run(machine: str, cases: list[Case], timeout: float = 120.0) -> list[End | None]:
    """The ends of all cases; None for one in which the machine was lost: it crashed, hung, or left the guest.

    Args:
        machine: "shadow", "nested", "qemu" or "bochs".
        timeout: seconds of wall time for a start of the machine.
    """
    ends: list[End | None] = []
    while len(ends) < len(cases):
        ends += _run(machine, cases[len(ends) :], timeout)
        if len(ends) < len(cases):
            ends.append(None)
    return ends


def _run(machine: str, cases: list[Case], timeout: float) -> list[End]:
    with tempfile.TemporaryDirectory() as directory:
        guest, output = Path(directory, "guest.bin"), Path(directory, "output")
        guest.write_bytes(image(cases))
        if machine == "qemu":
            exit_port = ("-device", "isa-debug-exit,iobase=0xf4,iosize=4")
            command = [*_QEMU, *exit_port, "-debugcon", "stdio", "-kernel", str(guest)]
        elif machine == "bochs":
            command = _bochs(Path(directory))
        else:
            command = [sys.executable, "-m", "emu", "run", str(guest), "--ram", "16M", "--cpu", "max", "--mmu", machine]
        with output.open("wb") as stream, suppress(subprocess.TimeoutExpired):
            null = subprocess.DEVNULL
            subprocess.run(command, stdin=null, stdout=stream, stderr=null, timeout=timeout, check=False)
        return list(_ends(output.read_bytes().partition(b"BEGIN:\n")[2]))


def _bochs(directory: Path) -> list[str]:
    """The command that boots the guest from a disk; its console, port 0xE9, is standard output."""
    guest = (directory / "guest.bin").read_bytes()
    blocks = -(-len(guest) // 0x8000)
    defines = {"BLOCKS": blocks, "LOAD": layout.LOAD, "ENTRY": layout.LOAD + 32}
    sector = assemble(_BOOT, defines, load=0x7C00).ljust(510, b"\0") + b"\x55\xaa"
    cylinders = blocks * 64 // 1008 + 2
    disk = directory / "disk"
    disk.write_bytes((sector + guest).ljust(cylinders * 1008 * 512, b"\0"))
    (directory / "rc").write_text(
        f"""\
config_interface: textconfig
display_library: rfb, options="timeout=0"
plugin_ctrl: speaker=0, es1370=0, sb16=0, e1000=0
memory: guest=16, host=16
romimage: file={_BOCHS}/BIOS-bochs-latest
vgaromimage: file={_BOCHS}/VGABIOS-lgpl-latest
ata0-master: type=disk, path={disk}, mode=flat, cylinders={cylinders}, heads=16, spt=63
boot: disk
cpu: model=corei7_haswell_4770, ips=100000000
clock: sync=none
port_e9_hack: enabled=1
log: {directory}/log
"""
    )
    (directory / "debugger").write_text("c\n")
    return ["bochs", "-q", "-f", str(directory / "rc"), "-rc", str(directory / "debugger")]


def _ends(data: bytes) -> Iterator[End]:
    changed: dict[int, int] = {}
    position = 0
    while position + 2 <= len(data):
        index = int.from_bytes(data[position : position + 2], "little")
        position += 2
        if index == 0xFFFF:
            yield End(changed)
            changed = {}
        else:
            changed[index] = int.from_bytes(data[position : position + 8], "little")
            position += 8


@cache
def _guest() -> bytes:
    return assemble(_SOURCE, layout.defines(), load=layout.LOAD)


@cache
def _window() -> bytes:
    """What the window holds before each case: int3 in the code, numbers of all sizes and pointers elsewhere."""
    draw = random.Random(1)
    data = bytearray(b"\xcc" * 0x2000)
    while len(data) < layout.PAGES * 0x1000:
        kind = draw.randrange(4)
        value = (
            draw.getrandbits(64),
            layout.WINDOW_GVA + draw.choice((layout.CODE, layout.DATA)) + draw.randrange(0x400, 0x1FF0),
            draw.randrange(256),
            struct.unpack("<Q", struct.pack("<d", draw.uniform(-1000, 1000)))[0],
        )[kind]
        data += value.to_bytes(8, "little")
    return bytes(data)


@cache
def _fx(number: int) -> bytes:
    """An FXSAVE image: control words with all exceptions masked in 0 and 1; x87 registers empty in 0 and 2."""
    draw = random.Random(number + 7)
    image = bytearray(512)
    full = number in (1, 3)
    struct.pack_into(
        "<HHB", image, 0, (0x37F, 0x27F, 0x37F, 0x340)[number], (0, 0x3800, 0, 0x1800)[number], 0xFF if full else 0
    )
    struct.pack_into("<I", image, 24, (0x1F80, 0x1FC0, 0x9F80, 0x1F80)[number])
    for register in range(8):
        mantissa = draw.choice((draw.getrandbits(63) | 1 << 63, 1 << 63, 0, draw.getrandbits(64)))
        exponent = draw.choice((0x3FFF, 0x4005, 0x3FF0, 0, 0x7FFF, 0x8000 | 0x4001, draw.getrandbits(16)))
        image[32 + 16 * register : 42 + 16 * register] = struct.pack("<QH", mantissa, exponent)
    for register in range(16):
        floats = [draw.uniform(-1e6, 1e6), draw.choice((0.0, -0.0, 1.5, float("inf"), float("nan"), 1e-310))]
        image[160 + 16 * register : 176 + 16 * register] = draw.choice(
            (
                struct.pack("<2d", *floats),
                draw.getrandbits(128).to_bytes(16, "little"),
                struct.pack("<4f", *(draw.uniform(-9, 9) for _ in range(4))),
            )
        )
    return bytes(image)
