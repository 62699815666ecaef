"""Bits of x86 paging-structure entries (Intel SDM vol. 3A, 4.3 to 4.6; AMD APM vol. 2, 5.3 to 5.6)."""

from emu.engine.native import signed

P = 1 << 0  # present
W = 1 << 1  # writes allowed (R/W)
U = 1 << 2  # user mode allowed (U/S)
A = 1 << 5  # accessed
D = 1 << 6  # dirty; only in an entry that maps a page
PS = 1 << 7  # maps a large page (above level 1)
G = 1 << 8  # global
KEY_SHIFT = 59  # bits 62:59 of an entry that maps a page: its protection key (4- and 5-level paging)
KEY = 15 << KEY_SHIFT
NX = signed(1 << 63)  # no instruction fetches

# shadow entries only, in bits that the processor ignores
TRAP = 1 << 9  # in a leaf: writable, through the write trap
LARGE = 1 << 10  # at level 2: stands for a guest entry that maps a 2 or 4 MiB page
HUGE = 1 << 11  # at level 3: stands for a guest entry that maps a 1 GiB page

MAXPHYADDR = 40  # physical address bits of the CPU model (CPUID 8000_0008H)
FRAME = ((1 << 52) - 1) & ~0xFFF  # address bits of a 64-bit entry, reserved ones included
RESERVED_HIGH = ((1 << 52) - 1) & ~((1 << MAXPHYADDR) - 1)  # must be 0 in PAE and 4-level entries
RESERVED_PAE = 0x7FF << 52  # bits 62:52: must be 0 in PAE, ignored or a protection key in 4- and 5-level paging
PDPTE_RESERVED = NX | RESERVED_PAE | RESERVED_HIGH | 0x1E6  # of a present PDPTE of PAE paging (SDM vol. 3A, table 4-8)
PDE32_HIGH = 0xFF << 13  # PSE-36: bits 39:32 of a 4 MiB page's address in its PDE
PDE32_RESERVED = 1 << 21  # of a PDE that maps a 4 MiB page

# page-fault error code (SDM vol. 3A, 4.7)
ERROR_P = 1 << 0  # a protection violation, not a non-present page
ERROR_W = 1 << 1
ERROR_U = 1 << 2
ERROR_RSVD = 1 << 3
ERROR_I = 1 << 4
ERROR_PK = 1 << 5  # a protection key forbids the data access
