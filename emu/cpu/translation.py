"""Each instruction before it is translated: what the engine would get wrong is put right, or checked when it runs.

* An encoding that the processor refuses and the engine does not (LOCK where it may not stand, VEX without AVX) is
  shown to the translator as UD2; one that it refuses without reason is shown as its equal.
* Instructions on general registers are translated as if SSE and the x87 unit were on, however they are encoded.
* 128-bit operands that must be aligned are checked by the engine's own TLB look-up, which costs nothing
  (:func:`emu.engine.translator.require_alignment`); a misaligned one is #GP(0).
* What must be checked when it runs begins a block of its own, and :mod:`emu.cpu.checks` is called first.
* Where floating-point exceptions are not masked, what may raise one is a block of its own, and :mod:`emu.cpu.checks`
  is called before and behind it.

Sources: SDM vol. 2A, 2.3 and 2.4 (VEX, exception types), LOCK, and each instruction's page; vol. 3A, 2.5 and 9.1.
"""

from __future__ import annotations

import numpy as np

from emu.cpu import floatflags, floatnan, horizontal, sserounding, stackselector  # noqa: F401
from emu.cpu.branchfaults import BEYOND_LIMIT, WRAPPED, decode_running, mode_flags
from emu.cpu.checks import (
    CONSUME_RF,
    MACHINE_STATUS,
    MMX_DONE,
    RETURN,
    SEGMENT_BASE,
    SHOW_SSE,
    SSE,
    SSE_DONE,
    SYSTEM_BASE,
    TABLE_BASE,
    X87_ARITHMETIC,
    X87_DONE,
    X87_STORE,
    X87_WAITING,
    before_instruction,
)
from emu.cpu.controlregs import on_get_dr, on_read_cr, on_set_dr, on_write_cr
from emu.cpu.decode import (
    MAP_0F,
    MAP_3A,
    MAP_38,
    MEMORY,
    P_DATA,
    P_LOCK,
    P_REP,
    P_REPNE,
    P_VEX,
    REX_R,
    REX_W,
    TRANSLATOR,
    code_byte_at,
    decode,
    decode_whole,
    has_modrm,
    may_be_locked,
    memory_size,
    read_modrm,
    wants_alignment,
)
from emu.cpu.floatopcodes import (
    NOT_WAITING,
    WAITING,
    is_mmx,
    is_sse_arithmetic,
    is_ssse3,
    loads_masks,
    x87_kind,
)
from emu.cpu.returns import on_call_protected, on_iret_protected, on_iret_real, on_return_protected, on_sysret
from emu.engine.cpustate import (
    CR0,
    CR0_AM,
    CS,
    HF_AC,
    HF_CPL,
    HF_CS32,
    HF_CS64,
    HF_EM,
    HF_LMA,
    HF_OSFXSR,
    HF_RF,
    HF_TS,
    HF_UNMASKED_SSE,
    HF_UNMASKED_X87,
    LIMIT,
)
from emu.engine.engine import abandon_instruction, running_cpu
from emu.engine.helpers import raise_exception, raise_exception_from, store_state
from emu.engine.identity import INTEL, VENDOR
from emu.engine.library import replace_helper
from emu.engine.native import callback, inlined, load8, load32, load64, outlined, store64
from emu.engine.state import Cpu, cpu_record
from emu.engine.translator import (
    DC_CS_BASE,
    DC_FLAGS,
    DC_PC_NEXT,
    DC_TB,
    TB_FLAGS,
    call_before,
    call_behind,
    end_block,
    end_block_behind,
    forget_instruction,
    is_first,
    narrow_load,
    require_alignment,
    require_natural_alignment,
    see_each_instruction,
    show,
    translate,
)
from emu.engine.vectors import VECTOR_AC, VECTOR_GP
from emu.mmu.walk import OK

_UD2 = 0x0B0F
_LONGEST = 15  # bytes of an instruction
_SYSCALL, _SYSRET, _SYSENTER, _SYSEXIT = 0x105, 0x107, 0x134, 0x135

# what is done about an instruction: nothing; translate it whatever the state of SSE; let it begin a block
_PLAIN, _GENERAL, _FIRST = 0, 1, 2
_CHECKED = 16  # and what is more: let it begin a block, and call emu.cpu.checks with what is more
_SEGMENT_CS = 0x2E  # a prefix that means nothing

