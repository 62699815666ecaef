"""The processors of a VM driven one at a time, for tests that say which of them makes which access.

All but one stand still, as after HLT with interrupts off; each keeps its registers and what its TLB holds.
"""

from __future__ import annotations

from collections.abc import Callable

from emu.cpu.runloop import HALTED, RUNNING
from emu.machine.vm import VirtualMachine


def start_all(vm: VirtualMachine) -> None:
    """Start the processors that wait for a start-up message; the first one alone runs until :func:`only` says else."""
    for processor in vm.processors[1:]:
        vm._inputs.start_up(processor.index, 0)
    only(vm, 0)


def only(vm: VirtualMachine, cpu: int) -> None:
    """Let processor ``cpu`` alone run from now on, and ``vm.cpu`` be its registers."""
    for processor in vm.processors:
        processor.native.activity = RUNNING if processor.index == cpu else HALTED
    native = vm.processors[cpu].native
    native.vtime = max(native.vtime, vm.now)
    vm.selected = cpu


def start_together(vm: VirtualMachine, begin: list[Callable[[], None]]) -> None:
    """Let all processors run in their turns; ``begin`` sets the registers of each, which is then ``vm.cpu``."""
    for cpu, enter in enumerate(begin):
        only(vm, cpu)
        enter()
    for processor in vm.processors:
        processor.native.activity = RUNNING
    vm.selected = None
