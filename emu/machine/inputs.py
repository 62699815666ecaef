"""What local APICs do to the processors of a VM: interrupt requests, NMIs, INIT and start-up messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emu.cpu import runloop
from emu.engine.state import WAITING, Vm
from emu.machine.processor import Processor
from emu.mmu.paging import Paging


class ProcessorInputs:
    """The inputs of all processors; each method takes the processor's number first (:mod:`emu.devices.cpu_pins`).

    Args:
        native: the VM's record.
        processors: in the order of their numbers.
        paging: of the VM; told when one more processor has ever run.
        now: gives virtual time in ns.
        reset: called for an INIT to the first processor, which would enter the BIOS again.
        stop: makes the engine that runs stop before its next block.

    Attributes:
        inits: processors that have sent themselves an INIT, for :meth:`take_inits`.
    """

    def __init__(
        self, native: Vm, processors: Sequence[Processor], paging: Paging, now: Callable[[], int],
        reset: Callable[[], None], stop: Callable[[], None],
    ) -> None:  # fmt: skip
        self._native = native
        self._processors = processors
        self._paging = paging
        self._now = now
        self._reset = reset
        self._stop = stop
        self.inits: list[int] = []

    def set_intr(self, cpu: int, level: bool) -> None:
        """The level of the interrupt request line."""
        self._processors[cpu].native.intr_line = int(level)
        if level:
            self._wake(cpu)

    def raise_nmi(self, cpu: int) -> None:
        """A non-maskable interrupt; a processor that waits for a start-up message does not keep it."""
        native = self._processors[cpu].native
        if native.activity != WAITING:
            native.nmi_pending = 1
            self._wake(cpu)

    def init(self, cpu: int) -> None:
        """INIT: a reset of the machine for the first processor; the others wait for a start-up message."""
        if cpu == 0:
            self._reset()
        elif cpu != self._native.current:
            self._processors[cpu].init()
        else:  # it has sent that itself, and its engine runs
            self.inits.append(cpu)
            self._stop()

    def start_up(self, cpu: int, vector: int) -> None:
        """A start-up message (SIPI); ignored by a processor that does not wait for one."""
        processor = self._processors[cpu]
        first = not processor.has_started
        if processor.start_up(vector, self._now()):
            if first:
                self._native.started += 1
                self._paging.processor_started()
            self._wake(cpu)

    def take_inits(self) -> None:
        """Carry out what processors have sent themselves; none of their engines runs."""
        while self.inits:
            self._processors[self.inits.pop()].init()

    def _wake(self, cpu: int) -> None:
        """Something has come that a processor should look at."""
        native = self._processors[cpu].native
        native.limit = 0
        native.wake_at = self._now()
        if cpu != self._native.current and not self._native.round_shared and self._processors[cpu].has_work:
            runloop.share_round(self._native.at)
