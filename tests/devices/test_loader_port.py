"""The port by which the BIOS has a kernel loaded again."""

from __future__ import annotations

from emu.devices.loader_port import ABSENT, PRESENT, LoaderPort


def test_it_loads_only_what_there_is() -> None:
    loads: list[bool] = []
    port = LoaderPort(lambda: loads.append(True))
    assert port.read(0, 1) == ABSENT
    port.write(0, 1, 0)
    assert not loads
    port.present = True
    assert port.read(0, 1) == PRESENT
    port.write(0, 1, 0)
    assert loads == [True]