_LOOKED_AT = np.zeros(0x100, np.uint8)
_LOOKED_AT[[0x9A, 0x9B, 0x9E, 0x9F, 0xC2, *range(0xC6, 0xC8), *range(0xCA, 0xD0), *range(0xD8, 0xE0)]] = 1
_LOOKED_AT[[0xF6, 0xF7, 0xFF]] = 1


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


@inlined
def _is_of_another_maker(cpu: Cpu, opcode: int) -> bool:
    """SYSCALL and SYSRET outside 64-bit mode, SYSENTER and SYSEXIT in long mode: only AMD, only Intel has these."""
    if load32(cpu.env + VENDOR) == INTEL:
        return (opcode == _SYSCALL or opcode == _SYSRET) and not cpu.insn_flags & HF_CS64
    return (opcode == _SYSENTER or opcode == _SYSEXIT) and cpu.insn_flags & HF_LMA != 0


@inlined
def _operand_size(opcode: int, prefixes: int) -> int:
    """The bytes of an operand in memory of which the engine loads too many, or 0 (SDM vol. 2, ROUNDSS, CVTPS2PD)."""
    if opcode == 0x30A:
        return 4
    if opcode == 0x30B or (opcode == 0x1E6 and prefixes & P_REP):  # CVTDQ2PD
        return 8
    plain = not prefixes & (P_DATA | P_REP | P_REPNE)
    if opcode == 0x15A and plain:
        return 8
    return 4 if 0x160 <= opcode <= 0x162 and plain else 0  # PUNPCKLBW and relatives of MMX


@outlined("qqq")
def _look_at(cpu_at: int, gva: int) -> int:
    """An instruction that is not plain by its opcode alone."""
    cpu = cpu_record(cpu_at)
    opcode, prefixes = cpu.insn_opcode, cpu.insn_prefixes
    if opcode < 0x400 and load8(cpu.absent_at + opcode):
        return _undefined(gva)
    if _SYSCALL <= opcode <= _SYSEXIT and _is_of_another_maker(cpu, opcode):
        return _undefined(gva)
    if prefixes & P_VEX:
        return _GENERAL if _is_vex_general(opcode, prefixes) else _undefined(gva)
    if opcode == 0xCF or opcode == 0x107 or opcode == 0x9B:  # IRET, SYSRET, FWAIT
        return _FIRST
    if 0xCC <= opcode <= 0xCE and prefixes | cpu.insn_rex:  # how long it is can be told then
        return _FIRST
    if opcode == 0x9A or opcode == 0xCA or opcode == 0xCB:
        return _FIRST
    if (opcode == 0x9E or opcode == 0x9F) and cpu.insn_rex:  # LAHF, SAHF: AH is not SPL
        show(cpu.insn_at - 2, 1, _SEGMENT_CS)
    if opcode == 0xC2:
        return _CHECKED + RETURN if code_byte_at(cpu, cpu.insn_at + 1, TRANSLATOR) & 0x80 else _PLAIN
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
    if modrm >> 6 != 3 and _operand_size(opcode, prefixes):
        narrow_load(_operand_size(opcode, prefixes))
    if cpu.insn_rex & REX_R and not prefixes & P_DATA and is_ssse3(opcode):
        show(cpu.insn_at - 5, 1, cpu.insn_rex & ~REX_R)  # MMX registers are eight; the engine would count to sixteen
    extension = modrm >> 3 & 7
    if (opcode == 0xF6 or opcode == 0xF7) and extension == 1:  # TEST, as with 0
        show(cpu.insn_at - 1, 1, modrm & ~0x38)
    elif (opcode == 0xC6 or opcode == 0xC7) and extension == 0 and cpu.insn_rex & REX_R:
        show(cpu.insn_at - 3, 1, cpu.insn_rex & ~REX_R)
    elif opcode == 0x1C2:  # CMPPS and relatives: the upper bits of the predicate do not count
        at = cpu.insn_at + memory_size(cpu, TRANSLATOR)
        show(at, 1, code_byte_at(cpu, at, TRANSLATOR) & 7)
    elif (opcode == 0xD9 or opcode == 0xDD) and modrm >> 6 != 3 and extension & 5 == 4:  # FLDENV FNSTENV FRSTOR FNSAVE
        return _FIRST
    elif opcode == 0x1C7 and extension == 7 and modrm >> 6 == 3:  # RDSEED, RDPID
        return _undefined(gva)
    elif opcode == 0xFF and extension == 3:  # far CALL, as 9A: through a gate, maybe
        return _FIRST
    elif opcode == 0x121 or opcode == 0x123:
        return _FIRST
    elif opcode == 0x100 and extension & ~1 == 2:  # LLDT, LTR
        return _CHECKED + SYSTEM_BASE if cpu.insn_flags & HF_LMA else _PLAIN
    elif opcode == 0x101 and modrm >> 6 == 3 and extension == 4 and not cpu.insn_flags & HF_CS64:  # SMSW
        wide = (cpu.insn_flags & HF_CS32 != 0) != (prefixes & P_DATA != 0)
        return _CHECKED + MACHINE_STATUS if wide else _PLAIN
    elif opcode == 0x101 and modrm >> 6 != 3 and extension & ~1 == 2:  # LGDT, LIDT
        return _CHECKED + TABLE_BASE if cpu.insn_flags & HF_CS64 else _PLAIN
    elif opcode == 0x1AE and modrm >> 6 != 3:  # FXSAVE and relatives; STMXCSR
        if extension != 7:  # CLFLUSH
            return _CHECKED + SHOW_SSE if extension == 3 else _FIRST
    elif opcode == 0x1AE and prefixes & P_REP and modrm >> 6 == 3 and extension & ~1 == 2:  # WRFSBASE, WRGSBASE
        return _CHECKED + SEGMENT_BASE if cpu.insn_rex & REX_W else _PLAIN
    return _GENERAL if MAP_38 | 0xF0 <= opcode <= MAP_38 | 0xFF else _PLAIN


