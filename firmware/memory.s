# memory: a workload that uses much memory and proves that none of it was lost.
#
# Parameters on the command line, each name=number:
#   pages   pages of the arena; 0: as many as fit in RAM               (default 256)
#   rounds  how often the work is done                                 (default 2)
#   steps   accesses for each page in a round, modes 1 and 2           (default 64)
#   seed    start of the random numbers                                (default 1)
#   mode    0 touch: one word in each page, in order                   (default 2)
#           1 walk:  words anywhere in the arena, all written
#           2 mixed: 7 of 8 accesses in the first eighth of the arena, 3 of 4 of them reads
#
# Every write adds a random number to a word. Two sums are kept in registers: of the numbers, and of the numbers each
# multiplied by its word's index with bit 0 set. At the end both are computed again from memory. The first finds a lost
# or doubled write, the second also pages that changed places.
#
# It ends with 0 when all is well, 1 when a parameter is wrong, 2 when there is no room for so many pages, 3 or 4 when
# the first or the second sum is wrong.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "cmdline.inc"

.equ DIRECTORY, 0x20000
.equ LOW_TABLE, 0x21000             # maps the first MiB to itself
.equ ARENA_TABLES, 0x100000         # page tables of the arena; its frames follow
.equ ARENA, 0x40000000              # gva of the arena
.equ MAX_PAGES, 0xC0000             # up to the end of the address space
.equ WORDS, 1024                    # 32-bit words in a page
.equ RW, PTE_P | PTE_W

# EBP = the next random number, of a linear congruential generator. Its high bits are the good ones.
.macro next_random
    imul ebp, ebp, 1664525
    add ebp, 1013904223
.endm

# Add EBP to word EDX of the arena, and to both sums (EBX and ECX). Changes EDX.
.macro add_random
    add [ARENA + edx * 4], ebp
    add ebx, ebp
    or edx, 1
    imul edx, ebp
    add ecx, edx
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    call read_parameters
    call build_tables
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax

    mov edi, ARENA                  # RAM holds anything at first
    xor eax, eax
    mov ecx, [words]
    rep stosd

    xor ebx, ebx                    # EBX: sum, ECX: weighted sum, EDI: sum of what was read, EBP: random number
    xor ecx, ecx
    xor edi, edi
    mov ebp, [seed]
.Lround:
    cmp dword ptr [rounds], 0
    je verify
    dec dword ptr [rounds]
    cmp dword ptr [mode], 1
    jb touch
    je walk
    jmp mixed

touch:
    xor eax, eax                    # page
.Ltouch_next:
    next_random
    mov edx, ebp
    shr edx, 22                     # a word in the page
    mov esi, eax
    shl esi, 10
    or edx, esi
    next_random
    add_random
    inc eax
    cmp eax, [pages]
    jb .Ltouch_next
    jmp .Lround

walk:
    mov eax, [pages]
    mov [pages_left], eax
.Lwalk_page:
    mov esi, [steps]
.Lwalk_next:
    next_random
    mov eax, ebp
    mul dword ptr [words]           # EDX: a number below the arena's size
    next_random
    add_random
    dec esi
    jnz .Lwalk_next
    dec dword ptr [pages_left]
    jnz .Lwalk_page
    jmp .Lround

mixed:
    mov eax, [pages]
    mov [pages_left], eax
.Lmixed_page:
    mov esi, [steps]
.Lmixed_next:
    next_random
    mov eax, [words]
    test ebp, 0xE0000000
    jz .Lmixed_anywhere
    shr eax, 3                      # in the first eighth
.Lmixed_anywhere:
    next_random
    mul ebp
    next_random
    test ebp, 0xC0000000
    jz .Lmixed_write
    add edi, [ARENA + edx * 4]
    dec esi
    jnz .Lmixed_next
    jmp .Lmixed_page_done
.Lmixed_write:
    add_random
    dec esi
    jnz .Lmixed_next
.Lmixed_page_done:
    dec dword ptr [pages_left]
    jnz .Lmixed_page
    jmp .Lround

# Compute both sums from memory.
verify:
    mov [expected_sum], ebx
    mov [expected_weighted], ecx
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
.Lverify_next:
    mov eax, [ARENA + edx * 4]
    add ebx, eax
    mov esi, edx
    or esi, 1
    imul esi, eax
    add ecx, esi
    inc edx
    cmp edx, [words]
    jb .Lverify_next
    check_equal 3, ebx, [expected_sum]
    check_equal 4, ecx, [expected_weighted]
    print "memory: checksum "
    print_hex ebx
    print " weighted "
    print_hex ecx
    print " read "
    print_hex edi
    print "\n"
    succeed

read_parameters:
    call check_command_line
    # Frames for the arena and its tables: those above 1 MiB. Each 1024 pages need a table.
    mov eax, [BOOT_RAM_SIZE]
    mov edx, [BOOT_RAM_SIZE + 4]
    shrd eax, edx, 12
    sub eax, ARENA_TABLES >> 12
    ja .Lframes_left
    xor eax, eax
