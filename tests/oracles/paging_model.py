"""x86 address translation, written down as plainly as the manual puts it: the first of two oracles for the MMU.

The text followed is the Intel SDM, volume 3, chapter 4 ("Paging"); section numbers below are of that chapter. Nothing
here is fast and nothing is shared with the emulator's own walker, so that a misreading would have to be made twice to
go unnoticed. Shadow stacks and the caching of translations are left out: every call of `translate` is a walk on an
empty TLB. What PAE paging keeps in registers, its PDPTEs, is part of `Control`.

Where QEMU 5.0.1 (the core inside Unicorn 2.1.4) departs from the manual
    The model can follow either. `Rules` has one switch for each departure; `QEMU` and `SDM` are the two settings.

Departures that need no switch, because they lie outside one walk or outside what the tests construct
    - CR3 bits above the physical-address width raise #GP at MOV CR3; QEMU takes them. They are masked to 51:12 here.
    - CPUID: QEMU walks 1 GiB pages, NX, PSE-36, SMEP whether or not the CPU model announces them.
    - An access over the end of a page is two walks, lower page first, here and in QEMU: accessed and dirty flags of the
      lower page are set even when the upper page faults, and a lower page that faults hides an upper address that is
      not canonical. The manual promises neither, and a processor checks the whole operand for canonical form first.
    - A 32-bit access over the end of the 4 GiB space wraps; QEMU then reports 0x1_0000_0000 in CR2. Not constructed.
    - Entries in physical memory that does not exist read as zero, that is not present, in both.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

PAGE = 4096  # bytes in the smallest page; no access below crosses more than one multiple of it

CR0_PE = 1 << 0  # protected mode
CR0_WP = 1 << 16  # supervisor writes obey R/W
CR0_PG = 1 << 31  # paging
CR4_PSE = 1 << 4  # 4 MiB pages in 32-bit paging
CR4_PAE = 1 << 5  # 8-byte entries
CR4_LA57 = 1 << 12  # five levels in long mode
CR4_SMEP = 1 << 20  # no supervisor fetch from user pages
CR4_SMAP = 1 << 21  # no supervisor data access to user pages
CR4_PKE = 1 << 22  # protection keys for user pages
CR4_PKS = 1 << 24  # protection keys for supervisor pages
EFER_LME = 1 << 8  # long mode wanted
EFER_LMA = 1 << 10  # long mode active
EFER_NXE = 1 << 11  # entry bit 63 forbids fetches

PRESENT = 1 << 0
WRITABLE = 1 << 1  # R/W
USER = 1 << 2  # U/S
ACCESSED = 1 << 5
DIRTY = 1 << 6
PAGE_SIZE = 1 << 7  # PS
EXECUTE_DISABLE = 1 << 63  # XD, which AMD and QEMU call NX

ERROR_P = 1 << 0  # the walk reached the end: rights or reserved bits, not absence
ERROR_WR = 1 << 1  # the access was a write
ERROR_US = 1 << 2  # the access was a user-mode access
ERROR_RSVD = 1 << 3  # a reserved bit was set in a present entry
ERROR_ID = 1 << 4  # the access was a fetch, where the processor says so
ERROR_PK = 1 << 5  # the page's protection key forbids the access

PHYS_BITS = 40  # MAXPHYADDR of every CPU model of Unicorn 2.1.4 when it runs 64-bit code (TCG_PHYS_ADDR_BITS)


class Kind(enum.Enum):
    """What an access does."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"


@dataclass(frozen=True)
class Control:
    """The processor state that a walk depends on.

    Attributes:
        cr0, cr3, cr4, efer: the registers; only the bits named in this module matter.
        cpl: current privilege level, 0 to 3.
        ac: EFLAGS.AC.
        pkru, pkrs: rights by protection key, of user and of supervisor pages: bit 2k AD, bit 2k + 1 WD.
        pdptes: the PDPTE registers, as `load_pdptes` gives them; None when they are loaded just before the access.
    """

    cr0: int
    cr3: int
    cr4: int
    efer: int
    cpl: int
    ac: bool = False
    pkru: int = 0
    pkrs: int = 0
    pdptes: tuple[int, ...] | None = None

    @property
    def pae(self) -> bool:
        """PAE paging is in use."""
        return bool(self.cr0 & CR0_PG and self.cr4 & CR4_PAE) and not self.long_mode

    @property
    def long_mode(self) -> bool:
        """IA-32e mode is active, hence 64-bit linear addresses and 4- or 5-level paging."""
        return bool(self.efer & EFER_LMA)

    def __repr__(self) -> str:
        return (
            f"Control(cr0={self.cr0:#x}, cr3={self.cr3:#x}, cr4={self.cr4:#x}, efer={self.efer:#x}, "
            f"cpl={self.cpl}, ac={self.ac}, pkru={self.pkru:#x}, pkrs={self.pkrs:#x}, pdptes={self.pdptes})"
        )


