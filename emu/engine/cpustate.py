"""The CPU state: where Unicorn's x86 core keeps it, and a readable view of it for Python.

``env`` is the address of the engine's CPU state (QEMU 5.0's ``CPUX86State``).  Both planes read and write it in
place; :class:`emu.engine.engine.Engine` verifies the layout at start-up.  Offsets are bytes from ``env``.
"""

from __future__ import annotations

import ctypes

from emu.engine.native import compiled, inlined, load32, load64, signed, store32, store64, unsigned

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(0, 64, 8)  # general registers; R8..R15 follow at 64
RIP = 128  # u64; the instruction pointer within CS, not the linear address
EFLAGS = 136  # u64; without the arithmetic flags and DF, see below
CC_DST = 144  # u64
CC_SRC = 152  # u64; OSZAPC while CC_OP is CC_OP_EFLAGS
CC_SRC2 = 160  # u64
CC_OP = 168  # u32; how the arithmetic flags follow from CC_*
DF = 172  # i32; +1 when EFLAGS.DF is 0, -1 when it is 1
HFLAGS = 176  # u32; CPU mode as the translator sees it
HFLAGS2 = 180  # u32
SEGMENTS = 184  # ES CS SS DS FS GS, SEGMENT_SIZE each
LDTR, TR, GDTR, IDTR = 328, 352, 376, 400
CR0, CR2, CR3, CR4 = 424, 440, 448, 456
EFER = 592
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 4800, 4808, 4816
STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE, TSC_AUX = 4824, 4840, 4848, 4856, 4864, 4896
PKRU = 5304  # u32
ERROR_CODE = 5384  # i32; of the exception being raised
EXCEPTION_IS_INT = 5388  # i32; 1 while INT n, INT3 or INTO is being raised
EXCEPTION_NEXT_EIP = 5392  # u64; RIP behind that instruction
DR = 5400  # DR0..DR7, u64 each
OLD_EXCEPTION = 5496  # i32; the core's own double fault detection, kept at -1
ENV_SIZE = 5568  # bytes that belong to the architectural state: what a save copies

SEGMENT_SIZE = 24
SELECTOR, BASE, LIMIT, FLAGS = 0, 8, 16, 20  # within a segment: u32, u64, u32, u32
ES, CS, SS, DS, FS, GS = range(SEGMENTS, SEGMENTS + 6 * SEGMENT_SIZE, SEGMENT_SIZE)

CC_OP_EFLAGS = 1  # CC_OP value: CC_SRC holds the flags themselves

HF_CPL = 3
HF_INHIBIT_IRQ = 1 << 3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_PE = 1 << 7
HF_TF = 1 << 8
HF_CR0 = 7 << 9  # CR0.MP, EM and TS
HF_EM, HF_TS = 1 << 10, 1 << 11
HF_IOPL = 3 << 12
HF_LMA = 1 << 14
HF_CS64 = 1 << 15
HF_RF = 1 << 16
HF_VM = 1 << 17
HF_AC = 1 << 18
HF_GUEST = 1 << 21  # a hypervisor intercepts instructions
HF_OSFXSR = 1 << 22
HF_SMAP = 1 << 23
HF_UNMASKED_SSE, HF_UNMASKED_X87 = 1 << 27, 1 << 28  # of emu's own, see emu.cpu.floatexceptions

HF2_NMI = 1 << 2  # an NMI is being handled; the engine's IRET clears it

FLAG_CF, FLAG_PF, FLAG_AF, FLAG_ZF, FLAG_SF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7
FLAG_TF, FLAG_IF, FLAG_DF, FLAG_OF = 1 << 8, 1 << 9, 1 << 10, 1 << 11
FLAG_IOPL, FLAG_NT, FLAG_RF, FLAG_VM, FLAG_AC = 3 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 18
FLAGS_ARITHMETIC = FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF

CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_WP, CR0_PG = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 16, 1 << 31
CR0_NE, CR0_AM, CR0_NW, CR0_CD = 1 << 5, 1 << 18, 1 << 29, 1 << 30
CR4_VME, CR4_DE, CR4_PSE, CR4_PAE, CR4_PGE = 1, 1 << 3, 1 << 4, 1 << 5, 1 << 7
CR4_OSXMMEXCPT = 1 << 10
CR4_UMIP, CR4_LA57, CR4_PCIDE = 1 << 11, 1 << 12, 1 << 17
CR4_SMEP, CR4_SMAP, CR4_PKE, CR4_PKS = 1 << 20, 1 << 21, 1 << 22, 1 << 24
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11

REGISTER_NAMES = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                  "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")  # fmt: skip
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")


@compiled
def set_hflags_mode(env: int) -> None:
    """Recompute the mode bits of HFLAGS from CR0, EFER and the segment caches, after any was edited.

    The bits that HFLAGS shares with EFLAGS (TF, IOPL, RF, VM, AC) stay clear: the engine takes those from EFLAGS
    itself, and a copy here would outlive them.  SS32 follows SS in 64-bit mode too, although nothing depends on it
    there, because blocks translated under another value of it would be translated again.
    """
    mode = HF_CPL | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_PE | HF_CR0 | HF_LMA | HF_CS64
    hflags = load32(env + HFLAGS) & ~(mode | HF_TF | HF_IOPL | HF_RF | HF_VM | HF_AC)
    cr0 = load64(env + CR0)
    hflags |= (cr0 & (CR0_MP | CR0_EM | CR0_TS)) << 8
    hflags |= (load32(env + SS + FLAGS) >> 13) & HF_CPL
    if cr0 & CR0_PE:
        hflags |= HF_PE
    if load64(env + EFER) & EFER_LMA:
        hflags |= HF_LMA
    if load32(env + SS + FLAGS) & (1 << 22):
        hflags |= HF_SS32
    cs_flags = load32(env + CS + FLAGS)
    if hflags & HF_LMA and cs_flags & (1 << 21):
        hflags |= HF_CS64 | HF_CS32
    else:
        if cs_flags & (1 << 22):
            hflags |= HF_CS32
        if not cr0 & CR0_PE or load64(env + EFLAGS) & FLAG_VM or not hflags & HF_CS32:
            hflags |= HF_ADDSEG
        elif load64(env + DS + BASE) | load64(env + ES + BASE) | load64(env + SS + BASE):
            hflags |= HF_ADDSEG
    store32(env + HFLAGS, hflags)


@inlined
def set_arithmetic_flags(env: int, flags: int) -> None:
    """Set OF, SF, ZF, AF, PF, CF and DF from an EFLAGS image."""
    store32(env + CC_OP, CC_OP_EFLAGS)
    store64(env + CC_SRC, flags & FLAGS_ARITHMETIC)
    store32(env + DF, -1 if flags & FLAG_DF else 1)


@inlined
def write_eflags(env: int, flags: int) -> None:
    """Set EFLAGS from a complete image, whether the engine is running or not.

    While it runs, it looks for the arithmetic flags and DF in their places of :func:`set_arithmetic_flags`; when it
    starts, it moves them there from EFLAGS.
    """
    store64(env + EFLAGS, flags)
    set_arithmetic_flags(env, flags)


class Segment:
    """One segment register: visible selector and hidden descriptor cache."""

    def __init__(self, env: int, offset: int) -> None:
        self._at = env + offset

    @property
    def selector(self) -> int:
        return ctypes.c_uint32.from_address(self._at + SELECTOR).value

    @property
    def base(self) -> int:
        return ctypes.c_uint64.from_address(self._at + BASE).value

    @property
    def limit(self) -> int:
        return ctypes.c_uint32.from_address(self._at + LIMIT).value

    @property
    def flags(self) -> int:
        """The descriptor's second dword: type at bit 8, DPL at 13, L at 21, D/B at 22, G at 23."""
        return ctypes.c_uint32.from_address(self._at + FLAGS).value

    def set(self, selector: int, base: int, limit: int, flags: int) -> None:
        ctypes.c_uint32.from_address(self._at + SELECTOR).value = selector
        ctypes.c_uint64.from_address(self._at + BASE).value = base
        ctypes.c_uint32.from_address(self._at + LIMIT).value = limit
        ctypes.c_uint32.from_address(self._at + FLAGS).value = flags


