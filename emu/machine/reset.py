"""Reset: a VM starts again as a PC does.

Devices are as after power-up, but for what a battery keeps (time of day, CMOS) and what the world outside holds (disks,
input that nobody has looked at).  Processors are too: the first one begins where the guest begins, the others wait.
Only the processors are reset, and the devices stay as they are, where a program says in CMOS memory that it wants to go
on behind that: a 286 could leave protected mode only so, by the keyboard controller or by a triple fault.

Memory keeps its contents, as DRAM does that is refreshed all the time, and what was loaded before the first instruction
is loaded again, as a BIOS or the loader of a kernel would.  Virtual time goes on.

The end of a sleep in S3 is a reset, too, whose memory nobody touches: the kernel has left in the FACS where it goes on
(ACPI specification 6.5, 16.3.2); without that it starts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from emu.addr import PAGE_SHIFT
from emu.boot.entry import at_waking_vector
from emu.boot.guest import Guest
from emu.boot.image import GuestImage
from emu.boot.tables import WAKING_VECTOR
from emu.cpu.floatflags import initialise_x87
from emu.devices.platform import Platform
from emu.dmm.dmm import DMM
from emu.dmm.p2m import PageType
from emu.dmm.physical import PhysicalMemory
from emu.machine.processor import Processor


class Reset(Enum):
    """What starts again."""

    MACHINE = auto()
    WAKE = auto()  # the end of a sleep in S3: it goes on where the kernel has told the firmware
    PROCESSORS = auto()  # and the BIOS finds out why
    KERNEL = auto()  # loaded again by the machine, because the BIOS wants it: the devices are as that left them


def reset(
    kind: Reset, guest: Guest, platform: Platform, processors: Sequence[Processor], dmm: DMM, memory: PhysicalMemory,
    now: int,
) -> None:  # fmt: skip
    """Start ``guest`` again; no engine runs.

    Args:
        now: virtual time in ns.

    Raises:
        OutOfFrames: a page of the guest's image needs a frame and there is none.
    """
    vector = int.from_bytes(memory.read(WAKING_VECTOR, 4), "little") if kind is Reset.WAKE else 0
    if kind is Reset.MACHINE or (kind is Reset.WAKE and not vector and not guest.own_tables):
        platform.reset()
    elif kind is Reset.WAKE:
        platform.wake()
    for processor in processors:
        processor.reset(now)
    if kind is Reset.PROCESSORS:
        processors[0].begin(guest.resume or guest.start)
        return
    if kind is Reset.WAKE and (vector or guest.own_tables):
        _go_on(guest, platform, processors[0], vector)
        return
    if dmm.balloon.policy is not None:  # the driver that gave those pages is gone
        dmm.balloon.policy.deflate(sorted(dmm.balloon.policy.held))
    _load_again(guest.image, dmm, memory)
    start(guest, platform, processors[0])


def start(guest: Guest, platform: Platform, processor: Processor) -> None:
    """Set devices and the first processor, which are as after power-up, for the guest's first instruction."""
    if guest.after_bios:
        platform.leave_as_bios()
        initialise_x87(processor.engine.env)
    if guest.video is not None:
        platform.vbe.set_mode(guest.video)
    processor.begin(guest.start)


def _go_on(guest: Guest, platform: Platform, processor: Processor, vector: int) -> None:
    """Begin where the kernel wants to be woken."""
    if guest.own_tables:
        processor.begin(guest.start)
        return
    if guest.after_bios:
        platform.leave_as_bios()
        initialise_x87(processor.engine.env)
    processor.begin(at_waking_vector(vector))


def _load_again(image: GuestImage, dmm: DMM, memory: PhysicalMemory) -> None:
    """Write the pages of the image that may have changed."""
    for gfn in image.gfns():
        if not dmm.is_memory(gfn):
            continue
        resident = dmm.is_resident(gfn)
        origin = dmm.p2m.origin(gfn) if resident else dmm.p2m.type(gfn)
        if origin is not PageType.IMAGE or (resident and dmm.p2m.dirty(gfn)):
            memory.write(gfn << PAGE_SHIFT, image.page(gfn))
