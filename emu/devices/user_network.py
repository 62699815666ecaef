"""A user network: the guest gets an address, a gateway and the world behind it, and the host needs no rights for that.

libslirp (emu.devices.libslirp), which QEMU uses as well, is all of it: ARP, DHCP, BOOTP, TFTP, ICMP echo of the
gateway, and the host's sockets for what the guest sends to others. The network has QEMU's addresses:

    10.0.2.2  the gateway, which stands for the host: its ports are those of the host's loopback
    10.0.2.3  the name server: questions go to the host's own
    10.0.2.15 what the first DHCP client gets

With IPv6 the same is fec0::2 and fec0::3, in the network fec0::/64. The router is announced to who asks and at no other
time, as libslirp would draw that, and without a name server, as it knows one only on some hosts.

Its clock is virtual time, and as long as nothing is beyond the gateway every frame is the same in every run. A socket
of the host is the end of that: ``remarks`` says so. While there is one, virtual time goes no faster than the wall
clock, or a guest that sleeps would never see an answer in time; each look at the sockets waits for a few ms at the
most.
"""

from __future__ import annotations

import ctypes
import ipaddress
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from emu.devices import libslirp
from emu.devices.network import Network
from emu.devices.router_advertisement import without_name_servers
from emu.errors import BadInput
from emu.units import NS_PER_SECOND

NETWORK, MASK, HOST, NAMES, FIRST_CLIENT = "10.0.2.0", "255.255.255.0", "10.0.2.2", "10.0.2.3", "10.0.2.15"
NETWORK6, HOST6, NAMES6 = "fec0::", "fec0::2", "fec0::3"
WITHIN = ipaddress.IPv4Network(f"{NETWORK}/{MASK}")
MTU = 1500
SOON_NS, LATE_NS = 250_000, 8_000_000  # of virtual time between two looks at the host's sockets: busy, idle
NOTHING_MS = 1000  # what libslirp wants to sleep when it has nothing to do by itself
EVENTS = (
    (libslirp.POLL_IN, select.POLLIN), (libslirp.POLL_OUT, select.POLLOUT), (libslirp.POLL_PRI, select.POLLPRI),
    (libslirp.POLL_ERR, select.POLLERR), (libslirp.POLL_HUP, select.POLLHUP),
)  # fmt: skip


class Forward(NamedTuple):
    """A port of the host's loopback that leads to one of the guest."""

    udp: bool
    host_port: int
    guest_port: int