@dataclass(frozen=True)
class Access:
    """One memory access.

    Attributes:
        kind: read, write or fetch.
        gva: guest virtual (linear) address of the first byte.
        size: bytes, 1 to 8; it may cross one page boundary.
        implicit: an implicit supervisor access (4.6.1), such as a descriptor fetch; CPL plays no part in it.
        value: what a write stores, little-endian in `size` bytes.
    """

    kind: Kind
    gva: int
    size: int = 1
    implicit: bool = False
    value: int = 0

    def parts(self) -> list[tuple[int, int]]:
        """The access cut at the page boundary: (gva, bytes), lower page first. The address wraps at 64 bits."""
        first = min(self.size, PAGE - self.gva % PAGE)
        if first == self.size:
            return [(self.gva, self.size)]
        return [(self.gva, first), ((self.gva + first) % 2**64, self.size - first)]

    def __repr__(self) -> str:
        extra = ", implicit=True" if self.implicit else ""
        extra += f", value={self.value:#x}" if self.kind is Kind.WRITE else ""
        return f"Access({self.kind}, {self.gva:#x}, {self.size}{extra})"


@dataclass(frozen=True)
class Rules:
    """Whose behaviour to follow; each field is one departure of QEMU 5.0.1 from the manual.

    Attributes:
        pdpte_registers: the four PDPTEs of PAE paging are loaded into registers by MOV CR3 and changes of paging bits,
            which raise #GP for reserved bits, 2:1 and 8:5 among them (4.4.1). QEMU reads the PDPTE from memory in every
            walk, does not know these low bits, and raises #PF for the others.
        pks: there are protection keys for supervisor pages.
        giga_accessed_early: QEMU sets the accessed flag of an entry that maps 1 GiB before it checks that entry's
            address bits and the rights, so the flag stays set after a fault. By 4.8 only a used entry is marked.
        implicit_obeys_ac: QEMU lets EFLAGS.AC switch SMAP off for implicit supervisor accesses made at CPL 0 to 2.
            By 4.6.1 AC matters to explicit accesses only.
    """

    pdpte_registers: bool
    giga_accessed_early: bool
    implicit_obeys_ac: bool
    pks: bool


SDM = Rules(pdpte_registers=True, giga_accessed_early=False, implicit_obeys_ac=False, pks=True)
QEMU = Rules(pdpte_registers=False, giga_accessed_early=True, implicit_obeys_ac=True, pks=False)

Updates = tuple[tuple[int, int], ...]  # (gpa of an entry, its new value), in the order of the walk


@dataclass(frozen=True)
class Rights:
    """What the entries of a walk allow together (4.6).

    Attributes:
        user: every entry has U/S = 1, a "user-mode address".
        writable: every entry has R/W = 1.
        executable: no entry has XD = 1.
    """

    user: bool
    writable: bool
    executable: bool


@dataclass(frozen=True)
class Translation:
    """A walk that succeeded: the physical address, the entries it marked, the page's size in bytes, rights and key."""

    gpa: int
    updates: Updates
    page_size: int
    rights: Rights
    key: int = 0


@dataclass(frozen=True)
class PageFault:
    """A walk that ended in #PF. Entries above the failing one keep the accessed flags set on the way."""

    cr2: int
    error_code: int
    updates: Updates


@dataclass(frozen=True)
class NonCanonical:
    """The address is not canonical: #GP(0), no walk."""

    gva: int


