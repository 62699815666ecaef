"""The remote protocol, spoken by hand: packets, registers, memory, breakpoints, and what makes no sense."""

from __future__ import annotations

import socket
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.debug.gdb_packets import LARGEST, Connection, Lost
from emu.debug.gdb_server import GdbServer
from emu.session import boot_vm

WAIT_S = 60


def frame(data: bytes) -> bytes:
    return b"$%b#%02x" % (data, sum(data) & 0xFF)


class Client:
    """A client without acknowledgements, and the server behind it in a thread."""

    def __init__(self, guest: str = "long64", **options: object) -> None:
        self.vm = boot_vm(guest, **options)
        self.server = GdbServer(self.vm)
        ours, theirs = socket.socketpair()
        self.socket = ours
        self.left: list[tuple[bool, bool]] = []
        self._thread = threading.Thread(target=lambda: self.left.append(self.server.serve(theirs)), daemon=True)
        self._thread.start()
        self.connection = Connection(ours)
        assert self.ask(b"QStartNoAckMode") == b"OK"
        ours.sendall(b"+")
        self.connection.acknowledges = False

    def ask(self, data: bytes) -> bytes:
        self.socket.sendall(frame(data))
        while (answer := self.connection.receive().data).startswith(b"O") and answer != b"OK":
            pass  # what gdb prints
        return answer

    def close(self) -> None:
        self.socket.close()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        self.vm.close()

    def register(self, name: str) -> int:
        names = [one.name for one in self.server._registers]
        return int.from_bytes(bytes.fromhex(self.ask(b"p%x" % names.index(name)).decode()), "little")


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


# --- packets ----------------------------------------------------------------------------------------------------


def pair() -> tuple[socket.socket, Connection]:
    ours, theirs = socket.socketpair()
    return ours, Connection(theirs)


def test_a_packet_is_acknowledged_and_unescaped() -> None:
    ours, connection = pair()
    ours.sendall(b"+junk" + frame(b"X0,1:}\x03"))
    assert connection.receive().data == b"X0,1:#"
    assert ours.recv(10) == b"+"


def test_a_wrong_checksum_is_asked_for_again() -> None:
    ours, connection = pair()
    ours.sendall(b"$g#00" + frame(b"?"))
    assert connection.receive().data == b"?"
    assert ours.recv(10) == b"-+"


def test_what_is_sent_is_escaped_and_sent_again_when_it_was_damaged() -> None:
    ours, connection = pair()
    ours.sendall(b"-+")
    connection.send(b"a}b$")
    assert ours.recv(100) == frame(b"a}\x5db}\x04") * 2


def test_ctrl_c_comes_between_packets() -> None:
    ours, connection = pair()
    assert not connection.interrupted()
    ours.sendall(b"\x03")
    assert connection.interrupted() and connection.receive().interrupt


@pytest.mark.parametrize("sent", [b"", b"$" + b"0" * (3 * LARGEST)])
def test_a_client_that_goes_or_never_ends_is_lost(sent: bytes) -> None:
    ours, connection = pair()
    ours.sendall(sent)
    ours.close()
    with pytest.raises(Lost):
        connection.receive()


# --- looking and changing ---------------------------------------------------------------------------------------


