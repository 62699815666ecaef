# pae: paging with physical address extension (PAE), and no-execute.
#
# PAE entries have 64 bits, so a table holds 512 of them. The walk: bits 31-30 of the gva select one of four
# page-directory pointers (PDPT), bits 29-21 an entry of the page directory (PD), which may map 2 MiB at once, bits
# 20-12 one of the page table (PT). With EFER.NXE, bit 63 forbids execution, and page faults of instruction fetches have
# I in their error code.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "faults.inc"

# Physical memory
.equ PDPT, 0x20000
.equ LOW_PD, 0x21000                # gva 0-1 GiB
.equ WINDOW_PD, 0x22000             # gva 1-2 GiB
.equ SELF_PD, 0x23000               # gva 3-4 GiB
.equ LOW_PT, 0x24000                # gva 0-2 MiB to itself
.equ WINDOW_PT, 0x25000
.equ SPLIT_PT, 0x26000              # replaces a 2 MiB page for a while
.equ LATE_PD, 0x27000               # gva 2-3 GiB, from the middle of the run on
.equ TABLES_END, 0x28000
.equ FRAMES, 0x100000               # frames to give out, up to 2 MiB
.equ LARGE_FRAME, 0x800000          # two 2 MiB frames
.equ LARGE_FRAME_2, 0xA00000
.equ RAM_NEEDED, 0x1000000

# Linear memory. The low 16 MiB are their own gpa, above 2 MiB in 2 MiB pages.
.equ WINDOW, 0x40000000             # windows: 4 KiB pages to map at will
.equ LARGE, 0x40200000              # a 2 MiB page
.equ LATE, 0x80000000               # no PD at first
.equ TABLES, 0xFF800000             # the PDs as page tables of the last 8 MiB: all entries, by page number
.equ DIRECTORIES, TABLES + (TABLES >> 12) * 8  # all PD entries, by 2 MiB page number

.equ WINDOW_PTE, TABLES + (WINDOW >> 12) * 8
.equ LARGE_PDE, DIRECTORIES + (LARGE >> 21) * 8
.equ WINDOW_PDE, DIRECTORIES + (WINDOW >> 21) * 8
.equ RW, PTE_P | PTE_W

# Map the page at gva with the entry whose lower half is EDX; the upper half is given. Changes EAX.
.macro map gva, high=0
    mov dword ptr [TABLES + ((\gva) >> 12) * 8 + 4], \high
    mov dword ptr [TABLES + ((\gva) >> 12) * 8], edx
    mov eax, \gva
    invlpg [eax]
.endm

.macro reload_cr3
    mov eax, cr3
    mov cr3, eax
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate 14, page_fault_announced
    set_gate 0x80, leave_user, GATE_INTERRUPT | GATE_DPL3
    mov ax, TSS
    ltr ax
    call check_cpu
    call build_tables
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
    print "pae: paging is on\n"
    call test_windows
    call test_no_execute
    call test_large_pages
    call test_reserved_bits
    call test_moves
    call test_late_directory
    call test_ring3
    print "pae: faults taken on purpose "
    print_decimal [faults_seen]
    print ", checksum "
    print_hex [moves_checksum]
    print "\n"
    succeed

check_cpu:
    mov eax, 1
    cpuid
    check 1                         # PAE
    bt edx, 6
    jnc failed
    mov eax, 0x80000001
    cpuid
    check 2                         # no-execute
    bt edx, 20
    jnc failed
    check 3                         # enough RAM
    cmp dword ptr [BOOT_RAM_SIZE + 4], 0
    jne .Lenough
    cmp dword ptr [BOOT_RAM_SIZE], RAM_NEEDED
    jb failed
.Lenough:
    ret

build_tables:
    mov edi, PDPT
    xor eax, eax
    mov ecx, (TABLES_END - PDPT) / 4
    rep stosd
    mov dword ptr [PDPT], LOW_PD | PTE_P  # only P: other low bits are reserved at this level
    mov dword ptr [PDPT + 8], WINDOW_PD | PTE_P
    mov dword ptr [PDPT + 24], SELF_PD | PTE_P
    mov dword ptr [LOW_PD], LOW_PT | RW | PTE_U
    mov edi, LOW_PD + 8
    mov eax, 0x200000 | RW | PTE_PS
