# smc: self-modifying code, in all the ways that a translator of code may miss.
#
# A CPU runs what memory holds. An emulator that keeps translations of code must notice every write to it: ahead in the
# block that runs, through another gva of the same frame, into a frame that comes back elsewhere, by strings, pushes and
# locked instructions. Paging is PAE, so that an alias for writing can be no-execute while the code's own mapping is
# read-only.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "faults.inc"

# Physical memory
.equ PDPT, 0x20000
.equ LOW_PD, 0x21000
.equ LOW_PT, 0x22000                # gva 0-2 MiB to itself
.equ WINDOW_PD, 0x23000
.equ WINDOW_PT, 0x24000             # gva 1 GiB + 0-2 MiB
.equ TABLES_END, 0x25000
.equ FRAME_1, 0x100000              # frames for generated code
.equ FRAME_2, 0x101000
.equ FRAME_3, 0x102000

# Linear memory
.equ WINDOW, 0x40000000             # executable windows
.equ ALIAS, 0x40010000              # windows for writing, no-execute
.equ IMAGE_ALIAS, 0x40100000        # the first 64 KiB again: IMAGE_ALIAS + label is another gva of label
.equ RW, PTE_P | PTE_W

# Map the page at gva with an entry, given as two halves.
.macro map gva, entry, high=0
    mov dword ptr [WINDOW_PT + (((\gva) >> 12) & 511) * 8], \entry
    mov dword ptr [WINDOW_PT + (((\gva) >> 12) & 511) * 8 + 4], \high
    invlpg [\gva]
.endm

# Make a function at gva that returns a value in EAX: MOV EAX, value; RET. The value lies at gva + 1.
.macro make_function gva, value
    mov byte ptr [\gva], 0xB8
    mov dword ptr [(\gva) + 1], \value
    mov byte ptr [(\gva) + 5], 0xC3
.endm

.macro call_at gva
    mov eax, \gva
    call eax
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate 14, page_fault_announced
    call start_paging
    print "smc: paging is on\n"
    call test_same_block
    call test_calls
    call test_image_alias
    call test_write_alias
    call test_frame_reuse
    call test_frame_switch
    call test_generated
    call test_strings
    call test_page_crossing
    call test_odd_stores
    print "smc: generated functions called "
    print_decimal [generated_calls]
    print ", sum "
    print_hex [generated_sum]
    print "\n"
    succeed

start_paging:
    mov edi, PDPT
    xor eax, eax
    mov ecx, (TABLES_END - PDPT) / 4
    rep stosd
    mov dword ptr [PDPT], LOW_PD | PTE_P
    mov dword ptr [PDPT + 8], WINDOW_PD | PTE_P
    mov dword ptr [LOW_PD], LOW_PT | RW
    mov dword ptr [WINDOW_PD], WINDOW_PT | RW
    mov edi, LOW_PT
    mov eax, RW
.Llow_next:
    mov [edi], eax
    add edi, 8
    add eax, 4096
    cmp edi, LOW_PT + 4096
    jb .Llow_next
    mov edi, WINDOW_PT + ((IMAGE_ALIAS >> 12) & 511) * 8
    mov eax, RW
.Limage_next:
    mov [edi], eax
    mov dword ptr [edi + 4], PTE_NX_HIGH
    add edi, 8
    add eax, 4096
    cmp eax, 0x10000
    jb .Limage_next
    mov eax, cr4
    or eax, CR4_PAE
    mov cr4, eax
    mov eax, PDPT
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_NXE
    wrmsr
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
    ret

# An instruction that is about to run, in the same straight piece of code.
test_same_block:
    mov byte ptr [patch_ahead + 1], 0x22
patch_ahead:
    mov al, 0x11
    check_equal 1, al, 0x22
    # A loop that changes its own operand each time around: 1 + 2 + ... + 1000.
    xor ebx, ebx
    mov ecx, 1000
.Lloop_next:
    inc dword ptr [patch_loop + 2]
patch_loop:
    add ebx, 0x40000000             # a thousand times this is 0 in 32 bits: only what was added counts
    dec ecx
    jnz .Lloop_next
    check_equal 2, ebx, 500500
    # The instruction right behind the store becomes another one: INC EBX instead of NOP.
    mov ebx, 5
    mov byte ptr [patch_next], 0x43
patch_next:
    nop
    check_equal 3, ebx, 6
    mov byte ptr [patch_next], 0x90
    ret

# A function rewritten between its calls.
test_calls:
    xor esi, esi
    mov ecx, 50
.Lcalls_next:
    mov [patched_function + 1], ecx
    call patched_function
    add esi, eax
    dec ecx
    jnz .Lcalls_next
    check_equal 4, esi, 1275
    mov byte ptr [patched_function], 0x05  # ADD EAX, imm32 instead of MOV EAX, imm32
    mov eax, 100
    call patched_function
    check_equal 5, eax, 101
    mov byte ptr [patched_function], 0xB8
    ret