@dataclass(frozen=True)
class Outcome:
    """What one access did, in terms that every implementation can report.

    Attributes:
        fault: None, or (vector, error code, CR2); CR2 is None for #GP.
        gpas: guest physical address of each part that was translated; one, or two over a page boundary. Empty when
            the access faulted.
        value: the integer read, little-endian; None for writes, fetches, implicit accesses, faults and outside.
        outside: some part was translated to physical memory that does not exist. Bytes that do have memory are
            still written; a lower part outside ends the access before the upper page is walked.
        changed: every aligned 8-byte word of physical memory that is different now, (gpa, new value), ascending.
    """

    fault: tuple[int, int, int | None] | None = None
    gpas: tuple[int, ...] = ()
    value: int | None = None
    outside: bool = False
    changed: tuple[tuple[int, int], ...] = ()

    @property
    def undefined(self) -> bool:
        """Only the upper part lies outside: nobody says what happens, so nothing after it can be compared.

        Unicorn walks anew for every byte stored there, and sees what the bytes before did to the tables.
        """
        return self.outside and len(self.gpas) == 2

    def __repr__(self) -> str:
        fault = None if self.fault is None else tuple(None if x is None else hex(x) for x in self.fault)
        gpas = [hex(gpa) for gpa in self.gpas]
        value = None if self.value is None else hex(self.value)
        changed = {hex(gpa): hex(word) for gpa, word in self.changed}
        return f"Outcome({fault=}, {gpas=}, {value=}, outside={self.outside}, {changed=})"


class Memory:
    """Physical memory from 0 to the size of `image`. Outside of it reads give zeros and writes are lost.

    `image` is never changed; `frames` (gfn -> 4096 bytes) lie over it, and a frame is copied there when first written.
    """

    def __init__(self, image: bytes, frames: Mapping[int, bytes] | None = None) -> None:
        self.image = image
        self.frames = {gfn: bytearray(data) for gfn, data in (frames or {}).items()}

    def contains(self, gpa: int) -> bool:
        return gpa < len(self.image)

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes that lie in one frame."""
        if not self.contains(gpa):
            return bytes(size)
        frame = self.frames.get(gpa // PAGE)
        if frame is None:
            return self.image[gpa : gpa + size]
        return bytes(frame[gpa % PAGE : gpa % PAGE + size])

    def write(self, gpa: int, data: bytes) -> None:
        """Bytes that lie in one frame."""
        if not self.contains(gpa):
            return
        gfn, offset = divmod(gpa, PAGE)
        frame = self.frames.setdefault(gfn, bytearray(self.image[gfn * PAGE : (gfn + 1) * PAGE]))
        frame[offset : offset + len(data)] = data

    def read32(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 4), "little")

    def read64(self, gpa: int) -> int:
        return int.from_bytes(self.read(gpa, 8), "little")


class _Fault(Exception):
    """The walk ends in #PF; `bits` are P, RSVD and PK of the error code."""

    def __init__(self, bits: int) -> None:
        self.bits = bits


