"""PCI configuration: how Linux, SeaBIOS and teaching kernels find mechanism 1, the functions and their sizes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.pci import PciFunction, PciHost, i440fx
from emu.errors import BadInput

CF8, CF9, CFB, CFC = 0xCF8, 0xCF9, 0xCFB, 0xCFC
ENABLE = 0x8000_0000


class Board:
    def __init__(self, host: PciHost | None = None) -> None:
        self.resets: list[bool] = []
        self.host = host or i440fx(0x600, 9, lambda: self.resets.append(True))
        self.bus = PortBus()
        self.bus.register(CF8, 8, self.host)

    def select(self, device: int, function: int, register: int, bus: int = 0) -> int:
        self.bus.write(CF8, 4, ENABLE | bus << 16 | device << 11 | function << 8 | register & 0xFC)
        return CFC + (register & 3)

    def get(self, device: int, function: int, register: int, size: int = 4, bus: int = 0) -> int:
        return self.bus.read(self.select(device, function, register, bus), size)

    def put(self, device: int, function: int, register: int, size: int, value: int) -> None:
        self.bus.write(self.select(device, function, register), size, value)


@pytest.fixture
def board() -> Board:
    return Board()


def test_linux_finds_mechanism_1(board: Board) -> None:
    """pci_check_type1, and pci_sanity_check for a host bridge on bus 0."""
    board.bus.write(CFB, 1, 0x01)
    saved = board.bus.read(CF8, 4)
    board.bus.write(CF8, 4, ENABLE)
    assert board.bus.read(CF8, 4) == ENABLE
    board.bus.write(CF8, 4, saved)
    assert board.get(0, 0, 0x0A, 2) == 0x0600


def test_a_scan_finds_the_functions_of_the_board(board: Board) -> None:
    """Every bus, device and function, as a teaching kernel enumerates them."""
    found = {}
    for bus in range(3):
        for device in range(32):
            if board.get(device, 0, 0, 2, bus) == 0xFFFF:
                continue
            for function in range(8 if board.get(device, 0, 0x0E, 1, bus) & 0x80 else 1):
                if (identity := board.get(device, function, 0, 4, bus)) != 0xFFFF_FFFF:
                    found[bus, device, function] = (identity, board.get(device, function, 0x08, 4, bus) >> 8)
    assert found == {
        (0, 0, 0): (0x1237_8086, 0x060000),
        (0, 1, 0): (0x7000_8086, 0x060100),
        (0, 1, 1): (0x7010_8086, 0x010180),
        (0, 1, 3): (0x7113_8086, 0x068000),
    }


def test_seabios_takes_it_for_a_qemu_board(board: Board) -> None:
    assert (board.get(0, 0, 0x2C, 2), board.get(0, 0, 0x2E, 2)) == (0x1AF4, 0x1100)
    assert board.get(1, 0, 0x58) == 0
    assert board.get(1, 3, 0x58) & 1 << 25, "SMM is not to be set up"


def test_nothing_is_selected_without_the_enable_bit(board: Board) -> None:
    board.bus.write(CF8, 4, 0)
    assert board.bus.read(CFC, 4) == 0xFFFF_FFFF
    board.bus.write(CFC, 4, 0)
    assert board.get(0, 0, 0) == 0x1237_8086


def test_only_doublewords_reach_the_address(board: Board) -> None:
    board.bus.write(CF8, 4, ENABLE | 0x800)
    for size, value in ((1, 0x55), (2, 0x5555)):
        board.bus.write(CF8, size, value)
        board.bus.write(CF8 + 2, size, value)
        assert board.bus.read(CF8, size) == (1 << 8 * size) - 1
    assert board.bus.read(CF8, 4) == ENABLE | 0x800


def test_bytes_and_words_of_the_data(board: Board) -> None:
    assert [board.get(0, 0, n, 1) for n in range(4)] == [0x86, 0x80, 0x37, 0x12]
    assert (board.get(0, 0, 0, 2), board.get(0, 0, 2, 2)) == (0x8086, 0x1237)
    board.put(0, 0, 0x59, 1, 0x30)
    board.put(0, 0, 0x5A, 2, 0x3333)
    assert board.get(0, 0, 0x58) == 0x3333_3000


def test_identity_cannot_be_written(board: Board) -> None:
    for register in (0x00, 0x08, 0x2C):
        before = board.get(0, 0, register)
        board.put(0, 0, register, 4, ~before & 0xFFFF_FFFF)
        assert board.get(0, 0, register) == before
    board.put(1, 1, 0x04, 4, 0xFFFF_FFFF)
    assert board.get(1, 1, 0x04) == 0x0280_0507


def test_no_function_of_the_board_asks_for_addresses(board: Board) -> None:
    for device, function in board.host.functions:
        for bar in range(0x10, 0x28, 4):
            board.put(device, function, bar, 4, 0xFFFF_FFFF)
            assert board.get(device, function, bar) == 0


def test_sizing_base_address_registers() -> None:
    function = PciFunction(0x1234, 0x5678, 0x0200)
    function.add_bar(0, 0x1000)
    function.add_bar(5, 0x20, io=True)
    board = Board(PciHost({(31, 0): function}))
    for register, kind, size in ((0x10, 0, 0x1000), (0x24, 1, 0x20), (0x14, 0, 0)):
        board.put(31, 0, register, 4, 0xFFFF_FFFF)
        assert board.get(31, 0, register) == (-size & 0xFFFF_FFFF | kind if size else 0)
    board.put(31, 0, 0x10, 4, 0xFEBC_0FFF)
    board.put(31, 0, 0x24, 4, 0x0000_C03F)
    assert (function.bar(0), function.bar(5)) == (0xFEBC_0000, 0xC020)
    for number, size, io in ((6, 16, False), (0, 24, False), (0, 8, False), (0, 2, True)):
        with pytest.raises(ValueError):
            function.add_bar(number, size, io)


def test_linux_ata_piix_finds_both_channels_on(board: Board) -> None:
    assert board.get(1, 1, 0x41, 1) & 0x80 and board.get(1, 1, 0x43, 1) & 0x80
    assert board.get(1, 1, 0x09, 1) == 0x80, "both in legacy mode, with a bus master"
    assert board.get(1, 1, 0x04, 2) & 5 == 5


def test_power_management_ports(board: Board) -> None:
    """As SeaBIOS and Linux's quirk_piix4_acpi read them."""
    assert board.get(1, 3, 0x40) == 0x601
    assert board.get(1, 3, 0x80, 1) & 1
    assert (board.get(1, 3, 0x3C, 1), board.get(1, 3, 0x3D, 1)) == (9, 1)


