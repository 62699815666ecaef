"""Group ``engine``: loops against plain Unicorn with one flat mapping and no hooks, same bytes, our clock running."""

from __future__ import annotations

from collections.abc import Iterator

from emu.bench.harness import Case, Round, timed
from emu.bench.longmode import CODE, DATA, RAM, STACK, assemble, long_mode_vm, restart
from emu.engine.engine import plain_unicorn

ITERATIONS = 2_000_000

LOOPS = {
    "one store": "l: mov [rdi], eax; dec ecx; jnz l; hlt",
    "four stores": "l: mov [rdi], eax; mov [rdi+8], eax; mov [rdi+64], eax; mov [rdi+128], eax; dec ecx; jnz l; hlt",
    "call and return": "l: call f; dec ecx; jnz l; hlt; f: ret",
    "loads, stores, branches": "l: mov eax, [rdi]; add eax, ecx; mov [rdi+8], eax; test al, 1; jz m; "
    "mov [rdi+16], ecx; m: mov edx, [rdi+24]; dec ecx; jnz l; hlt",
    "one load": "l: mov eax, [rdi]; dec ecx; jnz l; hlt",
    "arithmetic, two blocks": "l: add eax, ecx; test al, 1; jz m; inc edx; m: dec ecx; jnz l; hlt",
}


def _ours(code: bytes, mmu: str) -> Round:
    vm = long_mode_vm(code, mmu)
    return lambda: timed(lambda: restart(vm, ITERATIONS), ITERATIONS)


def _plain(code: bytes) -> Round:
    run = plain_unicorn(RAM, {CODE: code})
    return lambda: timed(lambda: run(CODE, rcx=ITERATIONS, rdi=DATA, rsp=STACK), ITERATIONS)


def cases() -> Iterator[Case]:
    """One case a loop and paging architecture."""
    for name, source in LOOPS.items():
        code = assemble(source)
        for mmu in ("shadow", "nested"):
            yield Case("engine", f"{name}, {mmu}", _ours(code, mmu), _plain(code), "plain Unicorn")
