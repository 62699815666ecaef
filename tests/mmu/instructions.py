"""One page of code: the single instructions that programs are made of, each with a HLT behind it."""

from __future__ import annotations

from typing import Any

from tests.mmu.harness import HLT
from tests.oracles.paging_model import PAGE
from tests.oracles.unicorn_mmu import STUBS

INSTRUCTIONS: dict[Any, bytes] = {  # the same bytes in 32- and 64-bit code
    **STUBS,
    "add": b"\x01\x03",  # add [rbx], eax
    "xadd": b"\xf0\x0f\xc1\x03",  # lock xadd [rbx], eax
    "invlpg": b"\x0f\x01\x3b",  # invlpg [rbx]
    "cr0": b"\x0f\x22\xc0",  # mov cr0, rax
    "cr3": b"\x0f\x22\xd8",  # mov cr3, rax
    "cr4": b"\x0f\x22\xe0",  # mov cr4, rax
    "efer": b"\x0f\x30",  # wrmsr
    "pkru": b"\x0f\x01\xef",  # wrpkru
    "pkrs": b"\x0f\x30",  # wrmsr
    "mode": b"\x0f\x22\xe0\x0f\x22\xd9\x0f\x22\xc2",  # mov cr4, rax; mov cr3, rcx; mov cr0, rdx
}


def _code() -> tuple[bytes, dict[Any, tuple[int, int]]]:
    """The page, and where in it each instruction and the HLT behind it stand."""
    code, places = bytearray(), {}
    for name, instruction in INSTRUCTIONS.items():
        places[name] = len(code), len(code) + len(instruction)
        code += (instruction + HLT).ljust(16, HLT)
    return bytes(code).ljust(PAGE, HLT), places


CODE, PLACES = _code()