.Llow_large_next:
    mov [edi], eax
    add edi, 8
    add eax, 0x200000
    cmp eax, RAM_NEEDED
    jb .Llow_large_next
    mov edi, LOW_PT
    mov eax, RW
.Llow_next:
    mov [edi], eax
    add edi, 8
    add eax, 4096
    cmp edi, LOW_PT + 4096
    jb .Llow_next
    mov eax, offset user_program    # one page for ring 3
    shr eax, 12
    or dword ptr [LOW_PT + eax * 8], PTE_U
    mov dword ptr [WINDOW_PD], WINDOW_PT | RW | PTE_U
    mov dword ptr [WINDOW_PD + 8], LARGE_FRAME | RW | PTE_PS
    # The last four entries of the last directory point to the four directories.
    mov dword ptr [SELF_PD + 508 * 8], LOW_PD | RW
    mov dword ptr [SELF_PD + 509 * 8], WINDOW_PD | RW
    mov dword ptr [SELF_PD + 511 * 8], SELF_PD | RW
    ret

# Give out a frame of zeros. Returns its gpa in EAX; changes no other register.
take_frame:
    push ecx
    push edi
    mov edi, [next_frame]
    add dword ptr [next_frame], 4096
    push edi
    xor eax, eax
    mov ecx, 1024
    rep stosd
    pop eax
    pop edi
    pop ecx
    ret

next_frame: .long FRAMES

# Map, alias, unmap, write-protect; accessed and dirty bits; an entry changed as a whole with CMPXCHG8B.
test_windows:
    call take_frame
    mov esi, eax
    call take_frame
    mov edi, eax
    lea edx, [esi + RW]
    map WINDOW
    mov dword ptr [WINDOW + 8], 0x11111111
    check_equal 4, dword ptr [esi + 8], 0x11111111
    mov eax, [WINDOW_PTE]
    and eax, PTE_A | PTE_D
    check_equal 5, eax, PTE_A | PTE_D
    lea edx, [esi + PTE_P]
    map WINDOW + 0x1000
    check_equal 6, dword ptr [WINDOW + 0x1008], 0x11111111
    mov eax, [WINDOW_PTE + 8]
    and eax, PTE_A | PTE_D
    check_equal 7, eax, PTE_A
    expect_page_fault 8, WINDOW + 0x1008, PF_P | PF_W, mov dword ptr [WINDOW + 0x1008], 1
    # Exchange the entry of window 0 for the second frame's in one go: 64 bits, both halves.
    mov eax, [WINDOW_PTE]
    mov edx, [WINDOW_PTE + 4]
    lea ebx, [edi + RW]
    mov ecx, PTE_NX_HIGH
    lock cmpxchg8b [WINDOW_PTE]
    check 9
    jnz failed
    invlpg [WINDOW]
    check_equal 10, dword ptr [WINDOW + 8], 0
    mov dword ptr [WINDOW + 8], 0x22222222
    check_equal 11, dword ptr [edi + 8], 0x22222222
    check_equal 12, dword ptr [esi + 8], 0x11111111
    xor edx, edx
    map WINDOW
    expect_page_fault 13, WINDOW + 8, 0, mov eax, [WINDOW + 8]
    expect_page_fault 14, WINDOW + 9, PF_W, mov byte ptr [WINDOW + 9], 1
    expect_page_fault 15, LATE, 0, mov eax, [LATE]  # no PD at all
    ret

# NX at either level forbids fetches, and nothing else.
test_no_execute:
    call take_frame
    mov byte ptr [eax], 0xC3        # RET
    lea edx, [eax + RW]
    mov esi, edx
    map WINDOW
    mov eax, WINDOW
    call eax
    map WINDOW, PTE_NX_HIGH
    expect_fetch_fault 16, WINDOW, PF_P | PF_I
    check_equal 17, byte ptr [WINDOW], 0xC3
    mov byte ptr [WINDOW + 1], 0xC3
    xor edx, edx
    map WINDOW
    expect_fetch_fault 18, WINDOW + 1, PF_I
    mov edx, esi
    map WINDOW
    mov eax, WINDOW + 1
    call eax
    or dword ptr [WINDOW_PDE + 4], PTE_NX_HIGH
    reload_cr3
    expect_fetch_fault 19, WINDOW, PF_P | PF_I
    and dword ptr [WINDOW_PDE + 4], -1 - PTE_NX_HIGH
    reload_cr3
    mov eax, WINDOW
    call eax
    ret