patched_function:
    mov eax, 0x12345678
    ret

# The same, written through another gva. A jump or a serializing instruction stands between write and execution, as the
# architecture asks for.
test_image_alias:
    mov byte ptr [IMAGE_ALIAS + patch_alias + 1], 0x33
    jmp patch_alias
patch_alias:
    mov al, 0x11
    check_equal 6, al, 0x33
    mov byte ptr [IMAGE_ALIAS + patch_serialized + 1], 0x44
    xor eax, eax
    cpuid
patch_serialized:
    mov al, 0x11
    check_equal 7, al, 0x44
    mov ecx, 50
    xor esi, esi
.Lalias_next:
    mov [IMAGE_ALIAS + patched_function + 1], ecx
    call patched_function
    add esi, eax
    dec ecx
    jnz .Lalias_next
    check_equal 8, esi, 1275
    ret

# Code that is read-only where it runs, and written through a no-execute alias.
test_write_alias:
    map WINDOW, FRAME_1 | PTE_P
    map ALIAS, FRAME_1 | RW, PTE_NX_HIGH
    make_function ALIAS, 10
    call_at WINDOW
    check_equal 9, eax, 10
    mov dword ptr [ALIAS + 1], 11
    call_at WINDOW
    check_equal 10, eax, 11
    expect_page_fault 11, WINDOW + 1, PF_P | PF_W, mov dword ptr [WINDOW + 1], 12
    expect_fetch_fault 12, ALIAS, PF_P | PF_I
    call_at WINDOW
    check_equal 13, eax, 11
    # The two change places.
    map ALIAS, FRAME_1 | PTE_P
    map WINDOW, FRAME_1 | RW, PTE_NX_HIGH
    mov dword ptr [WINDOW + 1], 13
    call_at ALIAS
    check_equal 14, eax, 13
    expect_fetch_fault 15, WINDOW, PF_P | PF_I
    ret

# A frame leaves, gets new contents as data, and comes back as code at another gva; then as data once more.
test_frame_reuse:
    map WINDOW, FRAME_1 | RW
    make_function WINDOW, 20
    call_at WINDOW
    check_equal 16, eax, 20
    map WINDOW, 0
    map ALIAS, FRAME_1 | RW, PTE_NX_HIGH
    make_function ALIAS, 21
    map ALIAS, 0
    map WINDOW + 0x1000, FRAME_1 | RW
    call_at WINDOW + 0x1000
    check_equal 17, eax, 21
    map WINDOW, FRAME_1 | RW        # and at the first gva as well
    call_at WINDOW
    check_equal 18, eax, 21
    mov edi, FRAME_1                # through the identity map
    mov eax, 0xCCCCCCCC             # INT3: would be an unexpected exception
    mov ecx, 1024
    rep stosd
    make_function FRAME_1 + 0x800, 22
    call_at WINDOW + 0x800
    check_equal 19, eax, 22
    make_function FRAME_1, 23
    call_at WINDOW
    check_equal 20, eax, 23
    call_at FRAME_1                 # three gvas of one function
    check_equal 21, eax, 23
    ret

# Two frames with code take turns at one gva.
test_frame_switch:
    make_function FRAME_1, 30
    make_function FRAME_2, 31
    mov esi, 20
.Lturns_next:
    map WINDOW, FRAME_1 | RW
    call_at WINDOW
    check_equal 22, eax, 30
    map WINDOW, FRAME_2 | RW
    call_at WINDOW
    check_equal 23, eax, 31
    dec esi
    jnz .Lturns_next
    # While one is away, it changes.
    mov dword ptr [FRAME_1 + 1], 32
    map WINDOW, FRAME_1 | RW
    call_at WINDOW
    check_equal 24, eax, 32
    ret

# A page that was data for long, then code: 256 functions of 16 bytes each, four times over.
test_generated:
    map WINDOW, FRAME_3 | RW
    mov edi, WINDOW
    mov ecx, 1024
    xor eax, eax
.Ldata_next:                        # as data
    mov [edi], ecx
    add eax, [edi]
    add edi, 4
    dec ecx
    jnz .Ldata_next
    check_equal 25, eax, 524800     # 1 + 2 + ... + 1024
    xor ebp, ebp                    # generation
.Lgeneration:
    mov edi, WINDOW
    xor ecx, ecx
.Lgenerate_next:
    mov byte ptr [edi], 0xB8
    imul eax, ebp, 1000
    add eax, ecx
    mov [edi + 1], eax
    mov byte ptr [edi + 5], 0xC3
    add edi, 16
    inc ecx
    cmp ecx, 256
    jb .Lgenerate_next
    mov edi, WINDOW
    xor ecx, ecx
.Lrun_next:
    call edi
    imul edx, ebp, 1000
    add edx, ecx
    check_equal 26, eax, edx
    rol dword ptr [generated_sum], 1
    add [generated_sum], eax
    inc dword ptr [generated_calls]
    add edi, 16
    inc ecx
    cmp ecx, 256
    jb .Lrun_next
    inc ebp
    cmp ebp, 4
    jb .Lgeneration
    ret

