"""The buffer behind a data register, shared with the native plane so that REP INS and OUTS run without Python.

A drive moves sectors through a 16-bit port, hundreds of accesses each. The native plane serves them from this memory;
Python sees only the last access of a block, after which the device has to act.

At ``address``, little-endian:
    0   int64  position: offset of the next access from the data
    8   int64  end: where the block ends
    16  int64  mode: CLOSED, READING (the guest reads), WRITING (the guest writes)
    24  data, 64 KiB
While the mode fits and position + size < end, an access of 2 or 4 bytes moves data at ``position`` and advances it by
``size``. Strictly below: the access that reaches the end always goes to the device.
"""

from __future__ import annotations

import base64
import ctypes

from emu.devices.device import State, check_fields

CAPACITY = 0x10000  # bytes of data
CLOSED, READING, WRITING = range(3)  # mode, from the guest's side


class _Layout(ctypes.Structure):
    _fields_ = [
        ("position", ctypes.c_int64),
        ("end", ctypes.c_int64),
        ("mode", ctypes.c_int64),
        ("data", ctypes.c_ubyte * CAPACITY),
    ]


class PioBuffer:
    """One buffer; at most one block at a time is open.

    Attributes:
        address: host address of the layout above; stays the same.
    """

    def __init__(self) -> None:
        self._layout = _Layout()
        self.address = ctypes.addressof(self._layout)
        self._data_at = self.address + _Layout.data.offset

    @property
    def mode(self) -> int:
        """CLOSED, READING or WRITING."""
        return self._layout.mode

    def open_for_reading(self, data: bytes) -> None:
        """Begin a block that the guest reads."""
        self._open(READING, len(data))
        ctypes.memmove(self._data_at, data, len(data))

    def open_for_writing(self, size: int) -> None:
        """Begin a block of ``size`` bytes that the guest writes."""
        self._open(WRITING, size)

    def close(self) -> None:
        """No block: the native plane leaves every access to the device."""
        self._layout.mode = CLOSED
        self._layout.position = self._layout.end = 0

    def is_last(self, size: int) -> bool:
        """Whether an access of ``size`` bytes reaches the end of the block."""
        return self._layout.position + size >= self._layout.end

    def take(self, size: int) -> int:
        """The next ``size`` bytes, fewer at the end of the block, as a little-endian number. Needs mode READING."""
        size = self._advance(READING, size)
        return int.from_bytes(ctypes.string_at(self._data_at + self._layout.position - size, size), "little")

    def put(self, size: int, value: int) -> None:
        """Store the next ``size`` bytes, fewer at the end of the block. Needs mode WRITING."""
        data = value.to_bytes(size, "little")
        size = self._advance(WRITING, size)
        ctypes.memmove(self._data_at + self._layout.position - size, data, size)

    def contents(self) -> bytes:
        """The whole block."""
        return ctypes.string_at(self._data_at, self._layout.end)

    def state(self) -> State:
        """The block and how far it is moved."""
        layout = self._layout
        data = base64.b85encode(self.contents()).decode()
        return {"position": layout.position, "mode": layout.mode, "data": data}

    def load_state(self, state: State) -> None:
        """Take over what ``state`` returned. Raises BadInput when it is no such thing."""
        check_fields("PioBuffer", state, ("position", "mode", "data"))
        data = base64.b85decode(state["data"])
        self._open(state["mode"], len(data))
        ctypes.memmove(self._data_at, data, len(data))
        self._layout.position = state["position"]

    def _open(self, mode: int, size: int) -> None:
        if not 0 <= size <= CAPACITY:
            raise ValueError(f"a block of {size} bytes")
        self._layout.position = 0
        self._layout.end = size
        self._layout.mode = mode

    def _advance(self, mode: int, size: int) -> int:
        layout = self._layout
        if layout.mode != mode:
            raise ValueError(f"data moved in mode {layout.mode}")
        size = min(size, layout.end - layout.position)
        layout.position += size
        return size