@dataclass
class _Walk:
    """One walk in progress: its inputs, the entries used so far and the flags it has set in them."""

    memory: Memory
    control: Control
    kind: Kind
    gva: int
    implicit: bool
    phys_bits: int
    rules: Rules
    used: list[int] = field(default_factory=list)  # entries whose U/S, R/W and XD count
    marked: dict[int, int] = field(default_factory=dict)  # gpa of an entry -> its value with flags set

    # What the inputs say

    @property
    def supervisor(self) -> bool:
        return self.implicit or self.control.cpl < 3

    @property
    def nxe(self) -> bool:
        return bool(self.control.efer & EFER_NXE)

    def reserved64(self, low_bits_of_page: int = 0) -> int:
        """Reserved bits that all 8-byte entries have in common; `low_bits_of_page` adds those of a large page.

        Bits 51:MAXPHYADDR always, bit 63 unless NXE, bits 62:52 in PAE paging (tables 4-8 to 4-20). A large page's
        address begins at its own size, with bit 12 (PAT) between.
        """
        reserved = _bits(51, self.phys_bits)
        if not self.nxe:
            reserved |= EXECUTE_DISABLE
        if not self.control.long_mode:
            reserved |= _bits(62, 52)
        if low_bits_of_page:
            reserved |= _bits(low_bits_of_page - 1, 13)
        return reserved

    # Entries

    def entry(self, table: int, index: int, size: int) -> tuple[int, int]:
        """The entry of `table` at `index`: (its gpa, its value), seeing the flags this walk has already set."""
        gpa = table + index * size
        if gpa in self.marked:
            return gpa, self.marked[gpa]
        return gpa, self.memory.read32(gpa) if size == 4 else self.memory.read64(gpa)

    def require(self, value: int, reserved: int) -> None:
        """Fault unless the entry is present and free of reserved bits (4.7: RSVD can be set only with P)."""
        if not value & PRESENT:
            raise _Fault(0)
        if value & reserved:
            raise _Fault(ERROR_P | ERROR_RSVD)

    def mark(self, gpa: int, value: int, flags: int) -> None:
        """Set accessed or dirty flags in an entry that lacks any of them (4.8)."""
        if value & flags != flags:
            self.marked[gpa] = value | flags

    # The end of every walk

    def finish(self, gpa: int, value: int, page_base: int, page_size: int) -> Translation:
        """Check the rights, mark the entry that maps the page, and form the address."""
        rights = Rights(
            user=all(entry & USER for entry in self.used),
            writable=all(entry & WRITABLE for entry in self.used),
            executable=not any(entry & EXECUTE_DISABLE for entry in self.used),
        )
        key = _field(value, 62, 59) if self.control.long_mode else 0
        if self.key_forbids(rights, key):
            raise _Fault(ERROR_P | ERROR_PK)
        if not self.allowed(rights):
            raise _Fault(ERROR_P)
        self.mark(gpa, value, ACCESSED | DIRTY if self.kind is Kind.WRITE else ACCESSED)
        offset = self.gva % page_size
        return Translation(page_base + offset, tuple(self.marked.items()), page_size, rights, key)

    def allowed(self, rights: Rights) -> bool:
        """The determination of access rights, case by case as in 4.6.1."""
        control = self.control
        if self.supervisor:
            if self.kind is Kind.FETCH:
                smep = bool(control.cr4 & CR4_SMEP)
                return rights.executable and not (rights.user and smep)
            if rights.user and control.cr4 & CR4_SMAP and not self.smap_suspended():
                return False
            if self.kind is Kind.READ:
                return True
            return rights.writable or not control.cr0 & CR0_WP
        if not rights.user:
            return False
        return {Kind.READ: True, Kind.WRITE: rights.writable, Kind.FETCH: rights.executable}[self.kind]

    def key_forbids(self, rights: Rights, key: int) -> bool:
        """The determination of access rights by protection key (4.6.2), of data accesses in long mode."""
        control = self.control
        if not control.long_mode or self.kind is Kind.FETCH:
            return False
        register = 0
        if rights.user and control.cr4 & CR4_PKE:
            register = control.pkru
        if not rights.user and control.cr4 & CR4_PKS and self.rules.pks:
            register = control.pkrs
        access_disable, write_disable = register >> 2 * key & 1, register >> 2 * key + 1 & 1
        if access_disable:
            return True
        if not write_disable or self.kind is Kind.READ:
            return False
        return bool(control.cr0 & CR0_WP) or (rights.user and not self.supervisor)

    def smap_suspended(self) -> bool:
        """EFLAGS.AC = 1 allows explicit supervisor accesses to user pages in spite of SMAP."""
        if self.implicit:
            return self.rules.implicit_obeys_ac and self.control.ac and self.control.cpl < 3
        return self.control.ac

    def error_code(self, bits: int) -> int:
        """4.7. I/D needs SMEP, or NXE together with PAE."""
        code = bits
        if self.kind is Kind.WRITE:
            code |= ERROR_WR
        if not self.supervisor:
            code |= ERROR_US
        cr4 = self.control.cr4
        if self.kind is Kind.FETCH and (cr4 & CR4_SMEP or (cr4 & CR4_PAE and self.nxe)):
            code |= ERROR_ID
        return code

    # The formats

    def walk_32bit(self) -> Translation:
        """4.3: two levels of 4-byte entries; 4 MiB pages with CR4.PSE, their address 40 bits wide with PSE-36."""
        pde_gpa, pde = self.entry(self.control.cr3 & 0xFFFF_F000, _field(self.gva, 31, 22), 4)
        self.require(pde, 0)
        self.used = [pde]
        if pde & PAGE_SIZE and self.control.cr4 & CR4_PSE:
            # Table 4-4: bits M-1:32 of the address stand in bits M-20:13 of the entry, the rest up to 21 is reserved.
            high_bits = min(self.phys_bits, 40) - 32
            self.require(pde, _bits(21, 13 + high_bits))
            base = _field(pde, 12 + high_bits, 13) << 32 | pde & _bits(31, 22)
            return self.finish(pde_gpa, pde, base, 4 << 20)
        self.mark(pde_gpa, pde, ACCESSED)
        pte_gpa, pte = self.entry(pde & 0xFFFF_F000, _field(self.gva, 21, 12), 4)
        self.require(pte, 0)
        self.used.append(pte)
        return self.finish(pte_gpa, pte, pte & 0xFFFF_F000, 4 << 10)

    def walk_pae(self) -> Translation:
        """4.4: a PDPTE, which has no rights and no flags, then two levels of 8-byte entries."""
        if self.rules.pdpte_registers:
            assert self.control.pdptes is not None
            pdpte = self.control.pdptes[_field(self.gva, 31, 30)]
            self.require(pdpte, 0)  # those bits were looked at when it was loaded
        else:
            _, pdpte = self.entry(self.control.cr3 & 0xFFFF_FFE0, _field(self.gva, 31, 30), 8)
            self.require(pdpte, self.reserved64() | EXECUTE_DISABLE)
        return self.walk_directory(pdpte)

    def walk_5level(self) -> Translation:
        """4.5: one level more, whose entries map no page."""
        pml5e_gpa, pml5e = self.entry(self.control.cr3 & _bits(51, 12), _field(self.gva, 56, 48), 8)
        self.require(pml5e, self.reserved64() | PAGE_SIZE)
        self.used = [pml5e]
        self.mark(pml5e_gpa, pml5e, ACCESSED)
        return self.walk_4level(pml5e)

    def walk_4level(self, above: int) -> Translation:
        """4.5: four levels of 8-byte entries, pages of 1 GiB, 2 MiB and 4 KiB; `above` is CR3 or a PML5E."""
        pml4e_gpa, pml4e = self.entry(above & _bits(51, 12), _field(self.gva, 47, 39), 8)
        self.require(pml4e, self.reserved64() | PAGE_SIZE)
        self.used.append(pml4e)
        self.mark(pml4e_gpa, pml4e, ACCESSED)
        pdpte_gpa, pdpte = self.entry(pml4e & _bits(51, 12), _field(self.gva, 38, 30), 8)
        self.require(pdpte, self.reserved64())
        self.used.append(pdpte)
        if pdpte & PAGE_SIZE:
            if self.rules.giga_accessed_early:
                self.mark(pdpte_gpa, pdpte, ACCESSED)
                pdpte |= ACCESSED
            self.require(pdpte, self.reserved64(30))
            return self.finish(pdpte_gpa, pdpte, pdpte & _bits(51, 30), 1 << 30)
        self.mark(pdpte_gpa, pdpte, ACCESSED)
        return self.walk_directory(pdpte)

    def walk_directory(self, pdpte: int) -> Translation:
        """The two lowest levels, common to PAE, 4-level and 5-level paging."""
        pde_gpa, pde = self.entry(pdpte & _bits(51, 12), _field(self.gva, 29, 21), 8)
        self.require(pde, self.reserved64())
        self.used.append(pde)
        if pde & PAGE_SIZE:
            self.require(pde, self.reserved64(21))
            return self.finish(pde_gpa, pde, pde & _bits(51, 21), 2 << 20)
        self.mark(pde_gpa, pde, ACCESSED)
        pte_gpa, pte = self.entry(pde & _bits(51, 12), _field(self.gva, 20, 12), 8)
        self.require(pte, self.reserved64())
        self.used.append(pte)
        return self.finish(pte_gpa, pte, pte & _bits(51, 12), 4 << 10)


