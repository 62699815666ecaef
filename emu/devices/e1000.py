"""The network card 82540EM, which QEMU calls e1000: a PCI function with descriptor rings in memory.

Source: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 3 (descriptors), 13
(registers), 14 (initialisation).

Registers are doublewords, in memory (BAR 0, 128 KiB) or by two I/O ports (BAR 1): an offset, and what is there. Those
that do something stand in the tables at the end of the class; of the others some keep what is written, the statistics
count and are cleared when they are read, and the rest reads as zeros.

A ring is size bytes from base, sixteen for a descriptor; software moves the tail, the card the head. Frames to send
leave some in one go, and the next ones when these have passed on the cable; a ring whose head or tail is outside of it
does nothing. Without bus mastering in the command register nothing is moved at all.

Interrupts come at once, or when the time in ITR has passed since the last one; the delays of RDTR, RADV, TIDV and TADV
are none. Checksums of received frames are left to software (IXSM in each descriptor). There is no flash memory, no
wake-up and no management.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import ClassVar

from emu.devices.device import Clock, Device, GuestMemory, IrqLine, State, check_fields
from emu.devices.e1000_chips import CONTROL, PHY_RESET, RESTART, Eeprom, Phy, eeprom_words
from emu.devices.e1000_frames import ADDRESS_VALID, ADDRESSES, accepts
from emu.devices.e1000_interrupts import FEW_BUFFERS, LINK_CHANGED, MDIO, QUEUE_EMPTY, RECEIVED, SENT, Interrupts
from emu.devices.e1000_statistics import REGISTERS as STATISTICS
from emu.devices.e1000_statistics import Statistics
from emu.devices.e1000_transmit import Transmitter
from emu.devices.network import SHORTEST, Cable
from emu.devices.pci import INTEL, QEMU_SUBSYSTEM, QEMU_SUBSYSTEM_VENDOR

DEVICE_ID = 0x100E  # of the 82540EM
REGISTERS_SIZE, PORTS = 0x2_0000, 0x40  # bytes of BAR 0, ports of BAR 1

CTRL, STATUS, EECD, EERD, MDIC = 0x0000, 0x0008, 0x0010, 0x0014, 0x0020
ICR, ITR, ICS, IMS, IMC = 0x00C0, 0x00C4, 0x00C8, 0x00D0, 0x00D8
VLAN_TYPE, RCTL, TCTL, PBA = 0x0038, 0x0100, 0x0400, 0x1000
RDBAL, RDBAH, RDLEN, RDH, RDT = 0x2800, 0x2804, 0x2808, 0x2810, 0x2818
TDBAL, TDBAH, TDLEN, TDH, TDT = 0x3800, 0x3804, 0x3808, 0x3810, 0x3818
MULTICAST, ADDRESS, VLANS = 0x5200, 0x5400, 0x5600  # tables

CTRL_RESET, CTRL_PHY_RESET, CTRL_SET_LINK_UP, CTRL_VLAN = 1 << 26, 1 << 31, 1 << 6, 1 << 30
STATUS_ALWAYS, STATUS_LINK = 0x8008_0781, 0x02  # a gigabit a second, full duplex, as QEMU's tells it
ENABLE = 0x02  # of RCTL and TCTL
STRIP_FCS, LARGE_BUFFERS = 1 << 26, 1 << 25  # RCTL
MDIC_READ, MDIC_WRITE, MDIC_READY, MDIC_INTERRUPT, MDIC_ERROR = 2 << 26, 1 << 26, 1 << 28, 1 << 29, 1 << 30
PHY_ADDRESS = 1
READ_START, READ_DONE = 0x01, 0x10  # EERD

DONE, END, NO_CHECKSUM, VLAN_PACKET = 0x01, 0x02, 0x04, 0x08  # status of a receive descriptor
RECEIVE = struct.Struct("<HHBBH")  # what the card writes behind the address: length, checksum, status, errors, VLAN tag
DESCRIPTOR_SIZE = 16
BUFFER_SIZES = (2048, 1024, 512, 256)  # by RCTL's BSIZE; sixteen times as much with LARGE_BUFFERS, but for the first
IO_ADDRESS, IO_DATA = 0, 4  # offsets of the ports
SERVICE_NS = 2_000  # from a new tail until the card has looked
IDLE = -1

POWER_UP = {CTRL: 0x0014_0240, PBA: 0x0010_0030, 0x0E00: 0x0706_8302}  # E00: LEDs
KEPT = frozenset((
    CTRL, 0x0018, 0x0028, 0x002C, 0x0030, VLAN_TYPE, RCTL, 0x0170, 0x0178, TCTL, 0x0410, 0x0458, 0x0E00, PBA,
    0x2160, 0x2168, RDBAL, RDBAH, RDLEN, RDH, RDT, 0x2820, 0x2828, 0x282C, 0x2C00, 0x3000, TDBAL, TDBAH, TDLEN, TDH,
    TDT, 0x3820, 0x3828, 0x382C, 0x3830, 0x5000, 0x5800, 0x5808, 0x5820, 0x5838,
))  # fmt: skip
WRITABLE = {RDBAL: 0xFFFF_FFF0, TDBAL: 0xFFFF_FFF0, RDLEN: 0xF_FF80, TDLEN: 0xF_FF80} | dict.fromkeys(
    (RDH, RDT, TDH, TDT), 0xFFFF
)


class E1000(Device):
    """The card.

    Args:
        line: INTA.
        memory: where the rings and buffers are.
        clock: virtual time in ns.
        cable: what it is plugged into.
        mac: its address, 6 bytes.

    Attributes:
        interrupts: what drives INTA.
        ports: the registers of BAR 1.
        is_master: whether it may move anything; :meth:`set_master` tells.
    """

    max_access: ClassVar[int] = 4

    def __init__(self, line: IrqLine, memory: GuestMemory, clock: Clock, cable: Cable, mac: bytes) -> None:
        self.interrupts = Interrupts(line, clock)
        self._statistics = Statistics()
        self._memory = memory
        self._clock = clock
        self._cable = cable
        self._mac = mac
        self._eeprom = Eeprom(eeprom_words(mac, DEVICE_ID, INTEL, QEMU_SUBSYSTEM, QEMU_SUBSYSTEM_VENDOR))
        self._phy = Phy(cable.connected)
        self.ports = IoPorts(self)
        self.is_master = False
        self.transmitter = Transmitter(memory)
        self._reset()
        cable.plug_in(self)

    def _reset(self) -> None:
        """As after power-up, or CTRL.RST."""
        self.registers = dict(POWER_UP)
        self._statistics.reset()
        self.interrupts.reset()
        self.multicast, self.vlans, self.addresses = [0] * 128, [0] * 128, [0] * (2 * ADDRESSES)
        low, high = struct.unpack("<IH", self._mac)
        self.addresses[:2] = low, high | ADDRESS_VALID
        self.due = IDLE  # when the next frames are sent
        self.mdic = MDIC_READY
        self.read_word = READ_DONE  # EERD
        self.transmitter.reset()
        self._cable.forget()

    # --- registers ----------------------------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        value = self._read(offset & ~3)
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if size != 4 or offset & 3:
            return  # registers are written whole (13.2)
        if offset in self._WRITES:
            self._WRITES[offset](self, value)
        elif offset in KEPT:
            self.registers[offset] = value & WRITABLE.get(offset, 0xFFFF_FFFF)
        else:
            table, number = self._table(offset)
            if table is not None:
                table[number] = value

    def _read(self, offset: int) -> int:
        if offset in self._READS:
            return self._READS[offset](self)
        if offset in STATISTICS:
            return self._statistics.read(offset, 4)
        table, number = self._table(offset)
        return self.registers.get(offset, 0) if table is None else table[number]

    def _table(self, offset: int) -> tuple[list[int] | None, int]:
        for first, table in ((MULTICAST, self.multicast), (ADDRESS, self.addresses), (VLANS, self.vlans)):
            if first <= offset < first + 4 * len(table):
                return table, (offset - first) // 4
        return None, 0

    def _status(self) -> int:
        link = STATUS_LINK if self._cable.connected and self.registers[CTRL] & CTRL_SET_LINK_UP else 0
        return STATUS_ALWAYS | link

    def _set_control(self, value: int) -> None:
        if value & CTRL_RESET:
            self._reset()
            return
        if value & CTRL_PHY_RESET:
            self._phy.reset()
        before = self._status()
        self.registers[CTRL] = value & ~CTRL_PHY_RESET
        if self._status() != before or value & CTRL_PHY_RESET and self._cable.connected:
            self.interrupts.cause(LINK_CHANGED)

    def _set_eerd(self, value: int) -> None:
        if value & READ_START:
            word = value >> 8 & 0xFF
            data = self._eeprom.words[word] if word < len(self._eeprom.words) else 0xFFFF
            self.read_word = data << 16 | word << 8 | READ_DONE

    def _set_mdic(self, value: int) -> None:
        """A register of the PHY is read or written (13.4, MDIC)."""
        number, address = value >> 16 & 31, value >> 21 & 31
        operation = value & (MDIC_READ | MDIC_WRITE)
        if address != PHY_ADDRESS:
            value |= MDIC_ERROR
        elif operation == MDIC_READ:
            value = value & ~0xFFFF | self._phy.read(number, 2)
        elif operation == MDIC_WRITE:
            self._phy.write(number, 2, value & 0xFFFF)
            if number == CONTROL and value & (PHY_RESET | RESTART) and self._cable.connected:
                self.interrupts.cause(LINK_CHANGED)  # it has gone and come again
        self.mdic = value | MDIC_READY
        if value & MDIC_INTERRUPT:
            self.interrupts.cause(MDIO)

    # --- rings --------------------------------------------------------------------------------------------------------

    def set_master(self, is_master: bool) -> None:
        """The command register lets it move data, or does not."""
        self.is_master = is_master
        if is_master:
            self._look()

    def _set_ring(self, offset: int, value: int) -> None:
        self.registers[offset] = value & WRITABLE.get(offset, 0xFFFF_FFFF)
        self._look()

    def _look(self) -> None:
        """There may be frames to send, or buffers for frames that wait."""
        now = self._clock()
        if self.due == IDLE and self._may_send():
            self.due = now + SERVICE_NS
        if self._may_receive():
            self._cable.feed(now)

    def _ring(self, first: int) -> tuple[int, int, int, int]:
        """Base, number of descriptors, head and tail of the ring whose registers begin at ``first``."""
        registers = self.registers
        base = registers.get(first + 4, 0) << 32 | registers.get(first, 0)
        size, head, tail = (registers.get(first + offset, 0) for offset in (8, 16, 24))
        return base, size // DESCRIPTOR_SIZE, head, tail

    def _may_send(self) -> bool:
        _, size, head, tail = self._ring(TDBAL)
        return self.is_master and bool(self.registers.get(TCTL, 0) & ENABLE) and head != tail and max(head, tail) < size

    def _may_receive(self) -> bool:
        return self.is_master and bool(self.registers.get(RCTL, 0) & ENABLE)

    def _vlan_type(self) -> int | None:
        """The type of the tags that the card takes out of frames and puts in; None when it does not."""
        return self.registers.get(VLAN_TYPE, 0) & 0xFFFF if self.registers[CTRL] & CTRL_VLAN else None

    def deadline(self) -> int | None:
        interrupt = self.interrupts.deadline()
        if self.due == IDLE:
            return interrupt
        return self.due if interrupt is None else min(self.due, interrupt)

    def tick(self, now_ns: int) -> None:
        if self.due != IDLE and self.due <= now_ns:
            self.due = IDLE
            if self._may_send():
                self._send(now_ns)
        self.interrupts.tick(now_ns)

    def _send(self, now_ns: int) -> None:
        base, size, head, tail = self._ring(TDBAL)
        done = self.transmitter.run(base, size, head, tail, self._vlan_type())
        self.registers[TDH] = done.head
        for frame in done.frames:
            self._cable.send(frame, now_ns)
            self._statistics.sent(max(len(frame), SHORTEST))
        causes = SENT if done.reported else 0
        if done.head == tail:
            causes |= QUEUE_EMPTY
        else:
            self.due = now_ns + done.time
        self.interrupts.cause(causes)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes, now_ns: int) -> bool:
        """A frame from the cable: whether it is done with."""
        if not self._may_receive():
            return True
        rctl = self.registers[RCTL]
        if not accepts(frame, rctl, self.addresses, self.multicast, self.vlans):
            return True
        base, size, head, tail = self._ring(RDBAL)
        if not size or max(head, tail) >= size:
            return True
        status, tag, size_on_cable = DONE | NO_CHECKSUM, 0, max(len(frame), SHORTEST)
        vlan_type = self._vlan_type()
        if vlan_type is not None and int.from_bytes(frame[12:14], "big") == vlan_type:
            tag, frame = int.from_bytes(frame[14:16], "big"), frame[:12] + frame[16:]
            status |= VLAN_PACKET
        data = frame.ljust(SHORTEST, b"\0")
        if not rctl & STRIP_FCS:
            data += zlib.crc32(data).to_bytes(4, "little")
        length = self._buffer_size()
        pieces = [data[at : at + length] for at in range(0, len(data), length)]
        if (tail - head) % size < len(pieces):
            return len(pieces) >= size  # else it waits for buffers
        for piece in pieces:
            last = END if piece is pieces[-1] else 0
            descriptor = base + DESCRIPTOR_SIZE * head
            gpa = int.from_bytes(self._memory.read(descriptor, 8), "little")
            if gpa:  # a null descriptor has no buffer
                self._memory.write(gpa, piece)
            self._memory.write(descriptor + 8, RECEIVE.pack(len(piece), 0, status | last, 0, tag))
            head = (head + 1) % size
        self.registers[RDH] = head
        self._statistics.received(size_on_cable)
        few = (tail - head) % size <= size >> (rctl >> 8 & 3) + 1
        self.interrupts.cause(RECEIVED | (FEW_BUFFERS if few else 0))
        return True

    def _buffer_size(self) -> int:
        rctl = self.registers[RCTL]
        size = BUFFER_SIZES[rctl >> 16 & 3]
        return size * 16 if rctl & LARGE_BUFFERS and size < 2048 else size

    # --- state --------------------------------------------------------------------------------------------------------

    _OWN: ClassVar[tuple[str, ...]] = ("multicast", "vlans", "addresses", "due", "mdic", "read_word", "is_master")

    def machine_reset(self, power_up: State) -> None:
        self._phy.reset()
        self._reset()

    def _parts(self) -> dict[str, Device]:
        return {
            "interrupts": self.interrupts, "statistics": self._statistics, "eeprom": self._eeprom, "phy": self._phy,
            "transmitter": self.transmitter, "ports": self.ports,
        }  # fmt: skip

    def state(self) -> State:
        own = {name: getattr(self, name) for name in self._OWN}
        own = {name: list(value) if isinstance(value, list) else value for name, value in own.items()}
        registers = {str(offset): value for offset, value in self.registers.items()}
        return {"own": own, "registers": registers} | {name: part.state() for name, part in self._parts().items()}

    def load_state(self, state: State) -> None:
        check_fields("E1000", state, ("own", "registers", *self._parts()))
        check_fields("E1000", state["own"], self._OWN)
        for name, value in state["own"].items():
            setattr(self, name, list(value) if isinstance(value, list) else value)
        self.registers = {int(offset): value for offset, value in state["registers"].items()}
        for name, part in self._parts().items():
            part.load_state(state[name])

    _READS: ClassVar[dict[int, Callable[[E1000], int]]] = {
        STATUS: _status,
        EECD: lambda self: self._eeprom.register,
        EERD: lambda self: self.read_word,
        MDIC: lambda self: self.mdic,
        ICR: lambda self: self.interrupts.take(),
        ITR: lambda self: self.interrupts.throttle,
        ICS: lambda self: 0,
        IMS: lambda self: self.interrupts.mask,
        IMC: lambda self: 0,
    }

    _WRITES: ClassVar[dict[int, Callable[[E1000, int], None]]] = {
        CTRL: _set_control,
        EECD: lambda self, value: self._eeprom.set_register(value),
        EERD: _set_eerd,
        MDIC: _set_mdic,
        ICR: lambda self, value: self.interrupts.clear(value),
        ITR: lambda self, value: setattr(self.interrupts, "throttle", value & 0xFFFF),
        ICS: lambda self, value: self.interrupts.cause(value),
        IMS: lambda self, value: self.interrupts.set_mask(value),
        IMC: lambda self, value: self.interrupts.clear_mask(value),
        **{
            offset: lambda self, value, offset=offset: self._set_ring(offset, value)  # type: ignore[misc]
            for offset in (RCTL, TCTL, RDT, TDT)
        },
    }


class IoPorts(Device):
    """BAR 1: the offset of a register at port 0, the register at port 4; only doublewords (13.2.2)."""

    max_access: ClassVar[int] = 4

    STATE: ClassVar[tuple[str, ...]] = ("address",)

    def __init__(self, card: E1000) -> None:
        self._card = card
        self.address = 0

    def read(self, offset: int, size: int) -> int:
        if size != 4 or offset not in (IO_ADDRESS, IO_DATA):
            return 0
        return self.address if offset == IO_ADDRESS else self._card.read(self.address, 4)

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 4 and offset == IO_ADDRESS:
            self.address = value & REGISTERS_SIZE - 4
        elif size == 4 and offset == IO_DATA:
            self._card.write(self.address, 4, value)

    def machine_reset(self, power_up: State) -> None:
        self.address = 0
