# balloon: a guest that gives up pages when it is asked to, and proves that it lost no other.
#
# A driver of the memory balloon is three instructions (gfn: a physical address >> 12):
#   in  eax, PORT_BALLOON       how many pages the guest is asked to have in the balloon; all ones: there is none
#   out PORT_BALLOON, eax       gfn EAX goes into the balloon: its contents are lost
#   out PORT_DEFLATE, eax       gfn EAX comes out of the balloon, with contents that nobody promises
#
# Parameters on the command line, each name=number:
#   pages   pages of the arena                                         (default 64)
#   rounds  how often the balloon is looked after                      (default 64)
#
# Every word of the arena holds a number that depends on its address. In each round the guest does as it is asked, as
# far as its pages go, the last ones first, and then checks all words of the pages that it has. A page that comes out of
# the balloon gets its numbers again.
#
# It ends with 0 when all is well, 1 when a word of a page that it has is wrong, 2 when there is no room for so many
# pages.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "cmdline.inc"

.equ PORT_BALLOON, 0xF8
.equ PORT_DEFLATE, 0xFC
.equ ARENA, 0x100000                # gpa
.equ PAGE_SHIFT, 12
.equ WORDS, 1024                    # 32-bit words in a page

# EAX = the number that belongs into the word at EDI.
.macro number_of_word
    imul eax, edi, 1664525
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    call read_parameters
    mov edi, ARENA
    mov ecx, [pages]
    mov [kept], ecx
.Lfill_next:
    call fill
    dec ecx
    jnz .Lfill_next

.Lround:
    cmp dword ptr [rounds], 0
    je finish
    dec dword ptr [rounds]
    in eax, PORT_BALLOON
    cmp eax, -1
    jne .Lasked
    xor eax, eax                    # there is no balloon
.Lasked:
    cmp eax, [target]
    je .Lcheck
    mov [target], eax
    call obey
.Lcheck:
    call verify
    jmp .Lround

finish:
    call verify
    print "balloon: pages given "
    print_decimal [given]
    print ", taken back "
    print_decimal [taken]
    print " of which zeros "
    print_decimal [zeros]
    print ", kept "
    print_decimal [kept]
    print ", checksum "
    print_hex ebx
    print "\n"
    succeed

# Give pages or take them back until EAX of them are in the balloon. Changes EAX, EBX, ECX and EDI.
obey:
    mov ebx, [pages]
    sub ebx, eax                    # EBX: pages to keep
    jae .Lobey_next
    xor ebx, ebx                    # more than there are
.Lobey_next:
    mov eax, [kept]                 # those kept are the first ones
    cmp eax, ebx
    je .Lobey_done
    jb .Lobey_deflate
    dec eax
    mov [kept], eax
    add eax, ARENA >> PAGE_SHIFT
    out PORT_BALLOON, eax
    inc dword ptr [given]
    jmp .Lobey_next
.Lobey_deflate:
    inc dword ptr [kept]
    add eax, ARENA >> PAGE_SHIFT
    out PORT_DEFLATE, eax
    inc dword ptr [taken]
    mov edi, eax
    shl edi, PAGE_SHIFT
    push edi
    xor eax, eax
    mov ecx, WORDS
    repe scasd
    jne .Lobey_fill
    inc dword ptr [zeros]
.Lobey_fill:
    pop edi
    call fill
    jmp .Lobey_next
.Lobey_done:
    print "balloon: asked for "
    print_decimal [target]
    print ", kept "
    print_decimal [kept]
    print "\n"
    ret

# Put the numbers into the page at EDI, which is behind it afterwards. Changes EAX.
fill:
    number_of_word
    mov [edi], eax
    add edi, 4
    test edi, WORDS * 4 - 1
    jnz fill
    ret

# Check all pages kept. EBX: their sum. Changes EAX, ECX and EDI.
verify:
    check 1
    xor ebx, ebx
    mov edi, ARENA
    mov ecx, [kept]
    shl ecx, PAGE_SHIFT
    add ecx, edi                    # the end
.Lverify_next:
    cmp edi, ecx
    je .Lverify_done
    number_of_word
    cmp [edi], eax
    jne failed
    add ebx, eax
    add edi, 4
    jmp .Lverify_next
.Lverify_done:
    ret

read_parameters:
    parameter "pages", 64
    mov [pages], eax
    parameter "rounds", 64
    mov [rounds], eax
    mov eax, [BOOT_RAM_SIZE]
    shr eax, PAGE_SHIFT
    sub eax, ARENA >> PAGE_SHIFT
    jbe too_many_pages
    mov edx, [pages]
    dec edx                         # 0 pages are too many as well
    cmp edx, eax
    jae too_many_pages
    ret

too_many_pages:
    print "balloon: no room for pages="
    print_decimal [pages]
    print "\n"
    mov eax, 2
    jmp exit

.balign 4
pages: .long 0
rounds: .long 0
target: .long 0                     # what the guest was asked for last
kept: .long 0                       # pages not in the balloon
given: .long 0
taken: .long 0
zeros: .long 0

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