def test_pirq_routing_can_be_stored(board: Board) -> None:
    assert board.get(1, 0, 0x60) == 0x0B0B_0A0A
    board.put(1, 0, 0x60, 4, 0x0B0B_0A0A)
    assert board.get(1, 0, 0x62, 1) == 0x0B


def test_writes_are_told(board: Board) -> None:
    told: list[tuple[int, int]] = []
    board.host.functions[0, 0].written = lambda offset, size: told.append((offset, size))
    board.put(0, 0, 0x5A, 2, 0x3333)
    assert told == [(0x5A, 2)]


def test_reset_control(board: Board) -> None:
    """Linux's reboot=pci: hard reset first, then the rise of the reset bit."""
    board.bus.write(CF9, 1, 0x02)
    assert (board.resets, board.bus.read(CF9, 1)) == ([], 0x02)
    board.bus.write(CF9, 1, 0x06)
    board.bus.write(CF9, 1, 0x06)
    assert board.resets == [True]


def test_places_that_do_not_exist() -> None:
    for place in ((32, 0), (0, 8)):
        with pytest.raises(BadInput):
            PciHost({place: PciFunction(1, 2, 3)})


def test_state_survives_json(board: Board) -> None:
    other = Board()
    board.put(0, 0, 0x59, 1, 0x30)
    board.select(1, 0, 0x60)
    other.host.load_state(json.loads(json.dumps(board.host.state())))
    for each in (board, other):
        each.bus.write(CFC + 1, 1, 0x05)
        assert each.get(1, 0, 0x60) == 0x0B0B_050A
        assert each.get(0, 0, 0x59, 1) == 0x30
    with pytest.raises(BadInput):
        board.host.load_state({"address": 0, "reset_control": 0, "functions": {}})


ACCESSES = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(CF8, CF8 + 7),
        st.sampled_from([1, 2, 4]),
        st.integers(0, 0xFFFF_FFFF) | st.builds(lambda n: ENABLE | n, st.integers(0, 0x0FFF)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACCESSES)
def test_nonsense_never_raises_and_never_changes_who_is_there(accesses: list[tuple[bool, int, int, int]]) -> None:
    board = Board()
    for write, port, size, value in accesses:
        if write:
            board.bus.write(port, size, value & (1 << 8 * size) - 1)
        else:
            assert 0 <= board.bus.read(port, size) < 1 << 8 * size
    assert [board.get(*place, 0) for place in ((0, 0), (1, 0), (1, 1), (1, 3), (2, 0))] == [
        0x1237_8086,
        0x7000_8086,
        0x7010_8086,
        0x7113_8086,
        0xFFFF_FFFF,
    ]
