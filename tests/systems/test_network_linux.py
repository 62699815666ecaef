"""Linux's drivers of both network cards, on the user network and on a log of it."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emu.boot import packages
from emu.boot.initramfs import build_initramfs
from emu.devices.pcap import read_packets
from emu.observe.trace import EventWriter
from emu.observe.typist import Typist, parse_typing
from emu.testing import GuestUnderTest, boot
from tests.devices.test_user_network import there
from tests.systems.conftest import fetched

pytestmark = pytest.mark.skipif(not there(), reason="libslirp is not installed (Debian's libslirp0)")

LONG = pytest.mark.skipif(os.environ.get("EMU_LONG") is None, reason="takes a minute; EMU_LONG=1 runs it")


def either(card: str, mmu: str) -> list[object]:
    """Both cards in both paging architectures: this pair always, the others with EMU_LONG."""
    pairs = [(one, other) for one in ("virtio", "e1000") for other in ("shadow", "nested")]
    return [pytest.param(*pair, marks=() if pair == (card, mmu) else LONG) for pair in pairs]


MODULES = {
    "virtio": ("virtio_ring", "virtio", "virtio_mmio", "failover", "net_failover", "virtio_net"),
    "e1000": ("e1000",),
}
SET_UP = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for m in {modules}; do insmod /lib/modules/$m.ko; done
busybox cat > /tmp/dhcp <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
busybox ip addr add $ip/24 dev $interface
busybox ip route add default via $router
echo "address $ip router $router names $dns"
END
busybox chmod +x /tmp/dhcp
busybox ip link set eth0 up
busybox udhcpc -i eth0 -n -q -f -s /tmp/dhcp 2>/dev/null
"""


def start(
    card: str, script: str, tmp_path: Path, net: str, append: str = "", **options: object
) -> GuestUnderTest:
    """Linux with the card; the script runs when it has an address."""
    if card == "virtio":
        kernel = fetched(packages.kernel)
        modules = [fetched(lambda name=name: packages.kernel_modules(name)[0]) for name in MODULES[card]]  # type: ignore[misc]
    else:
        kernel, *modules = fetched(lambda: packages.full_kernel(*MODULES[card]))  # type: ignore[arg-type,misc]
    init = SET_UP.format(modules=" ".join(MODULES[card])) + script + "poweroff -f\n"
    initrd = tmp_path / "initrd"
    initrd.write_bytes(build_initramfs(fetched(packages.busybox), init, modules))
    arguments = f"console=ttyS0 quiet {append}"
    return boot(kernel, ram="256M", initrd=str(initrd), append=arguments, net=f"{net},card={card}", **options)


def finish(guest: GuestUnderTest) -> list[str]:
    """Run it to its end: what it printed."""
    assert guest.run(max_time="120s") == 0, guest.describe()
    return guest.console.replace("\r", "").splitlines()


@contextmanager
def web_server(files: Path) -> Iterator[int]:
    """A web server on the host's loopback: its port."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, directory=str(files), **options)  # type: ignore[arg-type]

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


WITHIN = """\
busybox ping -c 3 10.0.2.2 | busybox grep -o "3 packets received"
busybox tftp -g -r data -l /tmp/data 10.0.2.2
busybox md5sum < /tmp/data
busybox ifconfig eth0 | busybox grep -o "[RT]X packets:[0-9]* errors:0 dropped:0"
"""


@pytest.mark.parametrize(("card", "mmu"), either("virtio", "shadow"))
def test_two_runs_within_the_user_network_are_the_same(card: str, mmu: str, tmp_path: Path) -> None:
    """DHCP, ARP, echo and TFTP: the same output, events, virtual time and packets."""
    files = tmp_path / "files"
    files.mkdir()
    data = b"".join(number.to_bytes(4, "little") for number in range(50_000))
    (files / "data").write_bytes(data)
    runs = []
    for number in range(2):
        digest = hashlib.sha256()
        guest = start(card, WITHIN, tmp_path, f"user,tftp={files},log={tmp_path}/log{number}", mmu=mmu)
        guest.vm.events.listen(EventWriter(digest.update))
        lines = finish(guest)
        assert guest.vm.platform.remarks() == []
        now = guest.vm.now
        guest.vm.close()
        runs.append((lines, digest.hexdigest(), now, (tmp_path / f"log{number}").read_bytes()))
    lines = runs[0][0]
    assert lines[:3] == [
        "address 10.0.2.15 router 10.0.2.2 names 10.0.2.3", "3 packets received",
        f"{hashlib.md5(data).hexdigest()}  -",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[3:5]] == ["RX", "TX"]
    assert runs[0] == runs[1]
    packets = read_packets(tmp_path / "log0")
    assert sum(len(packet.data) for packet in packets if not packet.outbound) > len(data)


@pytest.mark.parametrize(("card", "mmu"), either("e1000", "nested"))
def test_the_world_outside_and_its_replay(card: str, mmu: str, tmp_path: Path) -> None:
    """A page of the host, and what the guest sends there; then the same run from its log."""
    files = tmp_path / "files"
    files.mkdir()
    page = b"".join(number.to_bytes(4, "big") for number in range(200_000))
    (files / "page").write_bytes(page)
    received = bytearray()
    with web_server(files) as port, socket.create_server(("127.0.0.1", 0)) as sink:

        def take() -> None:
            peer, _ = sink.accept()
            with peer:
                while data := peer.recv(65536):
                    received.extend(data)

        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        script = f"""\
