"""emu: a full-system x86 emulator whose memory is virtualised by the Dynamic Memory Mapping model.

::

    import emu

    vm = emu.boot_vm("hello", ram="16M", mmu="nested")
    outcome = emu.run_vm(vm, until="protected mode", max_time=1_000_000_000)
    print(vm.platform.console.decode(), outcome.status, vm.events.counts())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.errors import BadInput, EmuError
    from emu.machine.machine import Machine
    from emu.machine.vm import Stop, VirtualMachine
    from emu.session import Ending, Outcome, boot_vm, run_vm

_HOMES = {
    "boot_vm": "emu.session", "run_vm": "emu.session", "Ending": "emu.session", "Outcome": "emu.session",
    "Machine": "emu.machine.machine", "VirtualMachine": "emu.machine.vm", "Stop": "emu.machine.vm",
    "EmuError": "emu.errors", "BadInput": "emu.errors",
}  # fmt: skip

__all__ = ["BadInput", "EmuError", "Ending", "Machine", "Outcome", "Stop", "VirtualMachine", "boot_vm", "run_vm"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import emu`` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'emu' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