def test_the_description_lists_the_registers_that_g_sends(client: Client) -> None:
    answer = client.ask(b"qXfer:features:read:target.xml:0,3fff")
    assert answer[:1] == b"l"
    tree = ElementTree.fromstring(answer[1:].decode().replace('<!DOCTYPE target SYSTEM "gdb-target.dtd">', ""))
    sizes = [int(one.attrib["bitsize"]) // 8 for one in tree.iter("reg")]
    assert len(client.ask(b"g")) == 2 * sum(sizes)
    assert tree.findtext("architecture") == "i8086"  # it starts in real mode


def test_a_description_comes_in_pieces(client: Client) -> None:
    whole = client.ask(b"qXfer:features:read:target.xml:0,3fff")[1:]
    pieces, at = b"", 0
    while True:
        answer = client.ask(b"qXfer:features:read:target.xml:%x,100" % at)
        pieces, at = pieces + answer[1:], at + len(answer) - 1
        if answer[:1] == b"l":
            break
    assert pieces == whole


def test_registers_are_written(client: Client) -> None:
    names = [one.name for one in client.server._registers]
    assert client.ask(b"P%x=78563412" % names.index("ebx")) == b"OK"
    assert client.vm.cpu.rbx == 0x12345678 and client.register("ebx") == 0x12345678
    assert client.ask(b"P%x=00000000" % names.index("cr0")) == b"E16"
    assert client.ask(b"Pffff=00") == b"E16"
    everything = client.ask(b"g")
    assert client.ask(b"G" + everything) == b"OK" and client.ask(b"g") == everything


def test_memory_is_read_and_written(client: Client) -> None:
    at = client.vm.cpu.pc
    before = bytes.fromhex(client.ask(b"m%x,8" % at).decode())
    assert before == client.vm.memory.peek(at, 8)
    assert client.ask(b"M%x,2:cd03" % at) == b"OK" and client.ask(b"X%x,2:}\x5d\x90" % (at + 2)) == b"OK"
    assert client.ask(b"m%x,4" % at) == b"cd037d90"
    assert client.ask(b"M%x,4:00" % at) == b"E16"
    assert client.ask(b"m,") == b"E16"


def test_what_is_not_mapped_is_an_error() -> None:
    made = Client("paging32")
    stop = b""
    while made.vm.cpu.cr0 >> 31 == 0 and not stop.startswith(b"W"):
        stop = made.ask(b"vCont;s")
    assert made.ask(b"mfedcb000,4") == b"E14" and made.ask(b"Mfedcb000,1:00") == b"E14"
    assert made.ask(b"qRcmd," + b"physical on".hex().encode()) != b""
    assert made.ask(b"m0,1") != b"E14"
    made.close()


def test_monitor_looks_and_does_not_run(client: Client) -> None:
    def monitor(line: str) -> str:
        return bytes.fromhex(client.ask(b"qRcmd," + line.encode().hex().encode()).decode()).decode()

    assert "cr0 00000010" in monitor("r")
    assert "gdb's own commands" in monitor("c") and client.vm.now == 0
    assert "no such command" in monitor("nonsense")


# --- running ----------------------------------------------------------------------------------------------------


def test_a_breakpoint_a_step_and_the_end(client: Client) -> None:
    first = client.vm.cpu.pc
    assert client.ask(b"vCont;s:1") == b"T05thread:1;"
    second = client.vm.cpu.pc
    assert second != first
    for _ in range(20):
        client.ask(b"vCont;s:1")
    later = client.vm.cpu.pc
    assert client.ask(b"Z0,%x,1" % later) == b"OK" and client.ask(b"z0,%x,1" % later) == b"OK"
    assert client.ask(b"vCont;c") == b"W01"
    assert client.ask(b"?") == b"W01"


def test_ctrl_c_stops_a_guest_that_runs_for_ever(tmp_path: object) -> None:
    made = Client("hello")
    at = made.vm.cpu.pc
    assert made.ask(b"M%x,2:ebfe" % at) == b"OK"  # jmp .
    made.socket.sendall(frame(b"vCont;c"))
    made.socket.sendall(b"\x03")
    assert made.connection.receive().data == b"T02thread:1;"
    assert made.vm.cpu.pc == at
    made.close()


def test_processors_are_threads() -> None:
    made = Client("smp", cpus=3)
    assert made.ask(b"qfThreadInfo") == b"m1,2,3"
    assert bytes.fromhex(made.ask(b"qThreadExtraInfo,2").decode()) == b"CPU 1, waiting"
    assert made.ask(b"T3") == b"OK" and made.ask(b"T4") == b"E16"
    assert made.ask(b"Hg2") == b"OK" and made.register("cs") == made.vm.processors[1].registers.cs.selector
    made.close()


def test_a_crash_can_be_looked_at() -> None:
    made = Client("hello")
    made.ask(b"M%x,9:0f011e0050cd03f4f4" % made.vm.cpu.pc)  # lidt of an empty table, int 3
    assert made.ask(b"vCont;c").startswith(b"T0bthread:1;")
    assert made.register("eip") and made.server.outcome is not None
    assert made.server.outcome.status == 134
    made.close()


@pytest.mark.parametrize(("packet", "left"), [(b"D", (True, False)), (b"k", (False, True)), (b"", (False, False))])
def test_how_a_client_leaves(packet: bytes, left: tuple[bool, bool]) -> None:
    made = Client("hello")
    if packet:
        made.socket.sendall(frame(packet))
        made._thread.join(WAIT_S)
    made.close()
    assert made.left == [left]


# --- clients that make no sense -----------------------------------------------------------------------------------

words = st.sampled_from(
    "qSupported qXfer:features:read: target.xml : , ; vCont;s vCont;r vCont;x g G p P m M X Z0, z1, Z9, H T qRcmd, "
    "qThreadExtraInfo, -1 0 ffffffffffffffffffffff 8000 = 1 zz ä } * $".split()
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(words, min_size=1, max_size=6).map("".join), min_size=1, max_size=20))
def test_nonsense_gets_an_answer(packets: list[str]) -> None:
    made = Client("hello")
    for text in packets:
        data = text.encode("utf-8")
        escaped = b"".join(bytes([0x7D, byte ^ 0x20]) if byte in b"#$}*" else bytes([byte]) for byte in data)
        made.ask(escaped)
    assert made.ask(b"?")[:1] in (b"T", b"W")
    made.close()