# A 2 MiB page: contents, a move to another frame, NX, and a split into 4 KiB pages.
test_large_pages:
    mov dword ptr [LARGE + 0x123458], 0x33333333
    mov dword ptr [LARGE + 0x1FFFFC], 0x44444444
    check_equal 20, dword ptr [LARGE_FRAME + 0x123458], 0x33333333
    check_equal 21, dword ptr [LARGE_FRAME + 0x1FFFFC], 0x44444444
    mov eax, [LARGE_PDE]
    and eax, PTE_A | PTE_D
    check_equal 22, eax, PTE_A | PTE_D
    mov dword ptr [LARGE_PDE], LARGE_FRAME_2 | RW | PTE_PS
    invlpg [LARGE]
    mov dword ptr [LARGE + 0x123458], 0x55555555
    check_equal 23, dword ptr [LARGE_FRAME + 0x123458], 0x33333333
    check_equal 24, dword ptr [LARGE_FRAME_2 + 0x123458], 0x55555555
    mov byte ptr [LARGE], 0xC3
    mov eax, LARGE
    call eax
    or dword ptr [LARGE_PDE + 4], PTE_NX_HIGH
    invlpg [LARGE]
    expect_fetch_fault 25, LARGE, PF_P | PF_I
    mov edi, SPLIT_PT               # the same frames, in 512 entries
    mov eax, LARGE_FRAME_2 | RW
    mov ecx, 512
.Lsplit_next:
    mov [edi], eax
    mov dword ptr [edi + 4], 0
    add edi, 8
    add eax, 4096
    dec ecx
    jnz .Lsplit_next
    mov dword ptr [LARGE_PDE], SPLIT_PT | RW
    mov dword ptr [LARGE_PDE + 4], 0
    reload_cr3
    check_equal 26, dword ptr [LARGE + 0x123458], 0x55555555
    mov eax, LARGE
    call eax
    mov dword ptr [SPLIT_PT + 0x123 * 8], 0
    invlpg [LARGE + 0x123000]
    expect_page_fault 27, LARGE + 0x123458, 0, mov eax, [LARGE + 0x123458]
    mov dword ptr [LARGE_PDE], LARGE_FRAME_2 | RW | PTE_PS
    reload_cr3
    check_equal 28, dword ptr [LARGE + 0x123458], 0x55555555
    ret

# Reserved: bits 62-52 of any entry, the bits below a 2 MiB page's address, and bit 63 without EFER.NXE.
test_reserved_bits:
    call take_frame
    lea edx, [eax + RW]
    mov esi, edx
    map WINDOW, 1 << 30
    expect_page_fault 29, WINDOW, PF_RESERVED, mov eax, [WINDOW]
    expect_page_fault 30, WINDOW, PF_RESERVED | PF_W, mov byte ptr [WINDOW], 1
    mov edx, esi
    map WINDOW, PTE_NX_HIGH
    mov eax, [WINDOW]
    mov ecx, MSR_EFER
    rdmsr
    and eax, -1 - EFER_NXE
    wrmsr
    reload_cr3
    expect_page_fault 31, WINDOW, PF_RESERVED, mov eax, [WINDOW]
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_NXE
    wrmsr
    reload_cr3
    check_equal 32, dword ptr [WINDOW], 0
    or dword ptr [LARGE_PDE], 1 << 13
    invlpg [LARGE]
    expect_page_fault 33, LARGE, PF_RESERVED, mov al, [LARGE]
    and dword ptr [LARGE_PDE], -1 - (1 << 13)
    invlpg [LARGE]
    check_equal 34, byte ptr [LARGE], 0xC3
    ret

# Sixteen frames rotate through sixteen windows, 32 times; every third entry is no-execute.
test_moves:
    xor ebx, ebx
.Lfill_next:
    call take_frame
    mov [eax], ebx
    mov [eax + 0xFFC], ebx
    or eax, RW
    mov [WINDOW_PTE + ebx * 8], eax
    xor edx, edx
    mov eax, ebx
    mov ecx, 3
    div ecx
    xor eax, eax
    test edx, edx
    jnz .Lexecutable
    mov eax, PTE_NX_HIGH
.Lexecutable:
    mov [WINDOW_PTE + ebx * 8 + 4], eax
    inc ebx
    cmp ebx, 16
    jb .Lfill_next
    mov ebp, 1                      # round
    xor edi, edi                    # checksum
