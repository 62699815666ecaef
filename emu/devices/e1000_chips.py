"""The two chips that an 82540EM has besides itself: its EEPROM, and its PHY.

Sources: Intel PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual (317453), 5 (EEPROM) and
13.4 (EECD, EERD, MDIC); Atmel AT93C46, a Microwire EEPROM of 64 words; IEEE 802.3, clause 22 (registers 0 to 15 of a
PHY); Marvell 88E1011 as far as Linux's and FreeBSD's drivers tell of it.
"""

from __future__ import annotations

from typing import ClassVar

from emu.devices.device import Device

WORDS = 64
CHECKSUM, CHECKSUM_AT = 0xBABA, 0x3F  # the sum of all words, the last of them makes it so
ADDRESS_BITS, OPCODE_READ = 6, 0b10

SK, CS, DI, DO = 0x01, 0x02, 0x04, 0x08  # EECD: clock, chip select, to the EEPROM, from it
REQUEST, GRANT, PRESENT = 0x40, 0x80, 0x100
EECD_WRITABLE = SK | CS | DI | 0x30 | REQUEST

CONTROL, PHY_STATUS, ID_1, ID_2, ADVERTISE, PARTNER, EXPANSION = range(7)  # registers of the PHY
GIGABIT_CONTROL, GIGABIT_STATUS, EXTENDED_STATUS = 9, 10, 15
SPECIFIC_CONTROL, SPECIFIC_STATUS = 16, 17
PHY_RESET, AUTONEGOTIATE, RESTART = 0x8000, 0x1000, 0x0200  # bits of CONTROL
LINK, NEGOTIATED = 0x0004, 0x0020  # bits of PHY_STATUS
MARVELL = 0x0141_0C20  # identifier, with revision 0
POWER_UP = {
    CONTROL: 0x1140, PHY_STATUS: 0x7949, ID_1: MARVELL >> 16, ID_2: MARVELL & 0xFFFF, ADVERTISE: 0x0DE1,
    PARTNER: 0xCDE1, EXPANSION: 0x000F, GIGABIT_CONTROL: 0x0300, GIGABIT_STATUS: 0x3C00, EXTENDED_STATUS: 0x3000,
    SPECIFIC_CONTROL: 0x0360,
}  # fmt: skip
WRITABLE = (CONTROL, ADVERTISE, GIGABIT_CONTROL, SPECIFIC_CONTROL, 18, 20, 24, 29, 30)
GIGABIT_FULL = 0xAC00  # SPECIFIC_STATUS: 1000 Mb/s, full duplex, resolved, link


def eeprom_words(mac: bytes, device: int, vendor: int, subsystem: int, subsystem_vendor: int) -> tuple[int, ...]:
    """What is in the EEPROM of a card with this address (5.6)."""
    words = [0] * WORDS
    words[0:3] = (int.from_bytes(mac[at : at + 2], "little") for at in (0, 2, 4))
    words[0x0A] = 0x4408  # initialisation control 1: the IDs below are to be loaded
    words[0x0B:0x0F] = (subsystem, subsystem_vendor, device, vendor)
    words[0x0F] = 0x0040  # initialisation control 2
    words[CHECKSUM_AT] = CHECKSUM - sum(words[:CHECKSUM_AT]) & 0xFFFF
    return tuple(words)


class Eeprom(Device):
    """The EEPROM, by the four wires of EECD; it cannot be written to."""

    STATE: ClassVar[tuple[str, ...]] = ("control", "shifted", "count", "output")

    def __init__(self, words: tuple[int, ...]) -> None:
        self.words = words
        self.control = 0  # EECD's writable bits
        self.shifted = self.count = 0  # what came in since the chip was selected
        self.output = 1  # DO

    @property
    def register(self) -> int:
        """EECD as it is read."""
        return self.control | PRESENT | (GRANT if self.control & REQUEST else 0) | (DO if self.output else 0)

    def set_register(self, value: int) -> None:
        """EECD is written: a bit moves at each rise of the clock."""
        rises = value & SK and not self.control & SK
        if not value & CS:
            self.shifted = self.count = 0
            self.output = 1
        elif rises:
            self._clock(1 if value & DI else 0)
        self.control = value & EECD_WRITABLE

    def _clock(self, bit: int) -> None:
        """A command is 1, two bits of opcode, six of address; then come 0 and sixteen bits of data for each word."""
        if self.count == 0 and not bit:
            return  # not begun
        command = 3 + ADDRESS_BITS
        self.count += 1
        if self.count <= command:
            self.shifted = self.shifted << 1 | bit
            if self.count == command:
                self.output = 0
            return
        if self.shifted >> ADDRESS_BITS & 3 == OPCODE_READ:
            word, place = divmod(self.count - command - 1, 16)
            self.output = self.words[(self.shifted + word) % WORDS] >> 15 - place & 1
            self.count = command + 1 + (self.count - command - 1) % (16 * WORDS)


class Phy(Device):
    """The PHY, by its registers. Autonegotiation is over at once; ``connected`` is whether the cable leads anywhere."""

    STATE: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, connected: bool) -> None:
        self._connected = connected
        self.reset()

    def reset(self) -> None:
        """As after power-up."""
        self.values = [POWER_UP.get(number, 0) for number in range(32)]

    def read(self, offset: int, size: int) -> int:
        if self._connected and offset == PHY_STATUS:
            return self.values[PHY_STATUS] | LINK | NEGOTIATED
        if offset == SPECIFIC_STATUS:
            return GIGABIT_FULL if self._connected else 0
        if not self._connected and offset in (PARTNER, GIGABIT_STATUS):
            return 0
        return self.values[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == CONTROL and value & PHY_RESET:
            self.reset()
        elif offset in WRITABLE:
            self.values[offset] = value & ~RESTART if offset == CONTROL else value
