"""The guest that is made of what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from emu.boot.detect import detect
from emu.boot.make import make_guest
from emu.boot.tables import rsdp
from emu.errors import BadInput
from tests.boot.kernels import Load, elf, header2

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


def test_guests_of_every_kind_find_tables_that_list_the_processors(tmp_path: Path) -> None:
    flat = tmp_path / "flat.bin"
    flat.write_bytes(b"\xf4")
    for found in (detect("hello"), detect(flat)):
        alone, several = (make_guest(found, RAM, cpus=cpus).image for cpus in (1, 3))
        for image in (alone, several):
            assert image.page(0xFC)[:8] == b"RSD PTR "
            assert image.page(0xF8)[:4] == b"_MP_"
        assert alone.page(0xF8) != several.page(0xF8)


def test_a_multiboot_2_kernel_gets_both_root_pointers(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf([Load(0x10_0000, header2() + b"\xf4")], 0x10_0018))
    memory = b"".join(make_guest(detect(path), 2 << 20, cpus=2).image.page(gfn) for gfn in range(9, 0x9F))
    pointers = [memory[at : at + 36] for at in range(0, len(memory), 8) if memory[at : at + 8] == b"RSD PTR "]
    assert [pointer[:20] for pointer in pointers] == [rsdp(2)[:20]] * 2
    assert pointers[1] == rsdp(2)
