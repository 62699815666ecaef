"""The drives of a floppy controller: where their heads are, and what becomes of a seek. Source: Intel 82077AA, 5.2."""

from __future__ import annotations

from collections.abc import Sequence

from emu.devices.device import State, check_fields
from emu.devices.floppy import FloppyDisk

DRIVES = 4
LAST_CYLINDER = 84  # that a drive reaches
SEEK_NS = 1_000_000  # a step to any cylinder
ABNORMAL, POLLED = 0x40, 0xC0  # ST0, interrupt code
SEEK_END, NO_TRACK_0 = 0x20, 0x10  # ST0
NO_ADDRESS_MARK = 0x01  # ST1
_STATE = ("cylinder", "changed", "seeking", "due", "interrupts")


class NotThere(Exception):
    """There is no such sector, or it cannot be moved: ST1 and ST2."""

    def __init__(self, st1: int, st2: int = 0) -> None:
        self.st1 = st1
        self.st2 = st2


class Heads:
    """Up to four drives.

    Attributes:
        disks: by drive; None where there is no drive.
        cylinder: by drive, where its heads are.
        changed: by drive, whether the disk was put in since the last step.
        seeking: a bit a drive, until SENSE INTERRUPT STATUS has told the end.
        due: by drive, when its heads have come to their cylinder, in ns; -1: they do not move.
        interrupts: ST0 of each interrupt that SENSE INTERRUPT STATUS tells.
    """

    def __init__(self, disks: Sequence[FloppyDisk | None]) -> None:
        self.disks = (*disks, *[None] * (DRIVES - len(disks)))
        self.cylinder = [0] * DRIVES
        self.changed = [1] * DRIVES
        self.reset()

    def reset(self) -> None:
        """Forget what goes on."""
        self.seeking = 0
        self.due = [-1] * DRIVES
        self.interrupts: list[int] = []

    def poll(self) -> None:
        """A reset is over: each drive has something to tell."""
        self.interrupts = [POLLED | drive for drive in range(DRIVES)]

    def step_to(self, drive: int, cylinder: int) -> None:
        """Move the heads of a drive at once; no lower than cylinder 0."""
        self.cylinder[drive] = min(max(cylinder, 0), LAST_CYLINDER)
        if self.disks[drive] is not None:
            self.changed[drive] = 0

    def seek(self, drive: int, cylinder: int, now_ns: int) -> None:
        """The same, with an interrupt at its end."""
        self.step_to(drive, cylinder)
        self.seeking |= 1 << drive
        self.due[drive] = now_ns + SEEK_NS

    def arrive(self, now_ns: int) -> bool:
        """Whether a seek has ended by ``now_ns``, which an interrupt tells."""
        ended = [drive for drive, time in enumerate(self.due) if 0 <= time <= now_ns]
        for drive in ended:
            self.due[drive] = -1
            # without a drive the signal that a head is over track 0 never comes
            lost = self.disks[drive] is None and not self.cylinder[drive]
            self.interrupts.append(drive | SEEK_END | (ABNORMAL | NO_TRACK_0 if lost else 0))
        return bool(ended)

    def sense(self) -> list[int] | None:
        """ST0 and cylinder of the next interrupt; None when there is none."""
        if not self.interrupts:
            return None
        st0 = self.interrupts.pop(0)
        self.seeking &= ~(1 << (st0 & 3))
        return [st0, self.cylinder[st0 & 3]]

    @property
    def more_to_tell(self) -> bool:
        """Whether another seek has ended, for which the interrupt stays."""
        return bool(self.interrupts) and self.interrupts[0] & POLLED != POLLED

    def readable(self, drive: int, head: int, rate: int, double_density: bool) -> FloppyDisk:
        """The disk of a drive, if its data can be made out at the head. Raises NotThere."""
        disk = self.disks[drive]
        if disk is None or rate != disk.format.rate or not double_density:
            raise NotThere(NO_ADDRESS_MARK)
        if head >= disk.format.heads or self.cylinder[drive] >= disk.format.cylinders:
            raise NotThere(NO_ADDRESS_MARK)
        return disk

    def state(self) -> State:
        """For :meth:`load_state`."""
        return {name: value[:] if isinstance(value := getattr(self, name), list) else value for name in _STATE}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Raises BadInput when it is no such thing."""
        check_fields("Heads", state, _STATE)
        for name, value in state.items():
            setattr(self, name, value[:] if isinstance(value, list) else value)
