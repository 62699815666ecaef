"""Guest: everything that a VM needs to start, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emu.boot.image import GuestImage
from emu.devices.vbe import VideoMode
from emu.engine.cpustate import CpuState


@dataclass(frozen=True)
class Guest:
    """A bootable guest.

    Attributes:
        name: for people.
        image: contents of its memory before the first instruction, for a given RAM size.
        start: sets the first CPU state; it gets the CPU in the state after reset.
        kind: the boot protocol, for people.
        after_bios: it expects the interrupt controllers and the timer as a BIOS leaves them.
        video: the graphics mode that is on from the start; None for text.
        resume: sets the first CPU state after a reset of the processor alone: that of the BIOS, which looks in CMOS
            memory why it was reset.  Without a BIOS the whole machine starts again.
        own_tables: it is a BIOS that makes the ACPI tables, and itself finds out that the machine has been asleep.
    """

    name: str
    kind: str
    image: GuestImage
    start: Callable[[CpuState], None]
    after_bios: bool = False
    video: VideoMode | None = None
    resume: Callable[[CpuState], None] | None = None
    own_tables: bool = False
