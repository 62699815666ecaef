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
        has_bios: it begins in a BIOS at the reset vector, which looks in CMOS memory why the processor was reset.
    """

    name: str
    kind: str
    image: GuestImage
    start: Callable[[CpuState], None]
    after_bios: bool = False
    video: VideoMode | None = None
    has_bios: bool = False
