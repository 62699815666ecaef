"""REX.R does not count for MMX registers (SDM vol. 2A, 2.2.1.2): the engine's own SSSE3 would write beside them."""

from __future__ import annotations

import pytest

from emu.bench.longmode import CODE, assemble, long_mode_vm
from emu.machine.vm import Stop

_CR4_OSFXSR = 1 << 9
PMADDUBSW, PALIGNR = "4e 0f 38 04 e6", "4c 0f 3a 0f e6 01"  # of mm4 and mm6, with REX.R


@pytest.mark.parametrize("mmu", ["shadow", "nested"])
@pytest.mark.parametrize("instruction", [PMADDUBSW, PALIGNR])
def test_the_eighth_register_and_what_lies_behind(instruction: str, mmu: str) -> None:
    before = assemble(
        f"mov rax, cr4; or eax, {_CR4_OSFXSR}; mov cr4, rax; mov rax, -1; movq mm6, rax; movq mm4, rax;"
        "mov rax, 0x0101010101010101; movq mm4, rax"
    )
    after = assemble("movq rbx, mm4; sub rsp, 16; stmxcsr [rsp]; mov ecx, [rsp]; hlt")
    vm = long_mode_vm(before + bytes.fromhex(instruction) + after, mmu)
    assert vm.run() is Stop.HALTED, hex(vm.cpu.rip - CODE)
    # each word: 1 * -1 + 1 * -1; the bytes of mm4:mm6 from the second on
    expected = 0xFFFE_FFFE_FFFE_FFFE if instruction == PMADDUBSW else 0x01FF_FFFF_FFFF_FFFF
    assert (hex(vm.cpu.rbx), hex(vm.cpu.rcx)) == (hex(expected), hex(0x1F80))
