"""What devices may move at a time: bursts at once, the rest in virtual time, and nothing lost or for ever."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from emu.devices.bandwidth import BURST, NS_PER_BYTE, Bandwidth
from emu.devices.disk import Disk
from emu.devices.fw_cfg import FwCfg
from emu.devices.output import KEPT, ConsoleOutput
from emu.devices.virtio import CHAIN_COST, VirtioDevice
from emu.devices.virtio_balloon import VirtioBalloon
from emu.devices.virtio_blk import VirtioBlock
from emu.devices.virtio_console import VirtioConsole
from emu.devices.virtio_rng import VirtioRng
from tests.devices.virtio_guest import WRITE, Guest, Memory

BUFFER = 0x10_0000
RAM = 64 << 20


class Board:
    """A device on a bus, and the virtual time."""

    def __init__(self, make: object) -> None:
        self.now = 0
        self.bus = Bandwidth(lambda: self.now)
        self.guest = Guest(make, Memory(RAM))  # type: ignore[arg-type]
        self.device: VirtioDevice = self.guest.device
        self.device.bandwidth = self.bus
        self.bus.join(self.device.go_on)

    def pass_time(self, turns: int = 1 << 20) -> int:
        """Until nobody waits; how often somebody was called."""
        for turn in range(turns):
            due = self.bus.deadline()
            if due is None:
                return turn
            assert due > self.now
            self.now = due
            self.bus.tick(due)
        return turns


def test_less_than_a_burst_is_moved_at_once_and_more_at_the_rate_of_the_bus() -> None:
    now = 0
    bus = Bandwidth(lambda: now)
    assert bus.left == BURST
    bus.charge(BURST + 5000)
    assert bus.left == -5000
    bus.wait()
    due = bus.deadline()
    assert due is not None
    now = due
    assert 0 < bus.left < BURST
    now += 10 * BURST * NS_PER_BYTE
    assert bus.left == BURST


def test_a_reset_gives_nothing_back() -> None:
    bus = Bandwidth(lambda: 0)
    power_up = bus.state()
    bus.charge(2 * BURST)
    bus.wait()
    bus.machine_reset(power_up)
    assert (bus.left, bus.deadline()) == (-BURST, None)


def test_a_long_text_is_printed_piece_by_piece_and_whole() -> None:
    printed = bytearray()
    board = Board(lambda memory: VirtioConsole(memory, printed.extend))
    queue = board.guest.set_up([128, 128])[1]
    text = bytes(n % 251 for n in range(5 * BURST + 77))
    board.guest.memory.write(BUFFER, text)
    queue.add((BUFFER, 1000, 0), (BUFFER + 1000, len(text) - 1000, 0))
    queue.kick()
    assert len(printed) <= BURST and not queue.used()
    board.pass_time()
    assert printed == text and queue.used() == [(0, 0)]
    assert board.now >= 4 * BURST * NS_PER_BYTE


@pytest.mark.parametrize("write", [False, True])
def test_a_long_request_to_a_disk_is_whole(tmp_path: Path, write: bool) -> None:
    image = tmp_path / "disk"
    data = bytes(n * 7 % 251 for n in range(5 * BURST))
    image.write_bytes(data[::-1] if write else bytes(512) + data)
    disk = Disk(image)
    board = Board(lambda memory: VirtioBlock(memory, disk))
    (queue,) = board.guest.set_up([8])
    memory = board.guest.memory
    memory.write(BUFFER, struct.pack("<IIQ", int(write), 0, 0 if write else 1))
    if write:
        memory.write(BUFFER + 0x1000, data)
    queue.add((BUFFER, 16, 0), (BUFFER + 0x1000, len(data), 0 if write else WRITE), (BUFFER + 0x100, 1, WRITE))
    memory.write(BUFFER + 0x100, b"\xee")
    queue.kick()
    assert not queue.used() and memory.read(BUFFER + 0x100, 1) == b"\xee"
    board.pass_time()
    assert queue.used() == [(0, 1 if write else len(data) + 1)]
    assert memory.read(BUFFER + 0x100, 1) == b"\0"
    assert (disk.read(0, len(data) // 512) if write else memory.read(BUFFER + 0x1000, len(data))) == data


def test_many_pages_given_up_in_one_request_are_given_up_in_pieces() -> None:
    told: list[list[int]] = []
    board = Board(lambda memory: VirtioBalloon(memory, told.append, told.append, told.append))
    inflate, _, _, reporting = board.guest.set_up([128] * 4)
    gfns = list(range(10_000))
    board.guest.memory.write(BUFFER, struct.pack("<10000I", *gfns))
    inflate.add((BUFFER, 40_000, 0))
    inflate.kick()
    assert max(map(len, told)) <= 1024 and not inflate.used()
    board.pass_time()
    assert [gfn for call in told for gfn in call] == gfns and len(inflate.used()) == 1
    told.clear()
    reporting.add((0x800, 0x80_0000, WRITE), (0x100_0000, 0x40_0000, WRITE))
    reporting.kick()
    board.pass_time()
    assert [gfn for call in told for gfn in call] == [*range(1, 0x800), *range(0x1000, 0x1400)]
    assert max(map(len, told)) <= 1024 and len(reporting.used()) == 1


def test_what_is_half_done_survives_in_the_state() -> None:
    printed = [bytearray(), bytearray()]
    boards = [Board(lambda memory, text=text: VirtioConsole(memory, text.extend)) for text in printed]
    queue = boards[0].guest.set_up([128, 128])[1]
    text = bytes(n % 253 for n in range(3 * BURST))
    boards[0].guest.memory.write(BUFFER, text)
    queue.add((BUFFER, len(text), 0))
    queue.kick()
    done = len(printed[0])
    assert 0 < done < len(text)
    saved = json.loads(json.dumps([boards[0].guest.mmio.state(), boards[0].bus.state()]))
    boards[1].guest.memory.data[:] = boards[0].guest.memory.data
    boards[1].guest.mmio.load_state(saved[0])
    boards[1].bus.load_state(saved[1])
    boards[1].pass_time()
    assert printed[1] == text[done:]


def test_a_reset_of_the_device_ends_what_is_half_done() -> None:
    printed = bytearray()
    board = Board(lambda memory: VirtioConsole(memory, printed.extend))
    queue = board.guest.set_up([128, 128])[1]
    queue.add((BUFFER, 4 * BURST, 0))
    queue.kick()
    done = len(printed)
    board.guest.put(0x070, 0)
    board.pass_time()
    assert len(printed) == done


def test_a_ring_that_never_ends_leaves_time_to_everybody_else() -> None:
    """The device writes its random bytes over the driver's index: there is always another chain."""
    board = Board(lambda memory: VirtioRng(memory))
    rng = board.device
    assert isinstance(rng, VirtioRng)
    (queue,) = board.guest.set_up([8])
    queue.add((queue.driver + 2, 2, WRITE))
    queue.kick()
    board.pass_time(turns=50)
    assert 1 <= rng.requests <= board.now // CHAIN_COST + BURST // CHAIN_COST


