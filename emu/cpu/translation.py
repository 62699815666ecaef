"""Each instruction before it is translated: what the engine would get wrong is put right, or checked when it runs.

* An encoding that the processor refuses and the engine does not (LOCK where it may not stand, VEX without AVX) is
  shown to the translator as UD2; one that it refuses without reason is shown as its equal.
* Instructions on general registers are translated as if SSE and the x87 unit were on, however they are encoded.
* 128-bit operands that must be aligned are checked by the engine's own TLB look-up, which costs nothing
  (:func:`emu.engine.translator.require_alignment`); a misaligned one is #GP(0).
* What must be checked when it runs begins a block of its own, and :mod:`emu.cpu.checks` is called first.

Sources: SDM vol. 2A, 2.3 and 2.4 (VEX, exception types), LOCK, and each instruction's page; vol. 3A, 2.5 and 9.1.
"""

from __future__ import annotations

import numpy as np

from emu.cpu.checks import CONSUME_RF, SEGMENT_BASE, TABLE_BASE, before_instruction
from emu.cpu.controlregs import on_get_dr, on_set_dr, on_write_cr
from emu.cpu.decode import (
    MAP_0F,
    MAP_3A,
    MAP_38,
    P_LOCK,
    P_REP,
    P_REPNE,
    P_VEX,
    REX_R,
    REX_W,
    TRANSLATOR,
    code_byte_at,
    decode,
    has_modrm,
    may_be_locked,
    memory_size,
    read_modrm,
    wants_alignment,
)
from emu.cpu.returns import on_iret_protected, on_iret_real, on_sysret
from emu.engine.cpustate import HF_CS64, HF_EM, HF_OSFXSR, HF_RF, HF_TS
from emu.engine.engine import running_cpu
from emu.engine.helpers import raise_exception_from
from emu.engine.library import replace_helper
from emu.engine.native import callback, inlined, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.translator import (
    DC_FLAGS,
    DC_PC_NEXT,
    DC_TB,
    TB_FLAGS,
    call_before,
    end_block,
    forget_instruction,
    is_first,
    require_alignment,
    see_each_instruction,
    show,
    translate,
)
from emu.engine.vectors import VECTOR_GP

_UD2 = 0x0B0F

# what is done about an instruction: nothing; translate it whatever the state of SSE; let it begin a block
_PLAIN, _GENERAL, _FIRST = 0, 1, 2
_CHECKED = 16  # and what is more: let it begin a block, and call emu.cpu.checks with what is more

_LOOKED_AT = np.zeros(0x100, np.uint8)
_LOOKED_AT[[0xC6, 0xC7, 0xCF, 0xF6, 0xF7]] = 1


@inlined
def _undefined(gva: int) -> int:
    show(gva, 2, _UD2)
    return _PLAIN


@inlined
def _is_vex_general(opcode: int, prefixes: int) -> bool:
    """ANDN, BLSR and relatives, BZHI PEXT PDEP, MULX, BEXTR SHLX SARX SHRX; RORX."""
    if opcode == MAP_3A | 0xF0:
        return prefixes & P_REPNE != 0
    return MAP_38 | 0xF2 <= opcode <= MAP_38 | 0xF7 and opcode != MAP_38 | 0xF4


