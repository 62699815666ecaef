"""One instruction, or a few, in a given state: which exception they raise."""

from __future__ import annotations

from dataclasses import dataclass

from emu.engine.events import ExceptionDelivery
from emu.machine.vm import Stop
from tests.cpu import delivery_bench as b
from tests.cpu.delivery_bench import Bench

MODES = {"real": 16, "protected": 32, "long": 64}
OSFXSR = 1 << 9
MP, EM, TS = 2, 4, 8


@dataclass(frozen=True)
class Fault:
    """An exception; ``at`` is its return address, from the first byte of the code."""

    vector: int
    error: int
    at: int


def code_of(code: str | bytes, mode: str) -> bytes:
    return code if isinstance(code, bytes) else b.assemble(code, MODES[mode])


def prepare(mode: str, mmu: str = "nested", ring: int = 0, cpu: str | None = None) -> Bench:
    """A bench in real, protected or long mode whose handlers halt."""
    bench = Bench(mmu, cpu)
    if mode == "real":
        bench.real()
        bench.cpu.rip = 0
    elif mode == "protected":
        bench.protected(ring)
    else:
        bench.long(ring)
    for vector in range(32):
        bench.write(b.HANDLER + 16 * vector, b"\xf4")
    return bench


def run(bench: Bench, code: str | bytes, mode: str) -> Fault | None:
    """Execute code; returns the first exception, None when it came to its end."""
    bench.write(b.CODE, code_of(code, mode) + b"\xf4")
    assert bench.vm.run() == Stop.HALTED
    bench.vm.events.drain()
    faults = [event for event in bench.events if isinstance(event, ExceptionDelivery)]
    if not faults:
        return None
    return Fault(faults[0].vector, faults[0].error, faults[0].rip - (0 if mode == "real" else b.CODE))


def probe(
    code: str | bytes, mode: str = "long", cr0: int = 0, cr4: int = OSFXSR, cpu: str | None = None, **registers: int
) -> int | None:
    """The vector of the exception that code raises at CPL 0, or None.

    Args:
        cr0: bits set beside those of the mode; ``cr4``: the same.
        cpu: the model of processor.
        registers: general registers at the start.
    """
    bench = prepare(mode, cpu=cpu)
    bench.cpu.cr0 |= cr0
    bench.cpu.cr4 |= cr4
    for name, value in registers.items():
        setattr(bench.cpu, name, value)
    bench.follow_control_registers()
    fault = run(bench, code, mode)
    return None if fault is None else fault.vector
