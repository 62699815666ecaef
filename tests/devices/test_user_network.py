"""libslirp as a network: what it answers by itself, the same way each time, and the host's sockets behind it."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emu.devices import libslirp
from emu.devices.network import Cable
from emu.devices.router_advertisement import without_name_servers
from emu.devices.user_network import LATE_NS, Forward, UserNetwork
from emu.errors import BadInput
from tests.devices.network_guest import BROADCAST, MAC, OTHER, Taker, frame, ip, sum16, udp

ARP, IP = 0x0806, 0x0800
ICMP, UDP, TCP = 1, 17, 6


def there() -> bool:
    try:
        ctypes.CDLL(libslirp.LIBRARY)
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not there(), reason="libslirp is not installed (Debian's libslirp0)")


class Board:
    """A cable with nobody but the test at its end."""

    def __init__(self, **options: object) -> None:
        self.network = UserNetwork(**options)  # type: ignore[arg-type]
        self.cable = Cable(self.network)
        self.card = Taker(self.cable)
        self.now = 0

    def send(self, data: bytes) -> None:
        self.cable.send(data, self.now)

    def run(self, until: int) -> list[bytes]:
        """Let time pass: what has come meanwhile."""
        before = len(self.card.taken)
        while (due := self.cable.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self.cable.tick(self.now)
        self.now = until
        return [data for _, data in self.card.taken[before:]]

    def ask(self, data: bytes, wait_ns: int = 1_000_000) -> bytes:
        """The one answer to a frame."""
        self.send(data)
        [answer] = self.run(self.now + wait_ns)
        return answer


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.network.close()


def arp_request(target: str = "10.0.2.2") -> bytes:
    addresses = [bytes(map(int, text.split("."))) for text in ("10.0.2.15", target)]
    payload = struct.pack(">HHBBH", 1, IP, 6, 4, 1) + MAC + addresses[0] + bytes(6) + addresses[1]
    return frame(BROADCAST, MAC, payload, ARP)


def dhcp(kind: int) -> bytes:
    options = b"\x63\x82\x53\x63" + bytes((53, 1, kind)) + (b"\x32\4\x0a\0\2\x0f" if kind == 3 else b"") + b"\xff"
    body = struct.pack(">BBBBIHH", 1, 1, 6, 0, 0x1234, 0, 0) + bytes(16) + MAC.ljust(16, b"\0") + bytes(192) + options
    return frame(BROADCAST, MAC, ip(udp(body.ljust(300, b"\0"), 68, 67), UDP, "0.0.0.0", "255.255.255.255"), IP)


def icmp(sequence: int) -> bytes:
    body = struct.pack(">BBHHH", 8, 0, 0, 77, sequence) + b"ping" * 8
    return frame(OTHER, MAC, ip(body[:2] + sum16(body).to_bytes(2, "big") + body[4:], ICMP), IP)


def test_arp_dhcp_and_echo(board: Board) -> None:
    answer = board.ask(arp_request())
    assert answer[:14] == MAC + OTHER + b"\x08\x06" and answer[20:32] == b"\0\2" + OTHER + b"\x0a\0\2\2"
    offer = board.ask(dhcp(1))
    assert offer[42 + 16 : 42 + 20] == b"\x0a\0\2\x0f" and b"\x35\1\2" in offer  # 10.0.2.15, an offer
    assert b"\x35\1\5" in board.ask(dhcp(3))  # acknowledged
    echo = board.ask(icmp(5))
    assert echo[34] == 0 and echo[-32:] == b"ping" * 8
    assert board.network.remarks() == []
    assert board.cable.deadline() is None  # nothing keeps a guest awake


def solicitation() -> bytes:
    """A host without an address asks for routers."""
    body = struct.pack(">BBHI", 133, 0, 0, 0) + b"\1\1" + MAC
    source, routers = bytes.fromhex("fe80000000000000505400fffe123456"), bytes.fromhex("ff02" + "00" * 13 + "02")
    check = sum16(source + routers + struct.pack(">II", len(body), 58) + body)
    packet = struct.pack(">IHBB", 6 << 28, len(body), 58, 255) + source + routers + body[:2] + check.to_bytes(2, "big")
    return frame(bytes.fromhex("333300000002"), MAC, packet + body[4:], 0x86DD)


def test_the_router_is_announced_to_who_asks_and_without_the_host_s_name_server(board: Board) -> None:
    answer = board.ask(solicitation())
    assert answer[54] == 134 and b"\xfe\xc0" in answer
    assert len(answer) == 70 + 8 + 32  # the router's address on the cable, the prefix of the network
    body = answer[54:]
    assert sum16(answer[22:54] + struct.pack(">II", len(body), 58) + body) == 0
    assert board.run(10**12) == [] and board.cable.deadline() is None


def test_a_name_server_is_taken_out_of_an_announcement(board: Board) -> None:
    answer = board.ask(solicitation())
    server = b"\x19\3" + bytes(22)
    more = answer[:18] + (len(answer) - 54 + 24).to_bytes(2, "big") + answer[20:] + server
    assert without_name_servers(more) == answer
    for data in (answer, frame(), frame(payload=b"", kind=0x86DD)):
        assert without_name_servers(data) == data


def test_two_runs_are_the_same() -> None:
    runs = []
    for _ in range(2):
        board = Board()
        for data in (dhcp(1), dhcp(3), arp_request(), icmp(1), icmp(2), solicitation(), arp_request("10.0.2.3")):
            board.send(data)
            board.run(board.now + 3_000_000)
        board.network.close()
        runs.append(board.card.taken)
    assert runs[0] == runs[1] and len(runs[0]) == 7


def test_tftp_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"from a file")
    board = Board(tftp=str(tmp_path), bootfile="hello")
    assert b"hello\0" in board.ask(dhcp(1))[42 + 108 : 42 + 236]
    board.ask(arp_request())
    data = board.ask(frame(OTHER, MAC, ip(udp(b"\0\1hello\0octet\0", 2000, 69), UDP), IP))
    assert data[42:] == b"\0\3\0\1from a file"
    for name in (b"../hello", b"/etc/passwd", b"other"):
        error = board.ask(frame(OTHER, MAC, ip(udp(b"\0\1" + name + b"\0octet\0", 2001, 69), UDP), IP))
        assert error[42:44] == b"\0\5"
    assert board.network.remarks() == []
    board.network.close()


def tcp(sequence: int, acknowledged: int, flags: int, port: int, data: bytes = b"", source: int = 3000) -> bytes:
    head = struct.pack(">HHIIBBHHH", source, port, sequence, acknowledged, 0x50, flags, 8192, 0, 0)
    pseudo = b"\x0a\0\2\x0f\x0a\0\2\2\0\6" + (len(head) + len(data)).to_bytes(2, "big")
    check = sum16(pseudo + head + data)
    return frame(OTHER, MAC, ip(head[:16] + check.to_bytes(2, "big") + head[18:] + data, TCP), IP)


def test_the_host_is_behind_the_gateway_and_such_a_run_says_so(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(peer.recv(100).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        board.ask(arp_request())
        assert board.network.remarks() == []
        board.send(tcp(100, 0, 0x02, port))
        heard = wait_for(board, lambda frames: frames[-1:])
        assert heard[0][47] == 0x12  # SYN, ACK
        sequence = int.from_bytes(heard[0][38:42], "big")
        board.send(tcp(101, sequence + 1, 0x18, port, b"hello"))
        heard = wait_for(board, lambda frames: [f for f in frames if b"HELLO" in f])
        thread.join()
    assert heard
    assert ["log=FILE" in remark for remark in board.network.remarks()] == [True]


def wait_for(board: Board, wanted: object) -> list[bytes]:
    frames: list[bytes] = []
    end = time.monotonic() + 20
    while time.monotonic() < end:
        frames += board.run(board.now + 1_000_000)
        found = wanted(frames)  # type: ignore[operator]
        if found:
            return found
    raise AssertionError("nothing came")


def test_a_port_that_is_closed_and_a_ping_of_others_depend_on_the_host_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    far = frame(OTHER, MAC, ip(icmp(1)[34:], ICMP, destination="127.1.2.3"), IP)
    for data in (tcp(100, 0, 0x02, port), far):
        board = Board()
        board.ask(arp_request())
        board.send(data)
        board.run(board.now + 1_000_000)
        assert len(board.network.remarks()) == 1
        board.network.close()


def test_nothing_gets_out_of_a_restricted_network(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"from a file")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        board = Board(restrict=True, tftp=str(tmp_path))
        assert b"\x35\1\2" in board.ask(dhcp(1))
        board.ask(arp_request())
        assert board.ask(icmp(1))[34] == 0
        board.send(tcp(100, 0, 0x02, server.getsockname()[1]))
        board.send(frame(OTHER, MAC, ip(udp(b"hello", 2000, server.getsockname()[1]), UDP), IP))
        board.send(frame(OTHER, MAC, ip(icmp(1)[34:], ICMP, destination="127.1.2.3"), IP))
        board.run(board.now + 10_000_000)
        with pytest.raises(TimeoutError):
            server.accept()
    assert board.network.remarks() == []
    data = board.ask(frame(OTHER, MAC, ip(udp(b"\0\1hello\0octet\0", 2000, 69), UDP), IP))
    assert data[42:] == b"\0\3\0\1from a file"
    board.network.close()


def test_virtual_time_waits_for_the_wall_while_a_socket_waits(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        board.ask(arp_request())
        begin = time.monotonic()
        board.run(board.now + 10**12)
        assert time.monotonic() - begin < 1  # without a socket a thousand seconds take no time
        port = server.getsockname()[1]
        board.send(tcp(100, 0, 0x02, port))
        [answer] = wait_for(board, lambda frames: frames[-1:])
        board.send(tcp(101, int.from_bytes(answer[38:42], "big") + 1, 0x10, port))
        begin = time.monotonic()
        board.run(board.now + 300_000_000)
        assert time.monotonic() - begin > 0.2
        begin = time.monotonic()
        due = board.cable.deadline()
        assert due is not None
        board.cable.tick(due + 10**12)
        assert time.monotonic() - begin < 0.2 + LATE_NS / 1e9  # one look never waits long: signals are heard


def test_a_forward_leads_to_the_guest() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    board = Board(forwards=[Forward(False, port, 80)])
    board.ask(dhcp(1)), board.ask(dhcp(3)), board.ask(arp_request())
    assert board.network.remarks() == []
    with socket.create_connection(("127.0.0.1", port)):
        [syn] = wait_for(board, lambda frames: [f for f in frames if len(f) > 47 and f[47] == 0x02])
    assert int.from_bytes(syn[36:38], "big") == 80
    assert board.network.remarks() != []
    board.network.close()


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"TCP port {port} of the host's loopback cannot be had"):
            UserNetwork(forwards=[Forward(False, port, 80)])


def test_random_frames_do_no_harm(board: Board) -> None:
    draw = random.Random(5)
    for number in range(3000):
        payload = draw.randbytes(draw.choice((0, 1, 20, 46, 200, 1500, 9000)))
        if number % 3 == 0:
            payload = ip(payload, draw.choice((ICMP, UDP, 2, 50)), destination=draw.choice(("10.0.2.2", "10.0.2.99")))
        board.send(frame(draw.choice((OTHER, BROADCAST)), MAC, payload, draw.choice((IP, ARP, 0x86DD, 0))))
    board.run(board.now + 10_000_000)
    board.send(arp_request())
    assert b"\0\2" in [answer[20:22] for answer in board.run(board.now + 1_000_000)]