.Lrotate:
    mov eax, [WINDOW_PTE]           # window 0 moves to 15, all others one down
    mov edx, [WINDOW_PTE + 4]
    xor ecx, ecx
.Lrotate_next:
    mov ebx, [WINDOW_PTE + 8 + ecx * 8]
    mov [WINDOW_PTE + ecx * 8], ebx
    mov ebx, [WINDOW_PTE + 12 + ecx * 8]
    mov [WINDOW_PTE + ecx * 8 + 4], ebx
    inc ecx
    cmp ecx, 15
    jb .Lrotate_next
    mov [WINDOW_PTE + 15 * 8], eax
    mov [WINDOW_PTE + 15 * 8 + 4], edx
    reload_cr3
    xor ecx, ecx
    mov esi, WINDOW
.Lverify_next:
    lea edx, [ecx + ebp]
    and edx, 15                     # the frame that must be here
    check_equal 35, [esi], edx
    check_equal 36, [esi + 0xFFC], edx
    rol edi, 5
    add edi, edx
    add esi, 4096
    inc ecx
    cmp ecx, 16
    jb .Lverify_next
    inc ebp
    cmp ebp, 33
    jb .Lrotate
    mov [moves_checksum], edi
    ret

moves_checksum: .long 0

# The CPU may keep the four PDPT entries: a change counts from the next load of CR3 on.
test_late_directory:
    mov dword ptr [LATE_PD], LARGE_FRAME | RW | PTE_PS
    mov dword ptr [PDPT + 16], LATE_PD | PTE_P
    reload_cr3
    check_equal 37, dword ptr [LATE + 0x123458], 0x33333333
    mov dword ptr [LATE + 4], 0x66666666
    check_equal 38, dword ptr [LARGE_FRAME + 4], 0x66666666
    mov dword ptr [PDPT + 16], 0
    reload_cr3
    expect_page_fault 39, LATE + 4, 0, mov eax, [LATE + 4]
    ret

# In ring 3, at `entry`, with the gva in EBX, this fault must come, with EIP at `where`. The way back is INT 0x80.
.macro expect_from_ring3 number, gva, error, where, entry
    mov dword ptr [check_number], \number
    mov dword ptr [fault_error], \error
    mov dword ptr [fault_gva], \gva
    mov dword ptr [fault_eip], offset \where
    mov dword ptr [fault_resume], offset user_back
    mov ebx, \gva
    mov eax, offset \entry
    call visit_ring3
.endm

# Error codes of ring 3: U everywhere. The program only makes the accesses; announcing and checking happen here.
test_ring3:
    call take_frame
    mov byte ptr [eax], 0xC3
    lea edx, [eax + RW + PTE_U]
    map WINDOW, PTE_NX_HIGH         # ring 3 may write here, but not execute
    expect_from_ring3 40, WINDOW, PF_P | PF_U | PF_I, WINDOW, user_jump
    expect_from_ring3 41, PDPT, PF_P | PF_U, user_read, user_read
    expect_from_ring3 42, PDPT, PF_P | PF_U | PF_W, user_write, user_write
    expect_from_ring3 43, PDPT, PF_P | PF_U | PF_I, PDPT, user_jump
    expect_from_ring3 44, WINDOW + 0x10000, PF_U | PF_I, WINDOW + 0x10000, user_jump
    expect_from_ring3 45, WINDOW + 0x10004, PF_U, user_read, user_read
    check_equal 46, dword ptr [faults_seen], 20
    ret

# Go to ring 3 at EAX; leave_user comes back to the caller.
visit_ring3:
    mov [supervisor_esp], esp
    mov cx, USER_DATA
    mov ds, cx
    mov es, cx
    push USER_DATA
    push 0                          # the program needs no stack
    push EFLAGS_ONE
    push USER_CODE
    push eax
    iretd
leave_user:
    mov esp, [supervisor_esp]
    check_equal 47, dword ptr [fault_resume], 0  # the fault did come
    ret

supervisor_esp: .long 0

.balign 8
gdt:
    gdt_flat
    gdt_system task_state, 103, 0x89
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end

.balign 8
task_state:
    .long 0, RING0_STACK, DATA      # link, ESP0, SS0
    .space 88
    .word 0, 104

.balign 4096, 0
user_program:
user_jump:
    jmp ebx
user_read:
    mov eax, [ebx]
    jmp user_back
user_write:
    mov [ebx], eax
user_back:
    int 0x80
