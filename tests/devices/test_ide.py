"""The IDE channel and its drives: probing as SeaBIOS, Linux and teaching kernels do it, transfers, and errors."""

from __future__ import annotations

import itertools
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.ata import COMMANDS
from emu.devices.bus import PortBus
from emu.devices.disk import SECTOR, Disk, DiskFailed
from emu.devices.ide import IdeChannel
from emu.errors import BadInput
from tests.devices.test_pio import NativePort

BASE, CONTROL = 0x1F0, 0x3F6
DATA, ERROR, COUNT, LOW, MID, HIGH, DEVICE, STATUS = range(BASE, BASE + 8)
FEATURES, COMMAND = ERROR, STATUS
BSY, DRDY, DSC, DRQ, ERR = 0x80, 0x40, 0x10, 0x08, 0x01
READY = DRDY | DSC
UNC, IDNF, ABRT = 0x40, 0x10, 0x04
SECTORS = 3000


class Line:
    def __init__(self) -> None:
        self.level = False
        self.rises = 0

    def set(self, level: bool) -> None:
        self.rises += level and not self.level
        self.level = level


def pattern(lba: int, count: int = 1) -> bytes:
    return b"".join(struct.pack("<I", n) * (SECTOR // 4) for n in range(lba, lba + count))


class Board:
    def __init__(self, first: bool = True, second: bool = False) -> None:
        self.line = Line()
        self.disks = tuple(
            Disk.from_bytes(pattern(1000_000 * number, SECTORS)) if there else None
            for number, there in enumerate((first, second))
        )
        self.channel = IdeChannel(self.line, self.disks)  # type: ignore[arg-type]
        self.bus = PortBus()
        self.bus.register(BASE, 8, self.channel)
        self.bus.register(CONTROL, 1, self.channel.control)
        self.port = NativePort(self.channel.buffer.address, self.bus, DATA)

    def inb(self, port: int) -> int:
        return self.bus.read(port, 1)

    def out(self, *writes: tuple[int, int]) -> None:
        for port, value in writes:
            self.bus.write(port, 1, value)

    def insw(self, count: int, width: int = 2) -> bytes:
        return b"".join(self.port.read(width) for _ in range(count // width))

    def outsw(self, data: bytes, width: int = 2) -> None:
        for begin in range(0, len(data), width):
            self.port.write(data[begin : begin + width])

    def lba28(self, command: int, lba: int, count: int, drive: int = 0) -> None:
        self.out((DEVICE, 0xE0 | drive << 4 | lba >> 24), (COUNT, count & 0xFF), (LOW, lba & 0xFF))
        self.out((MID, lba >> 8 & 0xFF), (HIGH, lba >> 16 & 0xFF), (COMMAND, command))

    def lba48(self, command: int, lba: int, count: int) -> None:
        self.out((DEVICE, 0xE0), (COUNT, count >> 8), (LOW, lba >> 24 & 0xFF), (MID, lba >> 32 & 0xFF))
        self.out((HIGH, lba >> 40), (COUNT, count & 0xFF), (LOW, lba & 0xFF), (MID, lba >> 8 & 0xFF))
        self.out((HIGH, lba >> 16 & 0xFF), (COMMAND, command))

    def chs(self, command: int, cylinder: int, head: int, sector: int, count: int) -> None:
        self.out((DEVICE, 0xA0 | head), (COUNT, count), (LOW, sector), (MID, cylinder & 0xFF), (HIGH, cylinder >> 8))
        self.out((COMMAND, command))

    def registers(self) -> list[int]:
        return [self.inb(port) for port in (COUNT, LOW, MID, HIGH)]

    def identify(self, drive: int = 0) -> tuple[int, ...]:
        self.out((DEVICE, 0xA0 | drive << 4), (COMMAND, 0xEC))
        assert self.inb(STATUS) == READY | DRQ
        words = struct.unpack("<256H", self.insw(512))
        assert self.inb(STATUS) == READY
        return words

    def fails(self, error: int) -> bool:
        """Whether a command just failed in that way, with an interrupt and no data."""
        risen = self.line.level
        return risen and self.inb(STATUS) == READY | ERR and self.inb(ERROR) == error and self.insw(2) == b"\0\0"


@pytest.fixture
def board() -> Board:
    return Board()


# --- probing ----------------------------------------------------------------------------------------------------------


def test_seabios_finds_drives() -> None:
    """ata_detect: not busy, registers keep their values, then reset, and IDENTIFY for each that answers."""
    board = Board(second=True)
    for slave in (0, 1):
        board.out((DEVICE, 0xA0 | slave << 4))
        assert not board.inb(STATUS) & BSY
        board.out((DEVICE, 0xA0 | slave << 4), (COUNT, 0x55), (LOW, 0xAA))
        assert (board.inb(COUNT), board.inb(LOW), board.inb(DEVICE)) == (0x55, 0xAA, 0xA0 | slave << 4)
        board.out((CONTROL, 0x06), (CONTROL, 0x02), (DEVICE, 0xA0 | slave << 4))
        assert board.inb(STATUS) & (BSY | DRDY) == DRDY
        assert board.identify(slave)[0] == 0x0040
    assert not board.line.rises, "nIEN was set throughout"


def test_linux_softreset_finds_one_drive() -> None:
    """ata_devchk for both drives, SRST, then the signatures: an absent drive 1 has one too, but no status."""
    board = Board()
    for device in (0xA0, 0xB0):
        board.out((DEVICE, device), (COUNT, 0x55), (LOW, 0xAA), (COUNT, 0xAA), (LOW, 0x55), (COUNT, 0x55), (LOW, 0xAA))
        assert (board.inb(COUNT), board.inb(LOW)) == (0x55, 0xAA)
    board.out((DEVICE, 0xA0), (CONTROL, 0x08), (CONTROL, 0x0C), (CONTROL, 0x08))
    assert board.inb(CONTROL) == READY
    assert (board.inb(ERROR), board.registers()) == (0x01, [1, 1, 0, 0])
    board.out((DEVICE, 0xB0))
    assert (board.inb(STATUS), board.inb(CONTROL), board.registers()) == (0, 0, [1, 1, 0, 0])


def test_a_channel_without_drives_is_all_zeros() -> None:
    board = Board(first=False)
    for device in (0xA0, 0xB0):
        board.out((DEVICE, device), (COUNT, 0x55), (LOW, 0xAA), (COMMAND, 0xEC))
        assert [board.inb(port) for port in (*range(ERROR, STATUS + 1), CONTROL)] == [0] * 8
        assert board.bus.read(DATA, 2) == 0
    board.out((CONTROL, 4), (CONTROL, 0), (COMMAND, 0x90))
    assert board.inb(STATUS) == 0
    assert not board.line.rises


def test_only_a_second_drive() -> None:
    board = Board(first=False, second=True)
    board.out((DEVICE, 0xA0), (COMMAND, 0xEC))
    assert (board.inb(STATUS), board.registers()) == (0, [0] * 4)
    assert board.identify(1)[60] == SECTORS


def test_teaching_kernel_looks_for_drive_1() -> None:
    """xv6's ideinit: drive 1 is there when its status is ever nonzero."""
    for second in (False, True):
        board = Board(second=second)
        assert board.inb(STATUS) & (BSY | DRDY) == DRDY
        board.out((DEVICE, 0xE0 | 1 << 4))
        assert (board.inb(STATUS) != 0) == second
        board.out((DEVICE, 0xE0))
        assert board.inb(STATUS) == READY


def test_commands_to_a_missing_drive_go_nowhere(board: Board) -> None:
    board.lba28(0x20, 0, 1, drive=1)
    assert (board.inb(STATUS), board.line.rises) == (0, 0)
    board.out((DEVICE, 0xE0))
    assert board.inb(STATUS) == READY


def test_identify(board: Board) -> None:
    words = board.identify()
    assert words[0] & 0x8080 == 0, "an ATA drive, not removable"
    assert words[1:2] + words[3:4] + words[6:7] == (2, 16, 63)
    swapped = struct.pack(">20H", *words[27:47])
    assert swapped.decode().rstrip() == "EMU HARDDISK"
    assert struct.pack(">10H", *words[10:20]).decode() == "EMU00001".ljust(20)
    assert words[49] & 0x0300 == 0x0300, "LBA, DMA"
    assert words[63] == 0x0407 and words[53] & 6 == 2, "multiword DMA 2, no Ultra DMA"
    assert words[60] | words[61] << 16 == SECTORS
    assert words[83] & 0xC400 == 0x4400 and words[86] & 0x0400, "48-bit addresses"
    assert words[100:104] == (SECTORS, 0, 0, 0)
    assert words[47] & 0xFF == 16 and words[59] == 0x0110
    data = struct.pack("<256H", *words)
    assert data[510] == 0xA5 and sum(data) & 0xFF == 0


def test_identify_of_a_disk_beyond_28_bits() -> None:
    disk = Disk.from_bytes(bytes(512))
    disk.sectors = 0x12_3456_7890
    board = Board()
    board.channel = IdeChannel(board.line, (disk, None))
    words = struct.unpack("<256H", board.channel._drives[0].identity())  # type: ignore[union-attr]
    assert words[60] | words[61] << 16 == 0x0FFF_FFFF
    assert words[100:104] == (0x7890, 0x3456, 0x12, 0)
    assert words[1] == words[54] == 16383


def test_serial_numbers_differ() -> None:
    board = Board(second=True)
    assert board.identify(0)[10:20] != board.identify(1)[10:20]


@pytest.mark.parametrize("command", [0x00, 0x08, 0xA1, 0xA0, 0xC7, 0xB0, 0xFF])
def test_commands_that_are_aborted(board: Board, command: int) -> None:
    board.out((DEVICE, 0xE0), (COMMAND, command))
    assert board.fails(ABRT)
    assert board.identify()[0] == 0x0040


# --- transfers --------------------------------------------------------------------------------------------------------


def test_read_with_interrupts(board: Board) -> None:
    """One interrupt a block, with DRQ; none behind the last (clause 9.5)."""
    board.lba28(0x20, 5, 3)
    for number in range(3):
        assert board.line.level
        assert board.inb(CONTROL) == READY | DRQ
        assert board.line.level, "alternate status leaves the interrupt"
        assert board.inb(STATUS) == READY | DRQ
        assert not board.line.level
        assert board.insw(512) == pattern(5 + number)
    assert not board.line.level
    assert board.inb(STATUS) == READY
    assert board.line.rises == 3
    assert board.port.slow == 3, "the device saw the last access of each sector alone"


def test_write_with_interrupts(board: Board) -> None:
    """The first block is asked for without interrupt; then one when each is taken (clause 9.6)."""
    board.lba28(0x30, 5, 3)
    for number in range(3):
        assert not board.line.level
        assert board.inb(STATUS) == READY | DRQ
        board.outsw(pattern(77 + number))
        assert board.line.level
        assert board.inb(STATUS) == READY | (DRQ if number < 2 else 0)
    assert board.line.rises == 3
    assert board.port.slow == 3
    assert board.disks[0] is not None
    assert board.disks[0].read(4, 5) == pattern(4) + pattern(77, 3) + pattern(8)


def test_polled_read_of_256_sectors_with_32_bit_accesses(board: Board) -> None:
    """What boot loaders do: insl, and the status before each sector."""
    board.out((CONTROL, 0x02))
    board.lba28(0x20, 1000, 256)
    data = b""
    for _ in range(256):
        assert board.inb(STATUS) & (BSY | DRQ | ERR) == DRQ
        data += board.insw(512, width=4)
    assert board.inb(STATUS) == READY
    assert data == pattern(1000, 256)
    assert not board.line.rises


def test_widths_may_be_mixed(board: Board) -> None:
    board.lba28(0x20, 9, 1)
    data = board.insw(508, width=4) + board.insw(4, width=2)
    assert (data, board.inb(STATUS)) == (pattern(9), READY)


def test_48_bit_commands(board: Board) -> None:
    board.lba48(0x24, 2000, 300)
    assert b"".join(board.insw(512) for _ in range(300)) == pattern(2000, 300)
    assert board.inb(STATUS) == READY
    board.lba48(0x34, 2990, 2)
    board.outsw(pattern(1, 2))
    assert board.inb(STATUS) == READY
    board.lba48(0x24, 2990, 3)
    assert board.insw(3 * 512) == pattern(1, 2) + pattern(2992)


def test_count_zero_of_a_48_bit_command(board: Board) -> None:
    board.lba48(0x42, 0, 0)
    assert board.fails(IDNF), "65536 sectors are more than there are"
    board.lba48(0x42, 0, SECTORS)
    assert board.inb(STATUS) == READY


def test_high_order_bytes_can_be_read_back(board: Board) -> None:
    board.lba48(0x24, 0x0102_0304_0506, 0x0708)
    assert board.fails(IDNF)
    assert board.registers() == [0x08, 0x06, 0x05, 0x04]
    board.out((CONTROL, 0x80))
    assert board.registers() == [0x07, 0x03, 0x02, 0x01]
    board.out((COUNT, 9))
    assert board.registers() == [0x09, 0x06, 0x05, 0x04], "a write ends it"


def test_chs(board: Board) -> None:
    board.chs(0x20, 1, 2, 3, 2)
    lba = (1 * 16 + 2) * 63 + 2
    assert board.insw(1024) == pattern(lba, 2)
    assert board.registers() == [0, 4, 1, 0], "the address of the last sector"
    assert board.inb(DEVICE) == 0xA2


def test_chs_in_another_translation(board: Board) -> None:
    board.out((DEVICE, 0xA0 | 3), (COUNT, 17), (COMMAND, 0x91))
    assert board.inb(STATUS) == READY
    board.chs(0x20, 10, 3, 17, 1)
    assert board.insw(512) == pattern(10 * 68 + 3 * 17 + 16)
    for head, sector in ((4, 1), (0, 0), (0, 18)):
        board.chs(0x20, 0, head, sector, 1)
        assert board.fails(IDNF)
    words = board.identify()
    assert words[54:59] == (SECTORS // 68, 4, 17, SECTORS // 68 * 68, 0)
    assert words[1:2] + words[3:4] + words[6:7] == (2, 16, 63)
    board.out((COUNT, 0), (COMMAND, 0x91))
    assert board.fails(ABRT)


def test_multiple(board: Board) -> None:
    board.out((DEVICE, 0xE0), (COUNT, 8), (COMMAND, 0xC6))
    assert board.inb(STATUS) == READY
    assert board.identify()[59] == 0x0108
    rises = board.line.rises
    board.lba28(0xC4, 100, 20)
    for first, count in ((100, 8), (108, 8), (116, 4)):
        assert board.line.level and board.inb(STATUS) == READY | DRQ
        assert board.insw(count * 512) == pattern(first, count)
    assert (board.inb(STATUS), board.line.rises - rises) == (READY, 3)
    board.lba28(0xC5, 100, 9)
    board.outsw(pattern(500, 8))
    assert board.inb(STATUS) == READY | DRQ
    board.outsw(pattern(508))
    assert board.inb(STATUS) == READY
    board.lba48(0x29, 99, 11)
    assert board.insw(11 * 512) == pattern(99) + pattern(500, 9) + pattern(109)


def test_set_multiple_refuses_other_sizes(board: Board) -> None:
    for count in (3, 17, 32, 255):
        board.out((DEVICE, 0xE0), (COUNT, count), (COMMAND, 0xC6))
        assert board.fails(ABRT)
    board.out((COUNT, 0), (COMMAND, 0xC6))
    assert board.inb(STATUS) == READY
    board.lba28(0xC4, 0, 1)
    assert board.fails(ABRT)
    assert board.identify()[59] == 0


@pytest.mark.parametrize("command", [0x20, 0x30, 0x40, 0x70, 0xC4, 0xC5])
def test_addresses_that_do_not_exist(board: Board, command: int) -> None:
    board.lba28(command, SECTORS, 1)
    assert board.fails(IDNF)
    board.lba28(command, 0x0FFF_FFFF, 1)
    assert board.fails(IDNF)
    assert board.registers()[1:] == [0xFF, 0xFF, 0xFF]


def test_a_read_across_the_end_stops_there(board: Board) -> None:
    board.lba28(0x20, SECTORS - 1, 2)
    assert board.insw(512) == pattern(SECTORS - 1)
    assert board.fails(IDNF)
    assert board.registers() == [1, SECTORS & 0xFF, SECTORS >> 8, 0]


def test_a_write_across_the_end_stops_there(board: Board) -> None:
    board.lba28(0x30, SECTORS - 1, 2)
    board.outsw(pattern(7))
    assert board.fails(IDNF)
    board.lba28(0x20, SECTORS - 1, 1)
    assert board.insw(512) == pattern(7)


@pytest.mark.parametrize("command", [0x10, 0x1F, 0x40, 0x70, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, 0xE7, 0xEA, 0x94, 0x97])
def test_commands_without_data(board: Board, command: int) -> None:
    board.lba28(command, 10, 4)
    assert board.line.level
    assert board.inb(STATUS) == READY


@pytest.mark.parametrize("command", [0x98, 0xE5])
def test_power_mode(board: Board, command: int) -> None:
    board.out((DEVICE, 0xE0), (COMMAND, command))
    assert (board.inb(STATUS), board.inb(COUNT)) == (READY, 0xFF)


def test_set_features(board: Board) -> None:
    for feature, count, works in (
        (0x03, 0x00, True),
        (0x03, 0x0C, True),  # PIO 4
        (0x03, 0x22, True),  # multiword DMA 2
        (0x03, 0x23, False),
        (0x03, 0x45, False),  # Ultra DMA 5
        (0xAA, 0, True),
        (0x42, 0, False),
    ):
        board.out((DEVICE, 0xE0), (FEATURES, feature), (COUNT, count), (COMMAND, 0xEF))
        assert board.inb(STATUS) == (READY if works else READY | ERR)
    assert board.identify()[85] & 0x20
    board.out((FEATURES, 0x82), (COMMAND, 0xEF))
    assert not board.identify()[85] & 0x20


def test_failures_of_the_host_reach_the_guest(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bytes:
        raise DiskFailed("disk", "on fire")

    for name in ("read", "write", "flush"):
        monkeypatch.setattr(board.disks[0], name, fail)
    board.lba28(0x20, 3, 1)
    assert board.fails(UNC)
    assert board.registers()[1:] == [3, 0, 0]
    board.lba28(0x30, 3, 1)
    board.outsw(pattern(3))
    assert board.fails(ABRT)
    board.out((COMMAND, 0xE7))
    assert board.fails(ABRT)


# --- interrupts, resets, two drives -----------------------------------------------------------------------------------


def test_nien_holds_an_interrupt_back(board: Board) -> None:
    board.out((CONTROL, 0x02))
    board.lba28(0x40, 0, 1)
    assert not board.line.level
    board.out((CONTROL, 0))
    assert board.line.level
    board.inb(STATUS)
    assert not board.line.level


def test_a_new_command_takes_back_the_interrupt_of_the_last(board: Board) -> None:
    """Kernels that never read the status still get an edge for each command."""
    for count in range(1, 4):
        board.lba28(0x40, 0, 1)
        assert board.line.rises == count


def test_interrupts_belong_to_the_selected_drive() -> None:
    board = Board(second=True)
    board.lba28(0x40, 0, 1)
    board.out((DEVICE, 0xF0))
    assert not board.line.level
    board.inb(STATUS)
    board.out((DEVICE, 0xE0))
    assert board.line.level


def test_two_drives_keep_their_registers_apart() -> None:
    board = Board(second=True)
    board.lba28(0x20, 10, 1, drive=1)
    assert board.insw(512) == pattern(1000_010)
    board.lba28(0x40, SECTORS, 1, drive=0)
    assert board.inb(STATUS) == READY | ERR
    board.out((DEVICE, 0xF0))
    assert (board.inb(STATUS), board.inb(ERROR)) == (READY, 0)


def test_soft_reset_in_a_transfer(board: Board) -> None:
    board.lba28(0x30, 10, 2)
    board.outsw(pattern(99)[:100])
    board.out((CONTROL, 0x04))
    assert (board.inb(STATUS), board.inb(CONTROL), board.line.level) == (BSY, BSY, False)
    board.out((COMMAND, 0xEC), (CONTROL, 0x00))
    assert (board.inb(STATUS), board.inb(ERROR), board.registers()) == (READY, 1, [1, 1, 0, 0])
    assert board.inb(DEVICE) == 0xA0
    assert not board.line.level
    board.outsw(pattern(99)[100:])
    board.lba28(0x20, 10, 1)
    assert board.insw(512) == pattern(10), "nothing was written"


def test_execute_diagnostic() -> None:
    board = Board(second=True)
    board.out((DEVICE, 0xF0), (COMMAND, 0x90))
    assert board.line.level
    assert board.inb(DEVICE) == 0xA0, "drive 0 is selected"
    assert (board.inb(STATUS), board.inb(ERROR), board.registers()) == (READY, 1, [1, 1, 0, 0])
    board.out((DEVICE, 0xB0))
    assert (board.line.level, board.inb(ERROR)) == (False, 1)


def test_selecting_the_other_drive_ends_a_transfer() -> None:
    board = Board(second=True)
    board.lba28(0x30, 10, 1)
    board.out((DEVICE, 0xF0))
    board.outsw(bytes(512))
    board.out((DEVICE, 0xE0))
    assert board.inb(STATUS) == READY
    for drive in (0, 1):
        board.lba28(0x20, 10, 1, drive)
        assert board.insw(512) == pattern(10 + 1000_000 * drive)


def test_a_new_command_ends_a_transfer(board: Board) -> None:
    board.out((DEVICE, 0xE0), (COMMAND, 0xEC))
    board.insw(100)
    board.lba28(0x20, 4, 1)
    assert board.insw(512) == pattern(4)


def test_the_data_port_without_a_transfer(board: Board) -> None:
    assert board.insw(4) == b"\0\0\0\0"
    board.outsw(b"abcd")
    board.lba28(0x30, 0, 1)
    assert board.insw(2) == b"\0\0"
    assert (board.inb(DATA), board.inb(STATUS)) == (0xFF, READY | DRQ)


def test_wide_accesses_to_byte_registers_are_cut_up(board: Board) -> None:
    board.bus.write(COUNT, 2, 0x1234)
    assert (board.inb(COUNT), board.inb(LOW), board.bus.read(COUNT, 2)) == (0x34, 0x12, 0x1234)


def test_state_survives_json_in_a_transfer() -> None:
    board, other = Board(second=True), Board(second=True)
    board.out((CONTROL, 0x02), (DEVICE, 0xE0), (COUNT, 4), (COMMAND, 0xC6), (CONTROL, 0))
    board.lba28(0xC4, 20, 7)
    first = board.insw(5 * 512)
    other.channel.load_state(json.loads(json.dumps(board.channel.state())))
    for each in (board, other):
        assert first + each.insw(2 * 512) == pattern(20, 7)
        assert each.inb(STATUS) == READY
    assert other.channel.state() == board.channel.state()
    with pytest.raises(BadInput):
        board.channel.load_state({"drives": []})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.integers(0, 60), st.integers(1, 30), st.sampled_from([0, 1, 4, 16])),
        max_size=6,
    )
)
def test_transfers_behave_as_memory(commands: list[tuple[bool, bool, int, int, int]]) -> None:
    """Reads and writes of any size, in blocks of any size."""
    board = Board()
    model = bytearray(pattern(0, 100))
    for stamp, (write, ext, lba, count, multiple) in enumerate(commands):
        board.out((DEVICE, 0xE0), (COUNT, multiple), (COMMAND, 0xC6))
        opcode = {(0, 0): 0x20, (0, 1): 0x24, (1, 0): 0x30, (1, 1): 0x34}[write, ext]
        if multiple:
            opcode = {0x20: 0xC4, 0x24: 0x29, 0x30: 0xC5, 0x34: 0x39}[opcode]
        (board.lba48 if ext else board.lba28)(opcode, lba, count)
        where = slice(lba * SECTOR, (lba + count) * SECTOR)
        if write:
            data = pattern(stamp * 1000, count)
            board.outsw(data, 4)
            model[where] = data
        else:
            assert board.insw(count * SECTOR) == model[where]
        assert board.inb(STATUS) == READY
    assert board.disks[0] is not None
    assert board.disks[0].read(0, 100) == model


PORTS = st.sampled_from([*range(BASE, BASE + 8), CONTROL])
WIDTHS = st.sampled_from([1, 2, 4])
INTERESTING = st.sampled_from([0, 1, 4, 0xE0, 0xF0, 0xFF, *COMMANDS]) | st.integers(0, 0xFFFF_FFFF)
NONSENSE = st.lists(st.tuples(st.booleans(), PORTS, WIDTHS, INTERESTING), max_size=60)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(itertools.product([False, True], repeat=2))), NONSENSE)
def test_nonsense_never_raises(drives: tuple[bool, bool], accesses: list[tuple[bool, int, int, int]]) -> None:
    board = Board(*drives)
    for write, port, size, value in accesses:
        if write:
            board.bus.write(port, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= board.bus.read(port, size) < 1 << 8 * size
    board.out((CONTROL, 4), (CONTROL, 0))
    if drives[0]:
        assert board.inb(STATUS) == READY
