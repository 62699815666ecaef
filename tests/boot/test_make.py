"""The guest that is made of what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.boot.detect import detect
from emu.boot.make import make_guest
from emu.errors import BadInput

RAM = 1 << 20


def test_a_source_is_assembled_for_its_load_address_and_finds_the_includes(tmp_path: Path) -> None:
    source = b'.code16\n jmp start\n.include "platform.inc"\nstart:\n mov ax, PORT_EXIT\n hlt\n'
    path = tmp_path / "own.s"
    path.write_bytes(source)
    guest = make_guest(detect(path), RAM, load=0x2000)
    assert guest.name == "own"
    assert b"\xb8\xf4\x00\xf4" in guest.image.page(2)


def test_firmware_cannot_be_moved() -> None:
    with pytest.raises(BadInput, match="--load"):
        make_guest(detect("hello", 0x1000), RAM, load=0x1000)


@pytest.mark.parametrize(("data", "name"), [(b"\xf4", "kernel.bin"), (bytes(510) + b"\x55\xaa", "disk.img")])
def test_only_kernels_take_an_initrd(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadInput, match="--initrd"):
        make_guest(detect(path), RAM, initrd="initrd.img")


def test_tables_list_several_processors_to_guests_of_every_kind(tmp_path: Path) -> None:
    flat = tmp_path / "flat.bin"
    flat.write_bytes(b"\xf4")
    for found in (detect("hello"), detect(flat)):
        alone, several = (make_guest(found, RAM, cpus=cpus).image for cpus in (1, 3))
        assert not any(alone.page(gfn).strip(b"\0") for gfn in range(0xF0, 0x100))
        assert several.page(0xF0)[:8] == b"RSD PTR "
        assert several.page(0xF8)[:4] == b"_MP_"