@inlined
def _with_exceptions(cpu: Cpu, action: int, flags: int) -> int:
    """What is done about an instruction while not all floating-point exceptions are masked."""
    opcode = cpu.insn_opcode
    if action >= _CHECKED or flags & (HF_EM | HF_TS) or cpu.insn_prefixes & (P_LOCK | P_VEX):
        return action
    if flags & HF_UNMASKED_X87:
        if 0xD8 <= opcode <= 0xDF:
            kind = x87_kind(opcode, cpu.insn_modrm)
            return action if kind == NOT_WAITING else _CHECKED + X87_WAITING + kind - WAITING
        if is_mmx(opcode, cpu.insn_prefixes):
            return _CHECKED + X87_WAITING
    if flags & HF_UNMASKED_SSE and flags & HF_OSFXSR and is_sse_arithmetic(opcode):
        return _CHECKED + SSE
    return action


@inlined
def _is_sse(cpu: Cpu) -> bool:
    """Whether an instruction that is one of MMX or SSE is one of SSE."""
    opcode = cpu.insn_opcode
    prefixed = cpu.insn_prefixes & (P_DATA | P_REP | P_REPNE) != 0
    return prefixed or 0x110 <= opcode <= 0x15F or opcode == 0x1C2 or opcode == 0x1C6


@inlined
def _checks_alignment(cpu: Cpu, flags: int) -> bool:
    """Whether programs must align their operands (SDM vol. 3A, 2.5, CR0.AM)."""
    return flags & HF_AC != 0 and flags & HF_CPL == 3 and load64(cpu.env + CR0) & CR0_AM != 0


@callback("vqqiiq")
def on_misaligned(engine_cpu: int, gva: int, access: int, index: int, code_at: int) -> None:
    """The engine's CPUClass.do_unaligned_access: #GP of an SSE instruction, or #AC (SDM vol. 3A, 6.15)."""
    cpu = cpu_record(running_cpu())
    if _checks_alignment(cpu, mode_flags(cpu)):
        store_state(cpu, code_at)
        if decode_running(cpu) and not wants_alignment(cpu.insn_opcode, cpu.insn_prefixes):
            raise_exception(cpu, VECTOR_AC, 0)
    raise_exception_from(cpu, VECTOR_GP, 0, code_at)


