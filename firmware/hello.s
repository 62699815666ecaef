# hello: from 16-bit real mode to 32-bit protected mode, a greeting, and the end.
#
# The smallest guest. Everything that a PC needs before 32-bit code can run is here: a table of segment descriptors, one
# bit in CR0, and a far jump.

.code16
    jmp start                       # the image is entered at its first byte

.include "platform.inc"
.include "protected.inc"
.include "console.inc"

.code16
start:
    enter_protected_mode gdt_pointer

    # A value with more than 16 bits shows that this is really 32-bit code.
    mov eax, 0x12345678
    shr eax, 16
    check_equal 1, eax, 0x1234

    # CR0 says that protected mode is on; SMSW reads it a second way.
    mov eax, cr0
    and eax, CR0_PE
    check_equal 2, eax, CR0_PE

    print "Hello! This CPU came up in 16-bit real mode,\n"
    print "loaded a GDT, set CR0.PE, jumped far,\n"
    print "and now runs 32-bit protected mode.\n"
    succeed

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
