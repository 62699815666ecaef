"""The summary of a run: one JSON object with what people and CI ask first."""

from __future__ import annotations

import json
from typing import Any

from emu.session import Outcome
from emu.vm import VirtualMachine


def summarise(vm: VirtualMachine, outcome: Outcome, wall: float) -> dict[str, Any]:
    """What happened in a run.  Everything but ``wall_s`` is the same whenever the run is repeated.

    Args:
        wall: seconds that the run took.

    Returns:
        ``guest``, ``guest_kind``, ``vm``; ``outcome`` (:class:`emu.session.Ending`), ``status``, ``exit_value`` (None
        when the guest wrote none), ``message``; ``virtual_ns``, ``wall_s``; ``mmu``, ``policies``; ``ram_bytes``,
        ``pool_frames``, ``pool_bytes``, ``frames_used``, ``shadow_tables`` (in use); ``console_bytes``; ``exits``, how
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
        "virtual_ns": vm.now,
        "wall_s": round(wall, 6),
        "mmu": vm.paging.name,
        "policies": [policy.name for policy in vm.dmm.policies],
        "ram_bytes": vm.ram,
        "pool_frames": vm.pool.size,
        "pool_bytes": vm.pool.size << 12,
        "frames_used": vm.pool.used,
        "shadow_tables": int(vm.native.shadow_used),
        "console_bytes": len(vm.platform.console),
        "exits": vm.exits.counts,
        "events": vm.events.counts(),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The JSON text, ending in a line end."""
    return json.dumps(summary, indent=2) + "\n"
