"""What is plugged into one PC and not into another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emu.devices.disc import Disc
from emu.devices.disk import Disk
from emu.devices.floppy import FloppyDisk
from emu.devices.net import NetPart

DEVICES = {
    "serial2": "a second serial port (COM2)",
    "testdev": "kvm-unit-tests' device, as QEMU's pc-testdev",
}
"""By name: what ``--device`` can add."""


@dataclass(frozen=True)
class Parts:
    """What a PC gets besides what every PC has.

    Attributes:
        disks: drives of the primary IDE channel, up to two.
        virtio_disk: of the virtio block device.
        devices: names from DEVICES.
        floppies: disks of drives A and B.
        cdrom: in the drive of the secondary IDE channel.
        net: its network card.
        boot_order: what a BIOS tries: a floppy disk, c hard disk, d CD-ROM.
    """

    disks: Sequence[Disk] = ()
    virtio_disk: Disk | None = None
    devices: Sequence[str] = ()
    floppies: Sequence[FloppyDisk] = ()
    cdrom: Disc | None = None
    boot_order: str = "cad"
    net: NetPart | None = None

    @property
    def images(self) -> list[Disk]:
        """Every disk's, floppy disk's and disc's."""
        images = [*self.disks, self.virtio_disk, *(floppy.disk for floppy in self.floppies), self.cdrom]
        return [image for image in images if image is not None]

    def close(self) -> None:
        """Let go of what they have of the host: files and sockets."""
        if self.net is not None:
            self.net.close()
        for image in self.images:
            image.close()


NO_PARTS = Parts()