class UserNetwork(Network):
    """The network of one VM.

    Args:
        tftp: the folder whose files are to be had by TFTP.
        bootfile: the one that DHCP names.
        forwards: ports of the host.
        restrict: the guest reaches nothing beyond the gateway, nor the host by it; forwards lead to it all the same.

    Raises:
        BadInput: libslirp is missing, or a port of the host is taken.
    """

    connected = True

    def __init__(
        self, tftp: str | None = None, bootfile: str | None = None, forwards: Sequence[Forward] = (),
        restrict: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self._library = libslirp.load()
        self._now = 0  # virtual time in ns, for libslirp
        self._error: BaseException | None = None
        self._descriptors: list[tuple[int, int]] = []  # of the host's sockets, with the events that are wanted
        self._events: dict[int, int] = {}
        self._outside = False  # something depends on the host
        self._restrict = restrict
        self._due: int | None = None
        self._pause = SOON_NS  # until the next look
        self._sleep_ms = NOTHING_MS  # that libslirp wants until then
        self._last = (0, 0.0)  # virtual and wall time of the last look at the sockets
        config = libslirp.Config(
            version=libslirp.CONFIG_VERSION, restricted=restrict, in_enabled=True, vnetwork=libslirp.address(NETWORK),
            vnetmask=libslirp.address(MASK), vhost=libslirp.address(HOST), vnameserver=libslirp.address(NAMES),
            vdhcp_start=libslirp.address(FIRST_CLIENT), if_mtu=MTU, if_mru=MTU,
            in6_enabled=True, vprefix_addr6=libslirp.address6(NETWORK6), vprefix_len=64,
            vhost6=libslirp.address6(HOST6), vnameserver6=libslirp.address6(NAMES6),
            tftp_path=None if tftp is None else tftp.encode(), bootfile=None if bootfile is None else bootfile.encode(),
        )  # fmt: skip
        self._callbacks = self._make_callbacks()
        self._add_poll = libslirp.AddPoll(self._guarded(self._want, -1))
        self._get_events = libslirp.GetEvents(self._guarded(lambda index, _: self._events.get(index, 0), 0))
        self._slirp: Any = self._library.slirp_new(ctypes.byref(config), ctypes.byref(self._callbacks), None)
        if not self._slirp:
            raise BadInput("--net", "libslirp makes no network of this")
        for forward in forwards:
            self._forward(forward)
        self._look()
        self._plan(soon=True)
        self._outside = False  # ports that are open do not matter before somebody comes

    def send(self, frame: bytes, now_ns: int) -> None:
        self._now = now_ns
        self._look()  # libslirp's clock, which all networks of a process share, is set by that
        self._outside |= not self._restrict and _goes_far(frame)
        self._library.slirp_input(self._slirp, frame, len(frame))
        self._look()
        self._plan(soon=True)

    def deadline(self) -> int | None:
        return self._due

    def tick(self, now_ns: int) -> None:
        if self._due is None or now_ns < self._due:
            return
        self._now = now_ns
        found = self._look(self._wait(now_ns) if self._descriptors else ())
        self._plan(soon=found)

    def remarks(self) -> list[str]:
        if not self._outside:
            return []
        return [
            "--net user: what came from outside makes this run another one each time; log=FILE keeps its frames, and "
            "--net replay=FILE repeats them"
        ]

    def close(self) -> None:
        if self._slirp:
            self._library.slirp_cleanup(self._slirp)
            self._slirp = None
            self._due = None

    # --- libslirp's view ---

    def _make_callbacks(self) -> libslirp.Callbacks:
        """What libslirp calls; none may raise through it. Its only timer, of the router's announcements, never ends."""
        callbacks = libslirp.Callbacks()
        callbacks.send_packet = libslirp.SendPacket(self._guarded(self._receive, -1))
        callbacks.guest_error = libslirp.GuestError(lambda message, _: None)
        callbacks.clock_get_ns = libslirp.ClockGet(lambda _: self._now)
        callbacks.timer_new = libslirp.TimerNew(lambda call, argument, _: 1)
        callbacks.timer_free = libslirp.TimerFree(lambda timer, _: None)
        callbacks.timer_mod = libslirp.TimerModify(lambda timer, due, _: None)
        callbacks.register_poll_fd = libslirp.PollDescriptor(self._opened)
        callbacks.unregister_poll_fd = libslirp.PollDescriptor(lambda descriptor, _: None)
        callbacks.notify = libslirp.Notify(lambda _: None)
        return callbacks

    def _guarded(self, function: Callable[..., int], failed: int) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            try:
                return function(*arguments)
            except BaseException as error:  # raised again when libslirp has returned
                self._error = self._error or error
                return failed

        return call

    def _receive(self, data: int, size: int, _: Any) -> int:
        self.deliver(without_name_servers(ctypes.string_at(data, size)), self._now)
        return size

    def _opened(self, descriptor: int, _: Any) -> None:
        """A socket of the host has been made."""
        self._outside = True

    def _want(self, descriptor: int, events: int, _: Any) -> int:
        self._descriptors.append((descriptor, events))
        return len(self._descriptors) - 1

    # --- the host's sockets ---

    def _forward(self, forward: Forward) -> None:
        loopback, guest = libslirp.address("127.0.0.1"), libslirp.address(FIRST_CLIENT)
        if self._library.slirp_add_hostfwd(
            self._slirp, int(forward.udp), loopback, forward.host_port, guest, forward.guest_port
        ):
            self.close()
            kind = "UDP" if forward.udp else "TCP"
            raise BadInput("--net", f"{kind} port {forward.host_port} of the host's loopback cannot be had")

    def _look(self, ready: Sequence[tuple[int, int]] = ()) -> bool:
        """Let libslirp work on what is due, and on the sockets that are ``ready``; whether something has come."""
        self._events = {}
        for descriptor, happened in ready:
            events = sum(ours for ours, hosts in EVENTS if happened & hosts)
            for index, (wanted, _) in enumerate(self._descriptors):
                if wanted == descriptor:
                    self._events[index] = events
        found = bool(self._events)
        self._library.slirp_pollfds_poll(self._slirp, 0, self._get_events, None)
        self._events, self._descriptors = {}, []
        timeout = ctypes.c_uint32(libslirp.FOREVER)
        self._library.slirp_pollfds_fill(self._slirp, ctypes.byref(timeout), self._add_poll, None)
        self._sleep_ms = timeout.value
        self._outside |= found
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return found

    def _plan(self, soon: bool) -> None:
        """When the next look is due."""
        if self._descriptors:
            if self._due is None:
                self._last = (self._now, time.monotonic())
            self._pause = SOON_NS if soon else min(2 * self._pause, LATE_NS)
            later = self._now + self._pause
            self._due = later if self._due is None or self._due <= self._now else min(self._due, later)
        else:
            self._due = self._now + self._sleep_ms * 1_000_000 if self._sleep_ms < NOTHING_MS else None

    def _wait(self, now_ns: int) -> list[tuple[int, int]]:
        """The host's sockets at which something has happened, at the latest when the wall clock has caught up."""
        poll = select.poll()
        for descriptor, events in self._descriptors:
            poll.register(descriptor, sum(hosts for ours, hosts in EVENTS if events & ours))
        virtual, wall = self._last
        ahead = (now_ns - virtual) / NS_PER_SECOND - (time.monotonic() - wall)
        ready = poll.poll(min(max(ahead, 0.0), LATE_NS / NS_PER_SECOND) * 1000)
        self._last = (now_ns, time.monotonic())
        return ready


def _goes_far(frame: bytes) -> bool:
    """Whether a frame is ICMP for others than this network; hosts differ in whether one may send that."""
    if frame[12:14] != b"\x08\x00" or frame[23:24] != b"\x01":
        return False
    return ipaddress.IPv4Address(frame[30:34].ljust(4, b"\0")) not in WITHIN
