"""Breakpoints from outside: runs a VM until a processor is about to execute an instruction at one, or has touched data.

The guest does not see them.  What it does stays what it would have been, but that an instruction which touches a page
with watched data ends its block of code, so that an interrupt may come a few instructions earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from emu.cpu.stepping import is_within_block
from emu.engine.debugregs import ON_ACCESS, ON_WRITE
from emu.engine.native import address_of, signed
from emu.machine.vm import Stop

if TYPE_CHECKING:
    from emu.machine.vm import VirtualMachine


_SLOTS = 4
_NOTICE = 3  # blocks of code until a change is taken over for certain (emu.cpu.breakpoints)


class Watch(NamedTuple):
    """Data that is watched.

    Attributes:
        gva, size: where, and how many bytes.
        reads: whether reading counts, too.
    """

    gva: int
    size: int
    reads: bool


class Breakpoints:
    """Those of one VM.

    Attributes:
        gvas: linear addresses of instructions; add and remove at will while the VM does not run.
        watched: data, changed by :meth:`watch`.
    """

    def __init__(self, vm: VirtualMachine) -> None:
        self.gvas: set[int] = set()
        self.watched: list[Watch] = []
        self._vm = vm
        self._table = np.zeros(0, np.int64)

    def hit(self) -> bool:
        """Whether the processor that runs stands at one."""
        return self._vm.processors[self._vm.native.current].registers.pc in self.gvas

    def run(self, until: int | None = None) -> Stop:
        """As :meth:`emu.machine.vm.VirtualMachine.run`, but not beyond a breakpoint.

        The instruction that the VM stands at is executed first, breakpoint or not.

        Returns:
            STEP at a breakpoint, or behind an instruction that touched watched data; else as
            :meth:`emu.machine.vm.VirtualMachine.run`.
        """
        vm = self._vm
        for processor in vm.processors:
            processor.native.outside_hits = 0
        if not self.gvas:
            return vm.run(until)
        stop = vm.step(1, until)
        while stop is Stop.STEP and not self.hit() and self.touched() is None:
            if self._lies_ahead():
                stop = vm.step(1, until)
                continue
            stop = self._run_to_block(until)
            if stop is Stop.STEP and not self.hit() and self.touched() is None:
                stop = vm.step(1, until)  # into the block
        return stop

    def watch(self, watched: list[Watch]) -> None:
        """Watch exactly this data from now on.

        Raises:
            ValueError: it takes more than four aligned pieces of 1, 2, 4 or 8 bytes.
        """
        pieces = [(at, size, ON_ACCESS if one.reads else ON_WRITE) for one in watched for at, size in _pieces(one)]
        if len(pieces) > _SLOTS:
            raise ValueError("too much to watch")
        self.watched = list(watched)
        control = 0
        for index, (_, size, kind) in enumerate(pieces):
            length = {1: 0, 2: 1, 4: 3, 8: 2}[size]
            control |= 1 << 2 * index | (kind | length << 2) << 16 + 4 * index
        for processor in self._vm.processors:
            native = processor.native
            for index in range(_SLOTS):
                setattr(native, f"outside{index}", signed(pieces[index][0]) if index < len(pieces) else 0)
            native.outside7 = control
            native.seen_dr7 = -1  # so that it is taken over
            native.debugging = _NOTICE

    def touched(self) -> Watch | None:
        """What the processor that runs has just touched of what is watched."""
        hits = int(self._vm.processors[self._vm.native.current].native.outside_hits)
        found = [one for one in self.watched for _ in _pieces(one)]
        return next((one for index, one in enumerate(found) if hits >> index & 1), None)

    def _lies_ahead(self) -> bool:
        """Whether a breakpoint lies in the rest of the block that the processor which runs is within."""
        cpu = self._vm.processors[self._vm.native.current]
        if not is_within_block(cpu.native):
            return False
        rest = range(cpu.registers.pc, int(cpu.native.block_gva + cpu.native.block_size))
        return any(gva in rest for gva in self.gvas)

    def _run_to_block(self, until: int | None) -> Stop:
        """Run to the beginning of the next block that holds one."""
        native = self._vm.native
        self._table = np.array([signed(gva) for gva in sorted(self.gvas)], np.int64)
        native.breaks_at, native.breaks = address_of(self._table), len(self._table)
        try:
            return self._vm.run(until)
        finally:
            native.breaks = 0


def _pieces(watch: Watch) -> list[tuple[int, int]]:
    """Its bytes as aligned (address, size), as few as there can be."""
    at, end = watch.gva, watch.gva + watch.size
    found: list[tuple[int, int]] = []
    while at < end and len(found) <= _SLOTS:
        size = next(size for size in (8, 4, 2, 1) if at % size == 0 and at + size <= end)
        found.append((at, size))
        at += size
    return found
