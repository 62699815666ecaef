"""The engine's clock belongs to one VM at a time, and to none that is gone."""

from __future__ import annotations

import gc

from emu.engine import engine
from emu.engine.native import address_of
from tests.mmu.bench import Bench


def test_clock_outlives_no_vm() -> None:
    """Closing an engine reads the clock; it must not lead to the record of a VM that was freed before."""
    older, newer = Bench("nested"), Bench("nested")
    for bench in (older, newer):
        bench.put(0x10000, "mov eax, 1; hlt")
        assert bench.call(0x10000) == 1
    assert engine._clock[0] == newer.vm.processor.native.vtime_at
    del newer, bench
    gc.collect()
    assert engine._clock[0] == address_of(engine._TIME_ZERO)
    assert older.call(0x10000) == 1
