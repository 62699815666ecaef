"""Boot options: how a guest is to be booted, as data.

The command line, fleet files and keyword arguments of :func:`emu.session.boot_vm` all make a :class:`BootOptions`, so
that an option has one name, one meaning and one error everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu.boot.kinds import kind_called
from emu.cpu.models import parse_cpu
from emu.devices.net import NetPlan, parse_net
from emu.devices.parts import DEVICES
from emu.errors import BadInput
from emu.machine.schedule import MAX_CPUS
from emu.units import parse_duration, parse_size

DEFAULT_RAM = 64 << 20  # bytes
_SEED_LIMIT = 1 << 64


@dataclass(frozen=True)
class BootOptions:
    """How a guest is to be booted.

    What can be seen to be wrong without the guest is found here, the rest when it boots.

    Raises:
        BadInput: an option that cannot be used.
    """

    ram: int | str | None = None
    """Guest memory, in bytes or as text like "64M"; by default what ``emu guests`` says, or 64M for a file."""

    pool: int | str | None = None
    """Machine memory that the guest may use, the same way; as much as ``ram`` by default, and a ROM's frames."""

    mmu: str = "shadow"
    """Paging architecture, "shadow" or "nested"; a guest cannot tell them apart."""

    cpus: int = 1
    """Processors, from 1 to 16."""

    cpu: str | None = None
    """What the processors are: "MODEL", "MODEL,+feature,-feature" (:func:`emu.cpu.models.parse_cpu`)."""

    quantum: int | str | None = None
    """Most virtual time of a processor's turn, in ns or as text like "100us"; None leaves it to emu."""

    schedule: str | None = None
    """Order and length of the processors' turns: "seed=N" draws them from N; None keeps them fixed."""

    policies: Sequence[str] = ()
    """Memory policies, each as ``--policy`` takes it: "swap:victims=clock"; demand paging by default."""

    append: str = ""
    """The guest's command line."""

    as_: str | None = None
    """What the guest's file is, one of :data:`emu.boot.kinds.WORDS`; by default what it looks like."""

    load: int | None = None
    """Where a flat binary lies and is entered, a gpa."""

    initrd: str | None = None
    """A Linux kernel's initial RAM disk, or a multiboot kernel's modules (:func:`emu.boot.make.make_guest`)."""

    disks: Sequence[str | Path] = ()
    """Raw disk images, up to two IDE drives and one virtio block device, as :func:`disk_options` reads them.  A guest
    that is a disk image goes before them."""

    floppies: Sequence[str | Path] = ()
    """Images of floppy disks in drives A and B, each "FILE[,writable]" (:mod:`emu.devices.floppy`).  A guest that is a
    floppy disk goes before them."""

    cdrom: str | Path | None = None
    """The image of a CD-ROM or DVD in a drive of the secondary IDE channel, which is never changed.  A guest that is
    one is there itself."""

    devices: Sequence[str] = ()
    """More devices: "testdev" (:data:`emu.devices.parts.DEVICES`)."""

    net: str | NetPlan | None = None
    """A network card and what it is plugged into, as ``--net`` takes it (:mod:`emu.devices.net`); none by default."""

    bios: str | Path | None = None
    """A ROM image to start in; the guest is the disk image that it finds, whatever is in it."""

    no_reboot: bool = False
    """A reset ends the run; by default the machine starts again."""

    serial_input: bytes = b""
    """Bytes that wait at the serial port until the guest looks for them."""

    audit: bool = False
    """Check every invariant after every change of the mapping."""

    def __post_init__(self) -> None:
        if type(self.cpus) is not int or not 1 <= self.cpus <= MAX_CPUS:
            raise BadInput("--cpus", f"{self.cpus!r}: expected a number of processors from 1 to {MAX_CPUS}")
        parse_cpu(self.cpu)
        for device in self.devices:
            if device not in DEVICES:
                raise BadInput("--device", f"{device!r} is none of {', '.join(DEVICES)}")
        if self.as_ is not None:
            kind_called(self.as_)
        _ = self.ram_bytes, self.pool_bytes, self.quantum_ns, self.seed, self.net_plan  # each raises BadInput

    @property
    def ram_bytes(self) -> int | None:
        """``ram`` in bytes."""
        return _number("--ram", self.ram, parse_size)

    @property
    def pool_bytes(self) -> int | None:
        """``pool`` in bytes."""
        return _number("--pool", self.pool, parse_size)

    @property
    def net_plan(self) -> NetPlan | None:
        """``net``, understood."""
        return parse_net(self.net) if isinstance(self.net, str) else self.net

    @property
    def quantum_ns(self) -> int | None:
        """``quantum`` in ns."""
        quantum = _number("--quantum", self.quantum, parse_duration)
        if quantum is not None and quantum <= 0:
            raise BadInput("--quantum", "expected a time above 0")
        return quantum

    @property
    def seed(self) -> int | None:
        """N of the schedule "seed=N", below 2**64; None without one."""
        if self.schedule is None:
            return None
        match = re.fullmatch(r"seed=([0-9]{1,20})", self.schedule)
        if match is None or int(match[1]) >= _SEED_LIMIT:
            raise BadInput("--schedule", f"{self.schedule!r}: expected seed=N, with N from 0 to {_SEED_LIMIT - 1}")
        return int(match[1])


def disk_options(disk: str | Path) -> tuple[str, bool, bool]:
    """The parts of "FILE[,virtio][,writable]": the file, whether it is a virtio device, whether the file is written to.

    Without ``writable`` the file is never changed: what the guest writes is kept in memory.
    """
    path, virtio, writable = str(disk), False, False
    while True:
        if path.endswith(",virtio"):
            path, virtio = path.removesuffix(",virtio"), True
        elif path.endswith(",writable"):
            path, writable = path.removesuffix(",writable"), True
        else:
            return path, virtio, writable


def floppy_options(floppy: str | Path) -> tuple[str, bool]:
    """The parts of "FILE[,writable]", as of a disk.

    Raises:
        BadInput: it shall be a virtio device.
    """
    path, virtio, writable = disk_options(floppy)
    if virtio:
        raise BadInput("--floppy", f"{floppy}: a floppy disk is no virtio device")
    return path, writable


def _number(option: str, value: int | str | None, parse: Callable[[str], int]) -> int | None:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise BadInput(option, str(error)) from None
