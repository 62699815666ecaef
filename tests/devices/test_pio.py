"""The data register's buffer: the layout that the native plane relies on, and the device's side of it."""

from __future__ import annotations

import ctypes
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.devices.bus import PortBus
from emu.devices.pio import CAPACITY, CLOSED, READING, WRITING, PioBuffer
from emu.errors import BadInput

HEADER = struct.Struct("<3q")  # position, end, mode


class NativePort:
    """What the native plane does with a data port, in Python and from the layout's description alone."""

    def __init__(self, address: int, bus: PortBus, port: int) -> None:
        self.address = address
        self.bus = bus
        self.port = port
        self.slow = 0  # accesses that the device saw

    def _position(self, mode: int, size: int) -> int | None:
        """Host address to move `size` bytes at, or None for an access that the device must see."""
        position, end, now = HEADER.unpack(ctypes.string_at(self.address, HEADER.size))
        if now != mode or position + size >= end:
            self.slow += 1
            return None
        ctypes.memmove(self.address, struct.pack("<q", position + size), 8)
        return self.address + HEADER.size + position

    def read(self, size: int) -> bytes:
        at = self._position(READING, size)
        return self.bus.read(self.port, size).to_bytes(size, "little") if at is None else ctypes.string_at(at, size)

    def write(self, data: bytes) -> None:
        at = self._position(WRITING, len(data))
        if at is None:
            self.bus.write(self.port, len(data), int.from_bytes(data, "little"))
        else:
            ctypes.memmove(at, data, len(data))


def header(buffer: PioBuffer) -> tuple[int, ...]:
    return HEADER.unpack(ctypes.string_at(buffer.address, HEADER.size))


def test_the_layout() -> None:
    buffer = PioBuffer()
    assert header(buffer) == (0, 0, CLOSED)
    buffer.open_for_reading(b"sixteen bytes...")
    assert header(buffer) == (0, 16, READING)
    assert ctypes.string_at(buffer.address + 24, 16) == b"sixteen bytes..."
    assert buffer.take(4) == int.from_bytes(b"sixt", "little")
    assert header(buffer) == (4, 16, READING)
    buffer.open_for_writing(CAPACITY)
    assert header(buffer) == (0, CAPACITY, WRITING)
    buffer.close()
    assert header(buffer) == (0, 0, CLOSED)


def test_is_last_is_what_the_native_plane_leaves() -> None:
    buffer = PioBuffer()
    buffer.open_for_reading(bytes(8))
    assert (buffer.is_last(2), buffer.is_last(4)) == (False, False)
    buffer.take(4)
    assert (buffer.is_last(2), buffer.is_last(4)) == (False, True)


def test_written_data_comes_back_whole() -> None:
    buffer = PioBuffer()
    buffer.open_for_writing(6)
    buffer.put(4, 0x44434241)
    buffer.put(2, 0x4645)
    assert buffer.contents() == b"ABCDEF"


def test_an_access_past_the_end_moves_what_is_left() -> None:
    buffer = PioBuffer()
    buffer.open_for_reading(b"abcdef")
    buffer.take(4)
    assert buffer.take(4) == int.from_bytes(b"ef", "little")
    buffer.open_for_writing(6)
    buffer.put(4, 0x31313131)
    buffer.put(4, 0x32323232)
    assert buffer.contents() == b"111122"


def test_misuse_is_a_bug() -> None:
    buffer = PioBuffer()
    with pytest.raises(ValueError):
        buffer.take(2)
    with pytest.raises(ValueError):
        buffer.open_for_writing(CAPACITY + 2)
    buffer.open_for_reading(bytes(4))
    with pytest.raises(ValueError):
        buffer.put(2, 0)


def test_state_survives_json() -> None:
    buffer, other = PioBuffer(), PioBuffer()
    buffer.open_for_reading(bytes(range(256)))
    buffer.take(4)
    other.load_state(json.loads(json.dumps(buffer.state())))
    assert header(other) == header(buffer)
    assert other.take(4) == buffer.take(4) == 0x07060504
    assert other.contents() == buffer.contents()
    with pytest.raises(BadInput):
        buffer.load_state({"position": 0})


@given(st.binary(max_size=64), st.lists(st.sampled_from([2, 4]), max_size=40))
def test_reads_of_any_widths_give_the_data_in_order(data: bytes, sizes: list[int]) -> None:
    buffer = PioBuffer()
    buffer.open_for_reading(data)
    got = b"".join(buffer.take(size).to_bytes(size, "little") for size in sizes)
    assert got[: len(data)].ljust(len(data)) == data[: len(got)].ljust(len(data))