def translate(
    memory: Memory,
    control: Control,
    kind: Kind,
    gva: int,
    *,
    implicit: bool = False,
    phys_bits: int = PHYS_BITS,
    rules: Rules = QEMU,
) -> Translation | PageFault | NonCanonical:
    """Translate one guest virtual address, with an empty TLB. Memory is read, never written.

    Args:
        memory: physical memory holding the tables.
        control: registers and privilege.
        kind: the access to check the rights for.
        gva: the address; its upper half is ignored outside long mode.
        implicit: an implicit supervisor access.
        phys_bits: MAXPHYADDR.
        rules: `QEMU` or `SDM`.

    Returns:
        A Translation, a PageFault or NonCanonical; both of the first carry the flag updates that were made.
    """
    if not control.long_mode:
        gva %= 2**32
    if not control.cr0 & CR0_PG:
        return Translation(gva, (), PAGE, Rights(user=True, writable=True, executable=True))
    five_levels = bool(control.cr4 & CR4_LA57)
    if control.long_mode and not _canonical(gva, 57 if five_levels else 48):
        return NonCanonical(gva)
    walk = _Walk(memory, control, kind, gva, implicit, phys_bits, rules)
    try:
        if control.long_mode:
            return walk.walk_5level() if five_levels else walk.walk_4level(control.cr3)
        if control.cr4 & CR4_PAE:
            return walk.walk_pae()
        return walk.walk_32bit()
    except _Fault as fault:
        return PageFault(gva, walk.error_code(fault.bits), tuple(walk.marked.items()))


