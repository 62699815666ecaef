"""Machine: one machine memory and the VMs on it."""

from __future__ import annotations

from emu.addr import PAGE_SHIFT, PAGE_SIZE
from emu.devices.parts import NO_PARTS, Parts
from emu.dmm.pool import MIN_POOL
from emu.dmm.space import SharedMachine
from emu.errors import BadInput
from emu.machine.schedule import MAX_CPUS, Schedule
from emu.machine.vm import VirtualMachine
from emu.units import format_size

MMU_NAMES = ("shadow", "nested")

MIN_RAM = 64 << 10  # bytes: what real mode and its stack need
MAX_RAM = 1 << 40  # bytes: 40 physical address bits


def shadow_tables_for(ram: int) -> int:
    """Shadow tables for a guest of ``ram`` bytes: one for each 192 frames (0.5 %), and some for any guest.

    The guests of firmware/ use up to 16, Linux with a shell about 100.  Where they do not suffice, all are made anew.
    """
    return 16 + (ram >> PAGE_SHIFT) // 192


class Machine:
    """The host side of emu: machine memory of fixed size, shared by all VMs.

    Args:
        memory: bytes of machine memory, a multiple of the page size.

    Attributes:
        shared: what its VMs share; ``memory`` and ``m2p`` are a part of it.
        memory: the frames.
        m2p: who uses them.
    """

    def __init__(self, memory: int) -> None:
        if memory <= 0 or memory % PAGE_SIZE:
            raise BadInput("machine memory", f"{memory} bytes are no positive multiple of {PAGE_SIZE}")
        self.shared = SharedMachine(memory >> PAGE_SHIFT)
        self.memory, self.m2p = self.shared.memory, self.shared.m2p
        self._created = 0

    @staticmethod
    def check_sizes(ram: int, pool: int, mmu: str) -> None:
        """Raise BadInput unless a VM can have this RAM and pool (bytes) and this paging architecture."""
        if mmu not in MMU_NAMES:
            raise BadInput("--mmu", f"{mmu!r} is not one of {', '.join(MMU_NAMES)}")
        for option, size, smallest in (("--ram", ram, MIN_RAM), ("--pool", pool, MIN_POOL * PAGE_SIZE)):
            if size % PAGE_SIZE:
                raise BadInput(option, f"{format_size(size)} is not a multiple of 4K")
            if size < smallest:
                raise BadInput(option, f"{format_size(size)} is too small, {format_size(smallest)} is the least")
        if ram > MAX_RAM:
            raise BadInput("--ram", f"{format_size(ram)} is too large, {format_size(MAX_RAM)} is the most")
        if pool > ram:
            raise BadInput("--pool", f"{format_size(pool)} is more than the {format_size(ram)} of RAM it would back")

    @staticmethod
    def size_for(ram: int, pool: int, mmu: str) -> int:
        """Bytes of machine memory for one VM: its pool, its shadow tables, the void frame."""
        tables = shadow_tables_for(ram) if mmu == "shadow" else 0
        return pool + (tables + 1) * PAGE_SIZE

    def create_vm(
        self, name: str, ram: int, pool: int | None = None, mmu: str = "shadow",
        parts: Parts = NO_PARTS, cpus: int = 1, schedule: Schedule | None = None, cpu: str | None = None,
    ) -> VirtualMachine:  # fmt: skip
        """A VM without a guest.

        Args:
            ram: bytes of pseudo-physical memory.
            pool: bytes of machine memory that it may use at first; as much as ``ram`` by default.
            mmu: paging architecture, one of MMU_NAMES.
            parts: what is plugged into it.
            cpus: processors, 1 to MAX_CPUS.
            schedule: how they take turns.
            cpu: what they are, as ``--cpu`` takes it (:func:`emu.cpu.models.parse_cpu`).

        Raises:
            BadInput: a size or name that cannot be used.
            OutOfMachineFrames: the machine has not enough free frames.
        """
        if not 1 <= cpus <= MAX_CPUS:
            raise BadInput("--cpus", f"{cpus} is not a number of processors from 1 to {MAX_CPUS}")
        pool = ram if pool is None else pool
        self.check_sizes(ram, min(pool, ram), mmu)
        free = self.memory.free
        tables = shadow_tables_for(ram) if mmu == "shadow" else 0
        if (pool >> PAGE_SHIFT) + tables > free:
            raise BadInput("--pool", f"{format_size(pool)} is more than the machine has free ({free} frames)")
        vm = VirtualMachine(
            self.shared, name, self._created, ram, pool >> PAGE_SHIFT, mmu, tables, parts, cpus, schedule, cpu
        )
        self._created += 1
        return vm
