"""The descriptors of an 82540EM that say what to send.

Source: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 3.3 to 3.5.

    legacy   u64 gpa, u16 bytes, u8 place of the checksum, u8 command, u8 status, u8 where it begins, u16 VLAN tag
    context  of the data descriptors behind it (emu.devices.e1000_frames)
    data     u64 gpa, u32 bytes (20 bits), kind (4) and command (8), u8 status, u8 options, u16 VLAN tag

The descriptors of a frame go up to the one with EOP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import ClassVar

from emu.devices.device import Device, GuestMemory, State, check_fields
from emu.devices.e1000_frames import Context, put_checksum, segments, with_checksums
from emu.devices.network import time_on_cable

DESCRIPTOR_SIZE = 16
EOP, INSERT_CHECKSUM, SEGMENTATION, REPORT, EXTENDED, VLAN = 0x01, 0x04, 0x04, 0x08, 0x20, 0x40  # bits of a command
CONTEXT_KIND, DATA_KIND = 0, 1
OF_IP, OF_PAYLOAD = 0x01, 0x02  # options
DONE = 0x01  # status
LONGEST = 0x1_0000 + 256  # bytes of a frame before it is cut up
MOST_DESCRIPTORS = 64  # in one go
MOST_BYTES = 0x2_0000  # the same; at least one descriptor is done
NS_PER_DESCRIPTOR = 100

ADDRESS, LEGACY = struct.Struct("<QI"), struct.Struct("<HBBBBH")


@dataclass
class Done:
    """What one go has done: the new head, the frames, whether a descriptor wanted to be reported, the ns it took."""

    head: int
    frames: list[bytes] = field(default_factory=list)
    reported: bool = False
    time: int = 0


class Transmitter(Device):
    """Turns descriptors into frames; what it has of the next frame is kept from one go to the next."""

    STATE: ClassVar[tuple[str, ...]] = ("options", "command")

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.reset()

    def reset(self) -> None:
        """Forget what has been begun."""
        self.frame = bytearray()
        self.context = Context()
        self.options = self.command = 0  # of the frame's first descriptor
        self._too_long = False

    def run(self, base: int, size: int, head: int, tail: int, vlan_type: int | None) -> Done:
        """Work on descriptors from ``head`` to ``tail`` of a ring, some at most.

        Args:
            base: gpa of the ring; size: its descriptors.
            vlan_type: of the tags that are put in; None when none are.
        """
        done, moved = Done(head), 0
        for _ in range(MOST_DESCRIPTORS):
            if done.head == tail or moved >= MOST_BYTES:
                break
            at = base + DESCRIPTOR_SIZE * done.head
            descriptor = self._memory.read(at, DESCRIPTOR_SIZE)
            moved += self._take(descriptor, done, vlan_type)
            if descriptor[11] & REPORT:
                self._memory.write(at + 12, bytes((descriptor[12] | DONE,)))
                done.reported = True
            done.head = (done.head + 1) % size
            done.time += NS_PER_DESCRIPTOR
        done.time += sum(map(time_on_cable, done.frames))
        return done

    def _take(self, descriptor: bytes, done: Done, vlan_type: int | None) -> int:
        """Carry out one descriptor; how many bytes it has moved."""
        gpa, words = ADDRESS.unpack_from(descriptor)
        command = descriptor[11]
        if command & EXTENDED and words >> 20 & 15 == CONTEXT_KIND:
            self.context = Context.unpack(descriptor)
            return 0
        length = words & (0xF_FFFF if command & EXTENDED else 0xFFFF)
        if not self.frame and not self._too_long:
            self.command, self.options = command, descriptor[13]
        self._too_long |= len(self.frame) + length > LONGEST
        if self._too_long:
            self.frame.clear()
            length = 0
        elif length:
            self.frame += self._memory.read(gpa, length)
        if command & EOP:
            tag = int.from_bytes(descriptor[14:16], "little")
            put_in = vlan_type if command & VLAN else None
            done.frames += [_tagged(frame, put_in, tag) for frame in self._finish(descriptor, command)]
            self.frame, self._too_long = bytearray(), False
        return length

    def _finish(self, descriptor: bytes, command: int) -> Iterable[bytes]:
        """The frames that have become whole with their last descriptor."""
        if not command & EXTENDED:
            if command & INSERT_CHECKSUM:
                put_checksum(self.frame, at=descriptor[10], start=descriptor[13])
            return [bytes(self.frame)]
        of_ip, of_payload = bool(self.options & OF_IP), bool(self.options & OF_PAYLOAD)
        if self.command & SEGMENTATION:
            return segments(bytes(self.frame), self.context, of_ip, of_payload)
        return [with_checksums(self.frame, self.context, of_ip, of_payload)]

    def state(self) -> State:
        context = list(astuple(self.context))
        return super().state() | {"frame": self.frame.hex(), "context": context, "too_long": self._too_long}

    def load_state(self, state: State) -> None:
        check_fields("Transmitter", state, (*self.STATE, "frame", "context", "too_long"))
        for name in self.STATE:
            setattr(self, name, state[name])
        self.frame = bytearray.fromhex(state["frame"])
        self.context = Context(*state["context"])
        self._too_long = state["too_long"]


def _tagged(frame: bytes, vlan_type: int | None, tag: int) -> bytes:
    if vlan_type is None:
        return frame
    return frame[:12] + struct.pack(">HH", vlan_type, tag) + frame[12:]
