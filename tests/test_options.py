"""Boot options: what can be said, and what is refused with the option's name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

import emu
from emu.errors import BadInput
from emu.machine.schedule import MAX_CPUS
from emu.options import BootOptions, disk_options, floppy_options


def test_sizes_and_times_are_numbers_or_text() -> None:
    said = BootOptions(ram="2M", pool="64K", quantum="1.5us", schedule="seed=007", cpus=MAX_CPUS)
    assert (said.ram_bytes, said.pool_bytes, said.quantum_ns, said.seed) == (2 << 20, 64 << 10, 1500, 7)
    counted = BootOptions(ram=2 << 20, pool=64 << 10, quantum=1500)
    assert (counted.ram_bytes, counted.pool_bytes, counted.quantum_ns) == (2 << 20, 64 << 10, 1500)
    nothing = BootOptions()
    assert (nothing.ram_bytes, nothing.pool_bytes, nothing.quantum_ns, nothing.seed) == (None, None, None, None)


def test_they_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        BootOptions().cpus = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ram": "much"}, "--ram: not a size: 'much'"),
        ({"pool": ""}, "--pool: not a size: ''"),
        *(({"cpus": n}, f"--cpus: {n!r}: expected a number of processors from 1 to 16") for n in (0, 17, "4", True)),
        ({"quantum": "soon"}, "--quantum: not a virtual time: 'soon'"),
        ({"quantum": "0ns"}, "--quantum: expected a time above 0"),
        ({"quantum": 0}, "--quantum: expected a time above 0"),
        ({"schedule": ""}, "--schedule: '': expected seed=N"),
        ({"schedule": "seed=-1"}, "--schedule: 'seed=-1': expected seed=N, with N from 0 to 18446744073709551615"),
        ({"schedule": "seed=18446744073709551616"}, "expected seed=N, with N from 0 to 18446744073709551615"),
        ({"schedule": "seed=\u0664"}, "expected seed=N"),
        ({"schedule": "seed=1\n"}, "expected seed=N"),
    ],
)
def test_what_cannot_be_names_its_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        BootOptions(**options)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("disk", "parts"),
    [
        ("d", ("d", False, False)),
        (Path("d"), ("d", False, False)),
        ("d,virtio", ("d", True, False)),
        ("d,writable,virtio", ("d", True, True)),
        ("d,e", ("d,e", False, False)),
    ],
)
def test_disks(disk: str | Path, parts: tuple[str, bool, bool]) -> None:
    assert disk_options(disk) == parts


def test_keywords_and_options_say_the_same() -> None:
    options = BootOptions(ram="2M", mmu="nested", append="x")
    by_options, by_keywords = emu.boot_vm("hello", options), emu.boot_vm("hello", ram="2M", mmu="nested", append="x")
    assert by_options.ram == by_keywords.ram == 2 << 20
    assert by_options.paging.name == by_keywords.paging.name == "nested"
    assert emu.boot_vm("hello", options, ram="1M").ram == 1 << 20


def test_an_option_that_is_not_there() -> None:
    with pytest.raises(TypeError, match="'rma'"):
        emu.boot_vm("hello", rma="2M")


def test_processors_and_how_they_take_turns() -> None:
    vm = emu.boot_vm("hello", cpus=2, quantum="100us", schedule="seed=1")
    assert len(vm.processors) == 2 and vm.native.quantum == 100_000 and vm.native.seed == 1
    assert emu.run_vm(vm).status == 1
    with pytest.raises(BadInput, match="--quantum: 999 ns is too short"):
        emu.boot_vm("hello", cpus=2, quantum="999ns")


def test_floppy_options() -> None:
    assert floppy_options("a.img") == ("a.img", False)
    assert floppy_options(Path("a.img,writable")) == ("a.img", True)
    with pytest.raises(BadInput, match="--floppy: a,virtio: a floppy disk is no virtio device"):
        floppy_options("a,virtio")