.Lframes_left:
    mov esi, eax
    add eax, 1024
    xor edx, edx
    mov ecx, 1025
    div ecx
    sub esi, eax                    # ESI: pages that there is room for
    cmp esi, MAX_PAGES
    jbe .Lroom_known
    mov esi, MAX_PAGES
.Lroom_known:
    parameter "pages", 256
    test eax, eax
    jnz .Lpages_given
    mov eax, esi
.Lpages_given:
    mov [pages], eax
    dec eax                         # 0 pages, when there is no room at all, are too many as well
    cmp eax, esi
    jae too_many_pages
    inc eax
    shl eax, 10
    mov [words], eax
    parameter "rounds", 2
    mov [rounds], eax
    parameter "steps", 64
    test eax, eax
    jnz .Lsteps_given
    inc eax
.Lsteps_given:
    mov [steps], eax
    parameter "seed", 1
    mov [seed], eax
    parameter "mode", 2
    mov [mode], eax
    cmp eax, 2
    ja wrong_mode
    print "memory: pages="
    print_decimal [pages]
    print " rounds="
    print_decimal [rounds]
    print " steps="
    print_decimal [steps]
    print " seed="
    print_decimal [seed]
    print " mode="
    print_decimal [mode]
    print "\n"
    ret

# Every word of the command line must be one of the parameters, with a number that fits in 32 bits.
check_command_line:
    mov esi, BOOT_COMMAND_LINE
.Lcheck_word:
    mov al, [esi]
    test al, al
    jz .Lcheck_done
    inc esi
    cmp al, ' '
    je .Lcheck_word
    dec esi
    mov [word], esi
    mov edi, offset names
.Lcheck_name:                       # the word against the name at EDI
    mov esi, [word]
.Lcheck_letter:
    mov al, [edi]
    test al, al
    jz .Lcheck_number               # all of the name, with its =
    cmp al, [esi]
    jne .Lcheck_next_name
    inc esi
    inc edi
    jmp .Lcheck_letter
.Lcheck_next_name:
    inc edi
    cmp byte ptr [edi - 1], 0
    jne .Lcheck_next_name
    cmp byte ptr [edi], 0
    jne .Lcheck_name
    call print_word
    print "no such parameter; there are pages, rounds, steps, seed and mode, each as name=number\n"
    jmp wrong_parameter
.Lcheck_number:
    xor eax, eax
    movzx ecx, byte ptr [esi]
.Lcheck_digit:                      # at least one
    sub ecx, '0'
    cmp ecx, 9
    ja .Lcheck_not_a_number
    mov edx, 10
    mul edx
    jc .Lcheck_not_a_number
    add eax, ecx
    jc .Lcheck_not_a_number
    inc esi
    movzx ecx, byte ptr [esi]
    cmp ecx, ' '
    je .Lcheck_word
    test ecx, ecx
    jnz .Lcheck_digit
.Lcheck_done:
    ret
.Lcheck_not_a_number:
    call print_word
    print "expected a decimal number below 4294967296\n"
    jmp wrong_parameter

# Print "memory: ", the word that is wrong, and ": ".
print_word:
    print "memory: "
    mov esi, [word]
.Lprint_word_next:
    mov al, [esi]
    test al, al
    jz .Lprint_word_done
    cmp al, ' '
    je .Lprint_word_done
    out PORT_CONSOLE, al
    inc esi
    jmp .Lprint_word_next
.Lprint_word_done:
    print ": "
    ret

wrong_mode:
    print "memory: mode="
    print_decimal eax
    print ": expected 0, 1 or 2\n"
wrong_parameter:
    mov eax, 1
    jmp exit

too_many_pages:
    print "memory: pages="
    print_decimal [pages]
    print ": RAM and address space have room for "
    print_decimal esi
    print " (more with a larger --ram)\n"
    mov eax, 2
    jmp exit

names: .asciz "pages="
    .asciz "rounds="
    .asciz "steps="
    .asciz "seed="
    .asciz "mode="
    .byte 0
.balign 4
word: .long 0                       # the word of the command line that is looked at

build_tables:
    mov edi, DIRECTORY
    xor eax, eax
    mov ecx, 2 * 1024
    rep stosd
    mov dword ptr [DIRECTORY], LOW_TABLE | RW
    mov edi, LOW_TABLE
    mov eax, RW
    mov ecx, 256
.Lidentity_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lidentity_next
    # The directory entries of the arena: its tables lie one behind the other.
    mov ecx, [pages]
    add ecx, 1023
    shr ecx, 10
    mov edi, DIRECTORY + (ARENA >> 22) * 4
    mov eax, ARENA_TABLES | RW
.Ltables_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Ltables_next
    # The frames lie behind the tables: EAX points there already. The rest of the last table stays not present.
    mov ebx, eax
    and ebx, 0xFFFFF000
    mov edi, ARENA_TABLES
    mov ecx, [pages]
.Lframes_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lframes_next
    xor eax, eax
.Lrest_next:
    cmp edi, ebx
    jae .Lrest_done
    stosd
    jmp .Lrest_next
.Lrest_done:
    ret

pages: .long 0
pages_left: .long 0
words: .long 0
rounds: .long 0
steps: .long 0
seed: .long 0
mode: .long 0
expected_sum: .long 0
expected_weighted: .long 0

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
