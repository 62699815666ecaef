"""The summary of a run: one JSON object with what people and CI ask first."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from emu.dmm.p2m import PageType
from emu.machine.vm import VirtualMachine
from emu.observe.outcome import Outcome


@dataclass(frozen=True)
class MemoryUse:
    """The memory of one VM at one moment.

    Attributes:
        time: its virtual time in ns.
        ram: its pages.
        pool, used: frames that it may use, and those of them in use, by it or by another VM that shares them.
        resident, shared: its pages with a frame, and those of them whose frame may have other users.
        swapped: its pages whose contents a policy keeps, without a frame.
        balloon: its pages in the balloon.
        faults, evictions, unshared: events so far: DMM faults, evictions, copy-on-write breaks.
    """

    time: int
    ram: int
    pool: int
    used: int
    resident: int
    shared: int
    swapped: int
    balloon: int
    faults: int
    evictions: int
    unshared: int

    @classmethod
    def of(cls, vm: VirtualMachine) -> MemoryUse:
        """What a VM uses now."""
        pages = vm.p2m.count_types()
        events = vm.events.counts()
        balloon = vm.dmm.balloon.policy
        return cls(
            time=vm.now,
            ram=vm.ram >> 12,
            pool=vm.pool.size,
            used=vm.pool.used,
            resident=int(pages[PageType.RAM] + pages[PageType.SHARED]),
            shared=int(pages[PageType.SHARED]),
            swapped=int(pages[PageType.EVICTED]),
            balloon=len(balloon.held) if balloon is not None else 0,
            faults=events["dmm-fault"],
            evictions=events["evict"],
            unshared=events["unshare"],
        )


def summarise(vm: VirtualMachine, outcome: Outcome, wall: float) -> dict[str, Any]:
    """What happened in a run.  Everything but ``wall_s`` is the same whenever the run is repeated.

    Args:
        wall: seconds that the run took.

    Returns:
        ``guest``, ``guest_kind``, ``vm``; ``outcome`` (:class:`emu.observe.outcome.Ending`), ``status``,
        ``exit_value`` (None when the guest wrote none), ``message``; ``resets``; ``virtual_ns``, ``wall_s``; ``mmu``;
        ``policies``, by name with their statistics; ``cpus``; ``ram_bytes``, ``pool_frames``, ``pool_bytes``,
        ``frames_used``,
        ``shadow_tables`` (in use); ``memory``, the fields of :class:`MemoryUse`; ``console_bytes``; ``exits``, how
        often the native plane was left, by reason; ``events``, by kind.
    """
    return {
        "guest": vm.guest.name if vm.guest else None,
        "guest_kind": vm.guest.kind if vm.guest else None,
        "vm": vm.name,
        "outcome": outcome.ending.value,
        "status": outcome.status,
        "exit_value": vm.exit_value,
        "message": outcome.sentence,
        "resets": vm.resets,
        "virtual_ns": vm.now,
        "wall_s": round(wall, 6),
        "mmu": vm.paging.name,
        "policies": {policy.name: policy.statistics() for policy in vm.dmm.policies},
        "cpus": len(vm.processors),
        "ram_bytes": vm.ram,
        "pool_frames": vm.pool.size,
        "pool_bytes": vm.pool.size << 12,
        "frames_used": vm.pool.used,
        "shadow_tables": int(vm.native.shadow_used),
        "memory": asdict(MemoryUse.of(vm)),
        "console_bytes": vm.platform.output.total,
        "exits": vm.exits.counts,
        "events": vm.events.counts(),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The JSON text, ending in a line end."""
    return json.dumps(summary, indent=2) + "\n"
