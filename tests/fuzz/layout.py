"""The numbers that the batch guest and the maker of its cases share."""

from __future__ import annotations

LOAD = 0x200000  # gpa of the guest
TABLES = 0x208000  # gpa of PML4, PDPT, directories, table
WINDOW_GPA = 0x210000  # gpa of the window's six pages
BEFORE = 0x220000  # gpa of the state before a case: registers, FXSAVE area
AFTER = 0x221000
BEFORE_WINDOW = 0x222000
OUTPUT = 0x230000
OUTPUT_END = OUTPUT + 120 * 10
IDT = 0x240000
STACK = 0x250000
INTERRUPT_STACK = 0x252000
CURRENT = 0x253000
TEMPLATE = 0x300000  # gpa of the window's contents before a case
FX_TEMPLATES = 0x310000  # gpa of FXSAVE images, 512 bytes each
CASES = 0x320000

PAGES = 6
WINDOW_QWORDS = PAGES * 512
REGISTER_QWORDS = 36
STATE_QWORDS = REGISTER_QWORDS + 64
CODE_BYTES = 64
CASE_BYTES = (REGISTER_QWORDS + 6) * 8 + CODE_BYTES
NO_ERROR_CODE = 0xEEEE

WINDOW_GVA = 0x40000000
CODE, DATA, STACK_PAGES = 0x3000, 0x8000, 0xC000  # offsets in the window, two pages each

NAMES = (
    "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip rflags cs ss ds es fs gs vector error cr2 dr6"
    " fsbase gsbase pte.code0 pte.code1 pte.data0 pte.data1 pte.stack0 pte.stack1"
).split()

_PAGES = ("code0", "code1", "data0", "data1", "stack0", "stack1")
FIELDS = (
    *NAMES,
    *("x87", "fip", "fdp", "mxcsr"),
    *(f"st{register}.{half}" for register in range(8) for half in range(2)),
    *(f"xmm{register}.{half}" for register in range(16) for half in range(2)),
    *(f"reserved{qword}" for qword in range(12)),
    *(f"{page}+{offset:03x}" for page in _PAGES for offset in range(0, 0x1000, 8)),
)  # the qwords of a state, in the order in which the batch guest counts them

SAFE_CR0 = 0x80010033  # PG, WP, NE, ET, MP, PE
SAFE_CR4 = 0x620  # OSXMMEXCPT, OSFXSR, PAE


def defines() -> dict[str, int]:
    """The constants of the guest's source."""
    numbers = {name: value for name, value in globals().items() if name.isupper() and isinstance(value, int)}
    for name in ("LOAD", "PAGES", "WINDOW_GVA", "CODE", "DATA", "STACK_PAGES"):
        del numbers[name]
    fields = ("CASE_PTES", 30), ("CASE_CR0", 36), ("CASE_CR4", 37), ("CASE_FX", 38), ("CASE_CODE_OFFSET", 39)
    numbers |= {name: 8 * index for name, index in fields}
    return numbers | {"CASE_CODE_BYTES": 8 * 40, "CASE_CODE": 8 * 42, "CASE_CR2": 8 * 26}
