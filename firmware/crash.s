# crash: a triple fault on purpose, in protected mode with paging on.
#
# A PUSH to a stack that is not mapped raises #PF. The interrupt descriptor table is empty, so #PF cannot be delivered:
# #GP, which makes it a double fault. That cannot be delivered either, and the CPU shuts down. The walk of the stack's
# gva ends at a page table whose neighbouring entries are present: one page below its lowest page, as when a stack
# overflows.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"

.equ DIRECTORY, 0x20000
.equ LOW_TABLE, 0x21000             # maps the first MiB to itself
.equ STACK_TABLE, 0x22000           # maps the stack's pages
.equ STACK_FRAME, 0x30000           # the stack's only frame
.equ STACK_PAGE, 0x0BADF000         # gva of the stack's only page; nothing is mapped below it

.code16
start:
    enter_protected_mode gdt_pointer
    mov edi, DIRECTORY
    xor eax, eax
    mov ecx, 3 * 1024
    rep stosd
    mov edi, LOW_TABLE
    mov eax, PTE_P | PTE_W
    mov ecx, 256
.Lidentity_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lidentity_next
    mov dword ptr [DIRECTORY], LOW_TABLE | PTE_P | PTE_W
    mov dword ptr [DIRECTORY + (STACK_PAGE >> 22) * 4], STACK_TABLE | PTE_P | PTE_W
    mov dword ptr [STACK_TABLE + ((STACK_PAGE >> 12) & 1023) * 4], STACK_FRAME | PTE_P | PTE_W
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG
    mov cr0, eax
    lidt [empty_idt]
    print "crash: the stack overflows now, and no handler is installed\n"
    mov esp, STACK_PAGE + 0x1000
    xor ecx, ecx
overflow:                           # the first 1024 words fit, the next one does not
    inc ecx
    push ecx
    cmp ecx, 1025
    jb overflow
    print "crash: still alive\n"
    mov eax, 1
    jmp exit

empty_idt:
    .word 0
    .long 0

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
