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
    from emu.observe.outcome import Ending, Outcome
    from emu.options import BootOptions
    from emu.session import boot_vm, run_vm

_HOMES = {
    "emu.session": ("boot_vm", "run_vm"),
    "emu.options": ("BootOptions",),
    "emu.observe.outcome": ("Ending", "Outcome"),
    "emu.machine.machine": ("Machine",),
    "emu.machine.vm": ("Stop", "VirtualMachine"),
    "emu.errors": ("BadInput", "EmuError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BadInput",
    "BootOptions",
    "EmuError",
    "Ending",
    "Machine",
    "Outcome",
    "Stop",
    "VirtualMachine",
    "boot_vm",
    "run_vm",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import emu`` stays cheap."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'emu' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
