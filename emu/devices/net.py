"""What ``--net`` says, and the network that it makes.

    user       a network of its own, with the world behind it (emu.devices.user_network)
    none       a cable that leads nowhere
    replay=F   the frames of a file again (emu.devices.replay)
    hub=NAME   the cards of a fleet's VMs that say the same name (emu.devices.hub)

Behind that, with commas: card=virtio or e1000, mac=ADDRESS, log=FILE; for the user network tftp=FOLDER, bootfile=NAME
and forward=PORT:PORT or forward=udp:PORT:PORT, repeatable, a port of the host's loopback and one of the guest, and
restrict=on, with which nothing of the guest gets out of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emu.devices.hub import HubPort
from emu.devices.network import Cable, Network
from emu.devices.pcap import PcapWriter, read_packets
from emu.devices.replay import Replay
from emu.devices.user_network import Forward, UserNetwork
from emu.errors import BadInput

OPTION = "--net"
KINDS = ("user", "none", "replay=FILE", "hub=NAME")
CARDS = ("virtio", "e1000")
MAC = bytes.fromhex("525400123456")  # QEMU's first card
ONLY_USER = ("tftp", "bootfile", "forward", "restrict")
KEYS = ("card", "mac", "log", *ONLY_USER)


@dataclass(frozen=True)
class NetPlan:
    """``--net``, understood.

    Attributes:
        kind: "user", "none", "replay" or "hub".
        replay: the file to repeat.
        hub: the name of the hub.
        card: one of CARDS.
        mac: its address, 6 bytes.
        log: the file that gets every frame.
        tftp, bootfile, forwards, restrict: as :class:`emu.devices.user_network.UserNetwork` takes them.
    """

    kind: str
    replay: str | None = None
    hub: str | None = None
    card: str = CARDS[0]
    mac: bytes = MAC
    log: str | None = None
    tftp: str | None = None
    bootfile: str | None = None
    forwards: tuple[Forward, ...] = ()
    restrict: bool = False

    def within(self, directory: Path) -> NetPlan:
        """The same, with names of files that count from ``directory``."""

        def placed(name: str | None) -> str | None:
            return None if name is None else str(directory / name)

        return replace(self, replay=placed(self.replay), log=placed(self.log), tftp=placed(self.tftp))

    @property
    def inputs(self) -> list[str]:
        """The files that it reads."""
        return [] if self.replay is None else [self.replay]


@dataclass(frozen=True)
class NetPart:
    """A card and what it is plugged into."""

    card: str
    mac: bytes
    cable: Cable
    log: PcapWriter | None

    def close(self) -> None:
        """Let go of the host's sockets and of the log."""
        self.cable.network.close()
        if self.log is not None:
            self.log.close()


def parse_net(text: str) -> NetPlan:
    """Understand a value of ``--net``.

    Raises:
        BadInput: it says what is not there.
    """
    kind, *given = text.split(",")
    found: dict[str, Any] = {"kind": kind}
    word, named, name = kind.partition("=")
    if named and word in ("replay", "hub"):
        found = {"kind": word, word: _named(word, name)}
    elif kind not in KINDS:
        raise BadInput(OPTION, f"{kind!r} is none of {', '.join(KINDS)}")
    forwards: list[Forward] = []
    for part in given:
        key, separator, value = part.partition("=")
        if key not in KEYS or not separator:
            raise BadInput(OPTION, f"{part!r}: expected one of {', '.join(f'{known}=' for known in KEYS)}")
        if key in ONLY_USER and kind != "user":
            raise BadInput(OPTION, f"{key}= is for the user network")
        if key in found:
            raise BadInput(OPTION, f"{key}= is given twice")
        if key == "forward":
            forwards.append(_forward(value))
        else:
            found[key] = _VALUES[key](value)
    return NetPlan(**found, forwards=tuple(forwards))


def make_net(plan: NetPlan) -> NetPart:
    """Make the network.

    Raises:
        BadInput: a file, a port of the host or a library cannot be had.
    """
    network: Network
    if plan.tftp is not None and not Path(plan.tftp).is_dir():
        raise BadInput(OPTION, f"tftp={plan.tftp} is no folder")
    if plan.kind == "user":
        network = UserNetwork(plan.tftp, plan.bootfile, plan.forwards, plan.restrict)
    elif plan.replay is not None:
        network = Replay(read_packets(plan.replay), plan.mac)
    elif plan.hub is not None:
        network = HubPort(plan.hub)
    else:
        network = Network()
    try:
        log = None if plan.log is None else PcapWriter(plan.log)
    except BadInput:
        network.close()
        raise
    return NetPart(plan.card, plan.mac, Cable(network, None if log is None else log.write), log)


def _forward(value: str) -> Forward:
    match = re.fullmatch(r"(?:(tcp|udp):)?([0-9]{1,5}):([0-9]{1,5})", value)
    if match is None or not all(0 < int(port) < 0x1_0000 for port in match.group(2, 3)):
        raise BadInput(OPTION, f"forward={value}: expected a port of the host and one of the guest, as forward=8080:80")
    return Forward(match[1] == "udp", int(match[2]), int(match[3]))


def _card(value: str) -> str:
    if value not in CARDS:
        raise BadInput(OPTION, f"card={value}: expected one of {', '.join(CARDS)}")
    return value


def _mac(value: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value) or int(value[:2], 16) & 1:
        raise BadInput(OPTION, f"mac={value}: expected the address of one card, such as 52:54:00:12:34:56")
    return bytes.fromhex(value.replace(":", ""))


def _switch(value: str) -> bool:
    if value not in ("on", "off"):
        raise BadInput(OPTION, f"restrict={value}: expected on or off")
    return value == "on"


def _named(key: str, value: str) -> str:
    if not value:
        raise BadInput(OPTION, f"{key}=: expected a name")
    return value


_VALUES: dict[str, Callable[[str], Any]] = {
    "card": _card,
    "mac": _mac,
    "restrict": _switch,
    "tftp": lambda value: _named("tftp", value),
    "log": lambda value: _named("log", value),
    "bootfile": lambda value: _named("bootfile", value),
}
