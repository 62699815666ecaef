"""Files of packets, written and read; scapy, where it is installed, reads ours and writes others."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from emu.devices.pcap import PcapWriter, read_packets
from emu.errors import BadInput
from tests.devices.network_guest import frame


def written(path: Path, *packets: tuple[int, bool, bytes]) -> Path:
    writer = PcapWriter(path)
    for packet in packets:
        writer.write(*packet)
    writer.close()
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    packets = [(0, True, frame()), (5_000_000_001, False, frame(payload=b"odd" * 17)), (1 << 40, True, frame())]
    assert read_packets(written(tmp_path / "log", *packets)) == packets


def test_scapy_reads_it(tmp_path: Path) -> None:
    scapy = pytest.importorskip("scapy.utils", reason="scapy is not installed")
    packets = [(1_000_000_002, True, frame()), (3_000_000_007, False, frame(payload=b"y" * 51))]
    found = scapy.rdpcap(str(written(tmp_path / "log", *packets)))
    assert [bytes(packet) for packet in found] == [data for *_, data in packets]
    assert [round(packet.time * 10**9) for packet in found] == [time for time, *_ in packets]


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_tcpdump_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "log", (1_000_000_002, True, frame()))
    shown = subprocess.run(["tcpdump", "--nano", "-tt", "-e", "-n", "-r", str(path)], capture_output=True, text=True)
    assert "1.000000002 52:55:0a:00:02:02 > 52:54:00:12:34:56, ethertype Unknown (0x88b5)" in shown.stdout


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2_C3D4, 1000), (0xA1B2_3C4D, 1)])
def test_the_older_format(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    path = tmp_path / "old"
    head = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, 1)
    one, two = (struct.pack(f"{order}4I", seconds, 3, 60, 60) + frame() for seconds in (7, 2))
    path.write_bytes(head + one + two)
    assert read_packets(path) == [(2_000_000_000 + 3 * unit, None, frame()), (7_000_000_000 + 3 * unit, None, frame())]


def test_blocks_that_nobody_needs_other_units_and_big_endian(tmp_path: Path) -> None:
    def block(kind: int, body: bytes) -> bytes:
        size = struct.pack(">I", 12 + len(body))
        return struct.pack(">I", kind) + size + body + size

    path = tmp_path / "other"
    packet = struct.pack(">5I", 0, 0, 2_500_000, 60, 60) + frame()
    path.write_bytes(
        block(0x0A0D0D0A, struct.pack(">IHHq", 0x1A2B3C4D, 1, 0, -1))
        + block(1, struct.pack(">HHI", 1, 0, 0)) + block(5, bytes(16)) + block(6, packet)
    )  # fmt: skip
    assert read_packets(path) == [(2_500_000_000, None, frame())]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "neither pcap nor pcapng"),
        (b"hello, this is text", "neither pcap nor pcapng"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 113), "its link type is 113, Ethernet is 1"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + bytes(8), "it ends in the middle of a packet"),
        (struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 0, 0, 1 << 30, 0), "a packet of 1073741824 by"),
        (b"\x0a\x0d\x0d\x0a" + struct.pack("<II", 3, 0x1A2B3C4D), "a block of 3 bytes"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=reason):
        read_packets(path)


def test_every_cut_of_a_file_is_refused_or_read(tmp_path: Path) -> None:
    whole = written(tmp_path / "log", (1, True, frame()), (2, False, frame())).read_bytes()
    path = tmp_path / "cut"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            assert len(read_packets(path)) < 2
        except BadInput as error:
            assert error.what == "--net"


def test_a_file_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        PcapWriter(tmp_path / "no" / "log")
    with pytest.raises(BadInput, match="cannot be read"):
        read_packets(tmp_path / "no")