busybox wget -q -O /tmp/page http://10.0.2.2:{port}/page
busybox md5sum < /tmp/page
busybox head -c 300000 /tmp/page | busybox nc -w 5 10.0.2.2 {sink.getsockname()[1]}
echo done
"""
        runs = []
        for number, net in enumerate(("user", f"replay={tmp_path}/log0")):
            digest = hashlib.sha256()
            guest = start(card, script, tmp_path, f"{net},log={tmp_path}/log{number}", mmu=mmu)
            guest.vm.events.listen(EventWriter(digest.update))
            lines = finish(guest)
            assert len(guest.vm.platform.remarks()) == 1 - number  # only the first depends on the world
            now = guest.vm.now
            guest.vm.close()
            runs.append((lines, digest.hexdigest(), now, (tmp_path / f"log{number}").read_bytes()))
        taker.join(timeout=20)
    assert runs[0][0][1:3] == [f"{hashlib.md5(page).hexdigest()}  -", "done"]
    assert received == page[:300_000]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("card", ["virtio", pytest.param("e1000", marks=LONG)])
def test_the_host_reaches_a_server_of_the_guest(card: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = """\
busybox head -c 100000 /bin/busybox > /tmp/file
echo listening
busybox nc -l -p 8080 < /tmp/file
"""
    guest = start(card, script, tmp_path, f"user,forward={port}:8080")
    guest.wait_for("listening", max_time="120s")
    heard = bytearray()

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            while data := peer.recv(65536):
                heard.extend(data)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    finish(guest)
    asker.join(timeout=20)
    guest.vm.close()
    assert heard == fetched(packages.busybox).read_bytes()[:100_000]


def test_the_initramfs_of_emu_image_asks_for_an_address(tmp_path: Path) -> None:
    """Its own first process: it loads the modules and leaves a shell."""
    modules = [fetched(lambda name=name: packages.kernel_modules(name)[0]) for name in MODULES["virtio"]]  # type: ignore[misc]
    initrd = tmp_path / "initrd"
    initrd.write_bytes(build_initramfs(fetched(packages.busybox), modules=modules))
    guest = boot(fetched(packages.kernel), ram="128M", initrd=str(initrd), append="console=ttyS0 quiet", net="user")
    typing = (r"ping -c 1 10.0.2.2\n@# ", r"cat /etc/resolv.conf\n@0% packet")
    typist = Typist(guest.vm, [parse_typing(text) for text in typing])
    guest.wait_for("nameserver 10.0.2.3", max_time="60s")
    assert "lease of 10.0.2.15 obtained" in guest.console and not typist.left


@LONG
@pytest.mark.parametrize(
    ("append", "controller"),
    [("acpi=off nolapic noapic", "XT-PIC"), ("acpi=off", "IO-APIC"), ("noapic", "XT-PIC"), ("", "IO-APIC")],
)
def test_the_interrupt_by_every_table_and_controller(append: str, controller: str, tmp_path: Path) -> None:
    """Without tables, by the MP table, by ACPI; the 8259s and the I/O APIC. Without ACPI nothing is switched off."""
    script = "busybox ping -c 1 10.0.2.2 | busybox grep -o '1 packets received'\ncat /proc/interrupts\necho done\n"
    guest = start("e1000", script, tmp_path, "user", append=append)
    guest.wait_for("done", max_time="120s")
    assert "1 packets received" in guest.console
    [line] = [line.split() for line in guest.console.splitlines() if line.endswith("eth0")]
    assert (line[0], line[2]) == ("11:", controller) and int(line[1]) > 2