@inlined
def _prepare(cpu: Cpu, gva: int, flags: int) -> int:
    decode(cpu.at, gva, flags, TRANSLATOR)
    opcode = cpu.insn_opcode
    if cpu.insn_prefixes & (P_LOCK | P_VEX) or opcode >= MAP_0F or _LOOKED_AT[opcode]:
        return _look_at(cpu.at, gva)
    return _PLAIN


@inlined
def _behind(cpu: Cpu, disas: int, action: int) -> None:
    """The instruction was translated."""
    opcode, what = cpu.insn_opcode, action - _CHECKED
    if what == SSE:
        call_behind(cpu.tcg_context, cpu.before_at, SSE_DONE)
        end_block_behind(disas)
    elif what == X87_ARITHMETIC or what == X87_STORE:
        call_behind(cpu.tcg_context, cpu.before_at, X87_DONE)
        end_block_behind(disas)
    elif is_ssse3(opcode) and not cpu.insn_prefixes & P_DATA:
        call_behind(cpu.tcg_context, cpu.before_at, MMX_DONE)
    elif loads_masks(opcode, cpu.insn_modrm):
        end_block_behind(disas)


@outlined("qqqq")
def _leaves_segment(cpu_at: int, disas: int, offset: int) -> int:
    """1 when the instruction at ``offset`` is not to be translated: it does not lie within its code segment.

    At the beginning of a block that is found out when it is to run: this does not return then.
    """
    cpu = cpu_record(cpu_at)
    limit = load32(cpu.env + CS + LIMIT)
    if offset >> 32:
        cpu.miss_kind = WRAPPED
    else:
        flags = load32(load64(disas + DC_TB) + TB_FLAGS)
        length = decode_whole(cpu_at, load64(disas + DC_PC_NEXT), flags, MEMORY)
        if limit == 0xFFFF_FFFF or offset + max(length, 1) - 1 <= limit:
            return 0
        cpu.miss_kind = BEYOND_LIMIT
    if is_first(disas):
        abandon_instruction(cpu)
    cpu.miss_kind = OK
    end_block(disas)
    return 1


@callback("vqq")
def on_translate(disas: int, engine_cpu: int) -> None:
    """In the place of the translator's function for one instruction."""
    forget_instruction()
    cpu = cpu_record(running_cpu())
    flags = load32(load64(disas + DC_TB) + TB_FLAGS)
    if not flags & HF_CS64:
        offset = load64(disas + DC_PC_NEXT) - load64(disas + DC_CS_BASE)
        if offset + _LONGEST > load32(cpu.env + CS + LIMIT) and _leaves_segment(cpu.at, disas, offset):
            return
    if _checks_alignment(cpu, flags):
        require_natural_alignment()
    cpu.insn_cut = 0
    action = _prepare(cpu, load64(disas + DC_PC_NEXT), flags)
    if cpu.insn_cut:
        end_block(disas)
        return
    if flags & (HF_UNMASKED_SSE | HF_UNMASKED_X87):
        action = _with_exceptions(cpu, action, flags)
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
    elif flags & HF_TS and cpu.insn_opcode >= MAP_0F and (flags & HF_EM or (not flags & HF_OSFXSR and _is_sse(cpu))):
        # MMX and SSE: #UD before #NM
        before = load64(disas + DC_FLAGS)
        store64(disas + DC_FLAGS, before & ~HF_TS)
        translate(disas, engine_cpu)
        store64(disas + DC_FLAGS, before)
    else:
        translate(disas, engine_cpu)
    if cpu.insn_opcode >= 0xD8:
        _behind(cpu, disas, action)


see_each_instruction(on_translate)
replace_helper("skinit", before_instruction)
replace_helper("write_crN", on_write_cr)
replace_helper("read_crN", on_read_cr)
replace_helper("set_dr", on_set_dr)
replace_helper("get_dr", on_get_dr)
replace_helper("iret_protected", on_iret_protected)
replace_helper("iret_real", on_iret_real)
replace_helper("sysret", on_sysret)
replace_helper("lret_protected", on_return_protected)
replace_helper("lcall_protected", on_call_protected)
for _name, _function in (floatflags.HELPERS | floatnan.HELPERS | sserounding.HELPERS).items():
    replace_helper(_name, _function)