def load_pdptes(memory: Memory, control: Control, *, phys_bits: int = PHYS_BITS) -> tuple[int, ...] | None:
    """What MOV CR3 loads into the PDPTE registers (4.4.1); None when it raises #GP because of reserved bits."""
    table = control.cr3 & 0xFFFF_FFE0
    values = tuple(memory.read64(table + 8 * index) for index in range(4))
    reserved = _bits(2, 1) | _bits(8, 5) | _bits(63, phys_bits)
    return None if any(value & PRESENT and value & reserved for value in values) else values


def perform(
    memory: Memory, control: Control, access: Access, *, phys_bits: int = PHYS_BITS, rules: Rules = QEMU
) -> Outcome:
    """Carry out one access, page by page from the lower, and change `memory` as the processor would.

    A read takes the lower page's bytes before the upper page is walked; a write stores after both walks. Where the
    PDPTE registers are to be loaded before it and cannot, the outcome is the #GP of that.
    """
    if control.pae and rules.pdpte_registers and control.pdptes is None:
        pdptes = load_pdptes(memory, control, phys_bits=phys_bits)
        if pdptes is None:
            return Outcome(fault=(13, 0, None))
        control = replace(control, pdptes=pdptes)
    entry_size = 8 if control.cr4 & CR4_PAE else 4
    touched: dict[int, int] = {}  # aligned word -> value before

    def store(gpa: int, data: bytes) -> None:
        for word in range(gpa & ~7, gpa + len(data), 8):
            if memory.contains(word):
                touched.setdefault(word, memory.read64(word))
        memory.write(gpa, data)

    def changed() -> tuple[tuple[int, int], ...]:
        after = ((word, memory.read64(word)) for word in sorted(touched))
        return tuple((word, value) for word, value in after if value != touched[word])

    gpas: list[int] = []
    data = b""
    outside = False
    for gva, size in access.parts():
        result = translate(
            memory, control, access.kind, gva, implicit=access.implicit, phys_bits=phys_bits, rules=rules
        )
        if isinstance(result, NonCanonical):
            return Outcome(fault=(13, 0, None), changed=changed())
        for gpa, value in result.updates:
            store(gpa, value.to_bytes(entry_size, "little"))
        if isinstance(result, PageFault):
            return Outcome(fault=(14, result.error_code, result.cr2), changed=changed())
        gpas.append(result.gpa)
        if not memory.contains(result.gpa):
            outside = True
            break
        data += memory.read(result.gpa, size)
    if access.kind is Kind.WRITE and memory.contains(gpas[0]):
        rest = access.value.to_bytes(8, "little")
        for gpa, (_, size) in zip(gpas, access.parts(), strict=False):
            store(gpa, rest[:size])
            rest = rest[size:]
    has_value = access.kind is Kind.READ and not access.implicit and not outside
    read = int.from_bytes(data, "little") if has_value else None
    return Outcome(None, tuple(gpas), read, outside, changed())


def _bits(high: int, low: int) -> int:
    """A mask of bits high:low, both included; empty when high is below low."""
    return (1 << high + 1) - (1 << low) if high >= low else 0


def _field(value: int, high: int, low: int) -> int:
    """Bits high:low of a value, shifted down."""
    return (value & _bits(high, low)) >> low


def _canonical(gva: int, width: int) -> bool:
    """Bits 63:47 (of 48-bit addresses), 63:56 (of 57-bit addresses) are all equal (volume 1, 3.3.7.1)."""
    return _field(gva, 63, width - 1) in (0, _field(-1, 63, width - 1))