generated_calls: .long 0
generated_sum: .long 0

# String instructions over code.
test_strings:
    make_function FRAME_1, 40
    make_function FRAME_2, 41
    call_at FRAME_1
    check_equal 27, eax, 40
    mov esi, FRAME_2
    mov edi, FRAME_1
    mov ecx, 6
    rep movsb
    call_at FRAME_1
    check_equal 28, eax, 41
    mov dword ptr [FRAME_2 + 1], 42
    mov esi, FRAME_2
    mov edi, FRAME_1
    mov ecx, 1024
    rep movsd
    call_at FRAME_1
    check_equal 29, eax, 42
    # A string store that overwrites the code right behind itself: six NOPs become INC EBX.
    xor ebx, ebx
    mov edi, offset patch_string
    mov al, 0x43
    mov ecx, 6
    rep stosb
patch_string:
    nop
    nop
    nop
    nop
    nop
    nop
    check_equal 30, ebx, 6
    ret

# An instruction that lies in two pages, and a store that does.
test_page_crossing:
    map WINDOW, FRAME_1 | RW
    map WINDOW + 0x1000, FRAME_2 | RW
    make_function WINDOW + 0xFFD, 0x11223344  # two bytes of the value in the first page
    call_at WINDOW + 0xFFD
    check_equal 31, eax, 0x11223344
    mov byte ptr [WINDOW + 0x1001], 0x55  # the highest byte
    call_at WINDOW + 0xFFD
    check_equal 32, eax, 0x55223344
    mov dword ptr [WINDOW + 0xFFE], 0x66778899  # the whole value
    call_at WINDOW + 0xFFD
    check_equal 33, eax, 0x66778899
    # Another second page: half of the instruction changes with the mapping.
    mov word ptr [FRAME_3], 0xAABB
    mov byte ptr [FRAME_3 + 2], 0xC3
    map WINDOW + 0x1000, FRAME_3 | RW
    call_at WINDOW + 0xFFD
    check_equal 34, eax, 0xAABB8899
    map WINDOW + 0x1000, FRAME_2 | RW
    call_at WINDOW + 0xFFD
    check_equal 35, eax, 0x66778899
    # And through the frame.
    mov word ptr [FRAME_2], 0xCCDD
    call_at WINDOW + 0xFFD
    check_equal 36, eax, 0xCCDD8899
    ret

# Stores that are easily forgotten.
test_odd_stores:
    map WINDOW, FRAME_1 | RW
    make_function WINDOW, 50
    call_at WINDOW
    check_equal 37, eax, 50
    mov ebx, esp                    # PUSH
    mov esp, WINDOW + 5
    push 51
    mov esp, ebx
    call_at WINDOW
    check_equal 38, eax, 51
    mov eax, 52                     # XCHG, CMPXCHG, XADD
    xchg [WINDOW + 1], eax
    check_equal 39, eax, 51
    call_at WINDOW
    check_equal 40, eax, 52
    mov ecx, 53
    lock cmpxchg [WINDOW + 1], ecx  # EAX is 52: equal
    call_at WINDOW
    check_equal 41, eax, 53
    mov ecx, 1
    lock xadd [WINDOW + 1], ecx
    call_at WINDOW
    check_equal 42, eax, 54
    lock inc dword ptr [WINDOW + 1]
    call_at WINDOW
    check_equal 43, eax, 55
    lock bts dword ptr [WINDOW + 1], 16
    call_at WINDOW
    check_equal 44, eax, 0x10037
    mov dword ptr [WINDOW + 8], 56  # FISTP: eight bytes at once, the function and its value
    mov byte ptr [WINDOW + 7], 0xB8
    mov byte ptr [WINDOW + 12], 0xC3
    call_at WINDOW + 7
    check_equal 45, eax, 56
    fninit
    fild qword ptr [fpu_value]
    fistp qword ptr [WINDOW + 7]
    call_at WINDOW + 7
    check_equal 46, eax, 57
    mov ebx, esp                    # CALL pushes its return address over a function
    mov esp, WINDOW + 5
    call .Lcalled
.Lcalled:
    mov esp, ebx
    call_at WINDOW
    check_equal 47, eax, .Lcalled
    set_gate 3, breakpoint          # INT3 pushes EFLAGS, CS and EIP over it
    mov ebx, esp
    mov esp, WINDOW + 13            # EFLAGS at 9, CS at 5, EIP at 1
    int3
.Lbreakpoint_return:
breakpoint:
    mov esp, ebx
    mov byte ptr [WINDOW + 5], 0xC3
    call_at WINDOW
    check_equal 48, eax, .Lbreakpoint_return
    ret

.balign 8
fpu_value: .quad 0x9000C300000039B8 # MOV EAX, 57; RET; and any byte

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
