"""The frames of gdb's remote protocol: ``$data#checksum``, acknowledgements, and Ctrl-C.

GDB manual, appendix E "GDB Remote Serial Protocol", E.1 "Overview", E.11 "Interrupts".
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import NamedTuple

LARGEST = 1 << 14  # bytes of a packet's data, in both directions
_INTERRUPT = 0x03
_WAIT_S = 0.2  # between two looks whether to wait on


class Lost(Exception):
    """The client has gone, or what it sends is no remote protocol."""


class Message(NamedTuple):
    """What came: a packet's data, unescaped, or a Ctrl-C."""

    data: bytes
    interrupt: bool = False


class Connection:
    """Packets over a connected socket, which it owns.

    Args:
        stopped: whether to wait no longer.
    """

    def __init__(self, connected: socket.socket, stopped: Callable[[], bool] = lambda: False) -> None:
        self._socket = connected
        self._stopped = stopped
        self._received = bytearray()
        self.acknowledges = True  # until QStartNoAckMode

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> Message:
        """Wait for the next message.

        Raises:
            Lost: there is none any more.
        """
        while True:
            message = self._next()
            if message is not None:
                return message
            self._fill()

    def interrupted(self) -> bool:
        """Whether something has come, a Ctrl-C as a rule; does not wait."""
        if self._received:
            return True
        return bool(select.select([self._socket], [], [], 0)[0])

    def send(self, data: bytes) -> None:
        """Send a packet and wait until the client has it.

        Raises:
            Lost: the client has gone.
        """
        escaped = bytearray()
        for byte in data:
            escaped += bytes([0x7D, byte ^ 0x20]) if byte in b"#$}*" else bytes([byte])
        frame = b"$%b#%02x" % (bytes(escaped), sum(escaped) & 0xFF)
        try:
            self._socket.sendall(frame)
            while self.acknowledges:
                while not self._received:
                    self._fill()
                first = self._received[0]
                if first in b"+-":
                    del self._received[0]
                if first == ord("-"):
                    self._socket.sendall(frame)
                else:
                    return
        except OSError as error:
            raise Lost(str(error)) from None

    def _fill(self) -> None:
        try:
            while not select.select([self._socket], [], [], _WAIT_S)[0]:
                if self._stopped():
                    raise Lost("the run is over")
            piece = self._socket.recv(1 << 16)
        except OSError as error:
            raise Lost(str(error)) from None
        if not piece:
            raise Lost("the client has closed the connection")
        self._received += piece

    def _next(self) -> Message | None:
        """The first message of what was received; None when it is not whole yet."""
        received = self._received
        while received:
            if received[0] == _INTERRUPT:
                del received[0]
                return Message(b"", True)
            if received[0] != ord("$"):
                del received[0]  # an acknowledgement, or noise
                continue
            end = received.find(b"#")
            if end < 0 or len(received) < end + 3:
                if len(received) > 2 * LARGEST + 4:
                    raise Lost("a packet is too long")
                return None
            body, checksum = bytes(received[1:end]), bytes(received[end + 1 : end + 3])
            del received[: end + 3]
            right = b"%02x" % (sum(body) & 0xFF) == checksum.lower()
            if self.acknowledges:
                self._answer(b"+" if right else b"-")
            if right:
                return Message(_unescaped(body))
        return None

    def _answer(self, sign: bytes) -> None:
        try:
            self._socket.sendall(sign)
        except OSError as error:
            raise Lost(str(error)) from None


def _unescaped(body: bytes) -> bytes:
    data = bytearray()
    position = 0
    while position < len(body):
        if body[position] == 0x7D and position + 1 < len(body):
            position += 1
            data.append(body[position] ^ 0x20)
        else:
            data.append(body[position])
        position += 1
    return bytes(data)