@outlined("qqq")
def _look_at(cpu_at: int, gva: int) -> int:
    """An instruction that is not plain by its opcode alone."""
    cpu = cpu_record(cpu_at)
    opcode, prefixes = cpu.insn_opcode, cpu.insn_prefixes
    if prefixes & P_VEX:
        return _GENERAL if _is_vex_general(opcode, prefixes) else _undefined(gva)
    if opcode == 0xCF or opcode == 0x107:  # IRET, SYSRET
        return _FIRST
    if not has_modrm(opcode):
        return _undefined(gva) if prefixes & P_LOCK else _PLAIN
    modrm = read_modrm(cpu, TRANSLATOR)
    if opcode == MAP_38 | 0xF0 or opcode == MAP_38 | 0xF1:
        if modrm >> 6 == 3 and not prefixes & P_REPNE:  # MOVBE wants memory
            return _undefined(gva)
    if prefixes & P_LOCK and not may_be_locked(opcode, modrm):
        if opcode == 0x120 or opcode == 0x122:  # AMD APM vol. 3, MOV CRn: LOCK selects CR8
            return _PLAIN
        return _undefined(gva)
    if modrm >> 6 != 3 and wants_alignment(opcode, prefixes):
        require_alignment()
    extension = modrm >> 3 & 7
    if (opcode == 0xF6 or opcode == 0xF7) and extension == 1:  # TEST, as with 0
        show(cpu.insn_at - 1, 1, modrm & ~0x38)
    elif (opcode == 0xC6 or opcode == 0xC7) and extension == 0 and cpu.insn_rex & REX_R:
        show(cpu.insn_at - 3, 1, cpu.insn_rex & ~REX_R)
    elif opcode == 0x1C2:  # CMPPS and relatives: the upper bits of the predicate do not count
        at = cpu.insn_at + memory_size(cpu, TRANSLATOR)
        show(at, 1, code_byte_at(cpu, at, TRANSLATOR) & 7)
    elif opcode == 0x121 or opcode == 0x123:
        return _FIRST
    elif opcode == 0x101 and modrm >> 6 != 3 and extension & ~1 == 2:  # LGDT, LIDT
        return _CHECKED + TABLE_BASE if cpu.insn_flags & HF_CS64 else _PLAIN
    elif opcode == 0x1AE and prefixes & P_REP and modrm >> 6 == 3 and extension & ~1 == 2:  # WRFSBASE, WRGSBASE
        return _CHECKED + SEGMENT_BASE if cpu.insn_rex & REX_W else _PLAIN
    return _GENERAL if MAP_38 | 0xF0 <= opcode <= MAP_38 | 0xFF else _PLAIN


@callback("vqqiiq")
def on_misaligned(engine_cpu: int, gva: int, access: int, index: int, code_at: int) -> None:
    """The engine's CPUClass.do_unaligned_access: only SSE instructions ask for alignment."""
    raise_exception_from(cpu_record(running_cpu()), VECTOR_GP, 0, code_at)


@inlined
def _prepare(cpu: Cpu, gva: int, flags: int) -> int:
    decode(cpu.at, gva, flags, TRANSLATOR)
    opcode = cpu.insn_opcode
    if cpu.insn_prefixes & (P_LOCK | P_VEX) or opcode >= MAP_0F or _LOOKED_AT[opcode]:
        return _look_at(cpu.at, gva)
    return _PLAIN


@callback("vqq")
def on_translate(disas: int, engine_cpu: int) -> None:
    """In the place of the translator's function for one instruction."""
    forget_instruction()
    cpu = cpu_record(running_cpu())
    flags = load32(load64(disas + DC_TB) + TB_FLAGS)
    action = _prepare(cpu, load64(disas + DC_PC_NEXT), flags)
    if is_first(disas):
        if flags & HF_RF:
            call_before(cpu.tcg_context, cpu.before_at, CONSUME_RF)
        if action >= _CHECKED:
            call_before(cpu.tcg_context, cpu.before_at, action - _CHECKED)
    elif action >= _FIRST:
        end_block(disas)
        return
    if action == _GENERAL:
        before = load64(disas + DC_FLAGS)
        store64(disas + DC_FLAGS, (before | HF_OSFXSR) & ~(HF_EM | HF_TS))
        translate(disas, engine_cpu)
        store64(disas + DC_FLAGS, before)
    else:
        translate(disas, engine_cpu)


see_each_instruction(on_translate)
replace_helper("skinit", before_instruction)
replace_helper("write_crN", on_write_cr)
replace_helper("set_dr", on_set_dr)
replace_helper("get_dr", on_get_dr)
replace_helper("iret_protected", on_iret_protected)
replace_helper("iret_real", on_iret_real)
replace_helper("sysret", on_sysret)
