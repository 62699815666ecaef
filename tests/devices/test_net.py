"""What --net may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.devices import libslirp
from emu.devices.net import MAC, NetPlan, make_net, parse_net
from emu.devices.user_network import Forward
from emu.errors import BadInput


def test_values() -> None:
    assert parse_net("user") == NetPlan("user")
    assert parse_net("none,card=e1000,mac=02:00:00:00:00:aB") == NetPlan(
        "none", card="e1000", mac=bytes.fromhex("0200000000ab")
    )
    assert parse_net("replay=a.pcap,log=b.pcap") == NetPlan("replay", replay="a.pcap", log="b.pcap")
    forwards = (Forward(False, 8080, 80), Forward(True, 53, 5353))
    plan = parse_net("user,forward=8080:80,forward=udp:53:5353,tftp=.,bootfile=x,restrict=on")
    assert plan == NetPlan("user", tftp=".", bootfile="x", forwards=forwards, restrict=True)
    assert parse_net("hub=lan") == NetPlan("hub", hub="lan")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "'' is none of user, none, replay=FILE, hub=NAME"),
        ("tap", "'tap' is none of"),
        ("replay=", "replay=: expected a name"),
        ("user,card=ne2000", "card=ne2000: expected one of virtio, e1000"),
        ("user,e1000", "'e1000': expected one of card=, mac=, log="),
        ("user,mac=01:00:00:00:00:00", "expected the address of one card"),
        ("user,mac=1:2:3:4:5:6", "expected the address of one card"),
        ("user,forward=80", "expected a port of the host and one of the guest"),
        ("user,forward=80:65536", "expected a port of the host and one of the guest"),
        ("user,forward=0:80", "expected a port of the host and one of the guest"),
        ("user,log=", "log=: expected a name"),
        ("user,log=a,log=b", "log= is given twice"),
        ("user,restrict=1", "restrict=1: expected on or off"),
        ("none,restrict=on", "restrict= is for the user network"),
        ("none,tftp=.", "tftp= is for the user network"),
        ("none,forward=80:80", "forward= is for the user network"),
    ],
)
def test_what_is_wrong_is_told(value: str, reason: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_net(value)
    assert caught.value.what == "--net" and reason in caught.value.reason


def test_a_cable_that_leads_nowhere_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libslirp, "LIBRARY", "libnothing.so.0")
    part = make_net(parse_net("none"))
    assert (part.card, part.mac, part.cable.connected) == ("virtio", MAC, False)
    part.close()
    with pytest.raises(BadInput, match=r"apt-get install libslirp0"):
        make_net(parse_net("user"))


def test_a_folder_that_is_not_there_is_told() -> None:
    with pytest.raises(BadInput, match="tftp=/no/such/folder is no folder"):
        make_net(parse_net("user,tftp=/no/such/folder"))


def test_names_count_from_a_folder() -> None:
    plan = parse_net("replay=a,log=/tmp/b").within(Path("/x"))
    assert (plan.replay, plan.log, plan.tftp) == ("/x/a", "/tmp/b", None)


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        make_net(parse_net(f"none,log={tmp_path}/no/log"))
