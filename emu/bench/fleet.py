"""Group ``fleet``: many firmware guests on one machine memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from emu.addr import PAGE_SIZE
from emu.bench.harness import Case, timed
from emu.engine.native import address_of
from emu.machine.machine import Machine
from emu.machine.vm import VirtualMachine
from emu.mmu.paging import ShadowPaging
from emu.session import boot_vm, run_vm

GUESTS = 100
_RAM = 16 << 20


def _machine(guests: int, ram: int) -> Machine:
    return Machine(guests * Machine.size_for(ram, ram, "shadow"))


def _guests(machine: Machine) -> list[VirtualMachine]:
    return [boot_vm("memory", ram=_RAM, machine=machine, name=f"vm{i}") for i in range(GUESTS)]


def _start() -> float:
    machine = _machine(GUESTS, _RAM)
    return timed(lambda: _guests(machine), GUESTS)


def _host_bytes(array: np.ndarray[Any, Any]) -> int:
    """Bytes of host memory that an array takes: those of the pages that were ever written to."""
    begin = address_of(array) & -PAGE_SIZE
    pages = -(-(address_of(array) + array.nbytes - begin) // PAGE_SIZE)
    present = (ctypes.c_ubyte * pages)()
    if ctypes.CDLL(None, use_errno=True).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(pages * PAGE_SIZE), present):
        raise OSError(ctypes.get_errno(), "mincore")
    return min(array.nbytes, PAGE_SIZE * int(sum(page & 1 for page in present)))


def _bookkeeping() -> float:
    """Bytes that the mapping of GUESTS guests takes after their run, shadow tables included, for each byte managed."""
    machine = _machine(GUESTS, _RAM)
    vms = _guests(machine)
    for vm in vms:
        run_vm(vm)
    arrays = [machine.memory.purpose, machine.memory.owner, machine.m2p.gfn, machine.m2p.vm]
    taken = machine.memory.free * 4
    for vm in vms:
        paging = vm.paging
        assert isinstance(paging, ShadowPaging)
        arrays += [vm.p2m.entries, paging.flags, paging.key, paging.role, paging.link, paging.writes, paging.bucket]
        arrays += [paging.rmap.head, paging.rmap.next, paging.rmap.prev]
        taken += vm.pool.spare * 4 + paging.tables * PAGE_SIZE
    return (taken + sum(_host_bytes(array) for array in arrays)) / sum(vm.ram for vm in vms)


def cases() -> Iterator[Case]:
    """Starting GUESTS firmware guests on one machine, and what their mapping costs."""
    yield Case("fleet", f"start of one of {GUESTS} firmware guests on one machine", _start, scale=1e3, unit="ms")
    name = f"bookkeeping of {GUESTS} guests, of the memory managed"
    yield Case("fleet", name, _bookkeeping, scale=100, unit="%", deterministic=True)
