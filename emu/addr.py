"""Address words and the machine address space.

Glossary (docs/design.md has the whole of it):

* gva: guest virtual (linear) address
* gpa: guest pseudo-physical address; gfn = gpa >> 12, guest frame number
* mfn: machine frame number, an index into machine memory
* machine address: what an engine's TLB entry points at, see below

Machine address space of every engine::

    0                       machine memory: frame mfn at mfn << 12, read, write, execute
    TRAP_BASE               the same frames again without write permission: a store through here reaches
                            the engine's write trap instead of memory (guest page tables, holes, code frames)
    WATCH_BASE              the same frames once more without any permission: every access through here is seen,
                            for data breakpoints
    MMIO_BASE               device registers: gpa at MMIO_BASE + gpa, for the gfns of type MMIO below 4 GiB
"""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1

TRAP_BASE = 1 << 40  # machine address of the write-trapped alias of machine memory
WATCH_BASE = 1 << 41  # machine address of the alias where every access is seen
MMIO_BASE = 1 << 42  # machine address of device registers
MMIO_SIZE = 1 << 32  # bytes: gpas at which there can be any

READ, WRITE, FETCH = 0, 1, 2  # kinds of access

NO_FRAME = -1  # in place of an mfn or gfn: none