def test_fw_cfg_moves_four_gigabytes_in_time_and_refuses_a_second_request_meanwhile() -> None:
    now = 0
    bus = Bandwidth(lambda: now)
    memory = Memory(RAM)
    device = FwCfg(memory, bus)
    memory.write(0x1000, struct.pack(">IIQ", 2, 8 * BURST, 0x10_0000))
    memory.write(0x2000, struct.pack(">IIQ", 2, 4, 0x3000))
    memory.write(0x10_0000, b"\xff" * 8 * BURST)
    device.write(8, 4, int.from_bytes((0x1000).to_bytes(4, "big"), "little"))
    assert memory.read(0x1000, 4) == b"\0\0\0\2"
    device.write(8, 4, int.from_bytes((0x2000).to_bytes(4, "big"), "little"))
    assert memory.read(0x2000, 4) == b"\0\0\0\1"
    while (due := bus.deadline()) is not None:
        now = due
        bus.tick(now)
    assert memory.read(0x1000, 4) == bytes(4)
    assert memory.read(0x10_0000, 8 * BURST) == b"QEMU" + bytes(8 * BURST - 4)
    assert now >= 7 * BURST * NS_PER_BYTE


def test_the_console_keeps_the_end_of_what_was_printed() -> None:
    output = ConsoleOutput()
    heard = 0

    def listen(data: bytes) -> None:
        nonlocal heard
        heard += len(data)

    output.listen(listen)
    for number in range(80):
        output(b"%7d\n" % number + bytes(1 << 20))
    assert heard == output.total == 80 * (8 + (1 << 20))
    assert KEPT <= len(output.printed) < 2 * KEPT
    assert output.find(b"     79\n", 0) == 79 * (8 + (1 << 20))
    assert output.find(b"      1\n", 0) == -1