class CpuState:
    """The registers of one virtual CPU, read and written in place.

    ``cpu.rax`` .. ``cpu.r15``, ``cpu.cr0`` .. ``cpu.cr4``, ``cpu.efer``, ``cpu.rip`` are unsigned 64-bit integers,
    ``cpu.cs`` .. are :class:`Segment`.  Only valid while the engine exists and is not inside ``emu_start``.
    """

    es: Segment
    cs: Segment
    ss: Segment
    ds: Segment
    fs: Segment
    gs: Segment
    ldtr: Segment
    tr: Segment
    gdtr: Segment
    idtr: Segment

    _FIELDS = {
        **{name: 8 * i for i, name in enumerate(REGISTER_NAMES)},
        "rip": RIP, "eflags": EFLAGS, "cr0": CR0, "cr2": CR2, "cr3": CR3, "cr4": CR4, "efer": EFER,
        "star": STAR, "lstar": LSTAR, "fmask": FMASK,
        **{f"dr{i}": DR + 8 * i for i in range(8)},
    }  # fmt: skip

    def __init__(self, env: int) -> None:
        self.__dict__["_env"] = env
        for i, name in enumerate(SEGMENT_NAMES):
            self.__dict__[name] = Segment(env, SEGMENTS + i * SEGMENT_SIZE)
        for name, offset in (("ldtr", LDTR), ("tr", TR), ("gdtr", GDTR), ("idtr", IDTR)):
            self.__dict__[name] = Segment(env, offset)

    def __getattr__(self, name: str) -> int:
        offset = self._FIELDS.get(name)
        if offset is None:
            raise AttributeError(name)
        return unsigned(load_u64(self._env + offset))

    def __setattr__(self, name: str, value: int) -> None:
        ctypes.c_int64.from_address(self._env + self._FIELDS[name]).value = signed(value)

    @property
    def cpl(self) -> int:
        """Current privilege level, 0 to 3."""
        return self.hflags & HF_CPL

    @property
    def hflags(self) -> int:
        return ctypes.c_uint32.from_address(self._env + HFLAGS).value

    def forget_modes(self) -> None:
        """What the engine has derived from CR4, an interrupt shadow and an NMI in service are forgotten, as by INIT."""
        ctypes.c_uint32.from_address(self._env + HFLAGS).value &= ~(HF_INHIBIT_IRQ | HF_OSFXSR | HF_SMAP | HF_GUEST)
        ctypes.c_uint32.from_address(self._env + HFLAGS2).value &= ~HF2_NMI

    def block_nmi(self) -> None:
        """An NMI is being handled, until IRET."""
        at = ctypes.c_uint32.from_address(self._env + HFLAGS2)
        at.value |= HF2_NMI

    @property
    def nmi_blocked(self) -> bool:
        """Whether an NMI is being handled."""
        return bool(ctypes.c_uint32.from_address(self._env + HFLAGS2).value & HF2_NMI)

    @property
    def interrupts_enabled(self) -> bool:
        """EFLAGS.IF."""
        return bool(load_u64(self._env + EFLAGS) & FLAG_IF)

    @property
    def bits(self) -> int:
        """Width of the code segment: 16, 32 or 64."""
        hflags = self.hflags
        return 64 if hflags & HF_CS64 else 32 if hflags & HF_CS32 else 16

    @property
    def pc(self) -> int:
        """The linear address of the next instruction."""
        return (self.cs.base + self.rip) & ((1 << 64) - 1 if self.bits == 64 else (1 << 32) - 1)

    def save(self) -> bytes:
        """A copy of the whole state, for :meth:`restore`."""
        return ctypes.string_at(self._env, ENV_SIZE)

    def restore(self, saved: bytes) -> None:
        ctypes.memmove(self._env, saved, ENV_SIZE)


def load_u64(address: int) -> int:
    """The int64 at a host address, from interpreted code."""
    return ctypes.c_int64.from_address(address).value
