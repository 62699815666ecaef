# paging32: 32-bit paging with page tables of its own making.
#
# A two-level walk turns a linear address (gva) into a physical one (gpa): bits 31-22 index the page directory, bits
# 21-12 the page table it points to, bits 11-0 are the offset in the page. A directory entry with PS maps 4 MiB at once.
# The guest
#   - maps, moves, aliases, write-protects and unmaps pages, through a page directory that maps itself,
#   - checks contents, accessed and dirty bits, and each page fault's CR2 and error code,
#   - runs a program in ring 3 that makes calls with INT 0x80, and gives it memory page by page as it touches it
#     (demand paging), and copies of shared pages when it writes to them (copy-on-write).

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "faults.inc"

# Physical memory
.equ DIRECTORY, 0x20000             # the page directory
.equ LOW_TABLE, 0x21000             # maps 0-4 MiB to itself
.equ WINDOW_TABLE, 0x22000          # maps the windows
.equ USER_TABLE, 0x23000            # maps the ring 3 program's memory
.equ LARGE_TABLE, 0x24000           # replaces the 4 MiB page for a while
.equ DIRECTORY_2, 0x25000           # a second address space
.equ WINDOW_TABLE_2, 0x26000        # its windows
.equ LARGE_FRAME, 0x400000          # what the 4 MiB page maps
.equ FRAMES, 0x100000               # frames to give out, from here on
.equ RAM_NEEDED, 0x800000

# Linear memory
.equ LARGE, 0x00800000              # the 4 MiB page
.equ USER, 0x08000000               # memory of the ring 3 program: 4 MiB
.equ COPIED, USER + 0x10000         # two pages that share a frame until one is written
.equ HEAP, USER + 0x20000           # demand-zero pages
.equ HEAP_PAGES, 64
.equ HEAP_WRITTEN_FIRST, 48         # pages 0-47 are first written, 48-63 first read
.equ USER_STACK, USER + 0x80000     # top of a demand-zero stack
.equ USER_STACK_PAGES, 4
.equ NOWHERE, 0x0C000000            # no page table here
.equ WINDOW, 0x10000000             # windows: pages to map at will
.equ TABLES, 0xFFC00000             # the directory as a page table: all entries, by page number
.equ DIRECTORY_GVA, 0xFFFFF000      # and itself as a page

.equ WINDOW_PTE, TABLES + (WINDOW >> 12) * 4
.equ LOW_PDE, DIRECTORY_GVA
.equ LARGE_PDE, DIRECTORY_GVA + (LARGE >> 22) * 4
.equ WINDOW_PDE, DIRECTORY_GVA + (WINDOW >> 22) * 4
.equ SELF_PDE, DIRECTORY_GVA + 1023 * 4

.equ RW, PTE_P | PTE_W              # a supervisor page
.equ USER_RW, PTE_P | PTE_W | PTE_U

# Calls of the ring 3 program: number in EAX, INT 0x80
.equ CALL_EXIT, 0                   # EBX: 0 or the number of the failed check
.equ CALL_WRITE, 1                  # BL: a character for the console
.equ CALL_YIELD, 2                  # nobody else is there; counted
.equ CALL_CHECKSUM, 3               # EBX: checksum of the heap
.equ CALL_EXPECT, 4                 # announce a fault: EBX gva, ECX error code, ESI where, EDI where to go on

.macro map gva, entry
    mov eax, \gva
    mov edx, \entry
    call map_page
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate 14, page_fault
    set_gate 0x80, system_call, GATE_INTERRUPT | GATE_DPL3
    mov ax, TSS
    ltr ax                          # from here the CPU finds the ring 0 stack
    check 1                         # RAM for the 4 MiB page
    cmp dword ptr [BOOT_RAM_SIZE + 4], 0
    jne .Lenough
    cmp dword ptr [BOOT_RAM_SIZE], RAM_NEEDED
    jb failed
.Lenough:
    call build_tables
    mov eax, cr4
    or eax, CR4_PSE
    mov cr4, eax
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
    print "paging32: paging is on\n"
    call test_self_map
    call test_windows
    call test_accessed_dirty
    call test_write_protection
    call test_moves
    call test_large_page
    call test_reserved_bit
    call test_page_crossing
    call test_second_space
    print "paging32: supervisor checks done, faults taken on purpose "
    print_decimal [faults_seen]
    print "\n"

    # Enter ring 3 with IRET: it takes EIP, CS, EFLAGS, ESP and SS from the stack.
    push USER_DATA
    push USER_STACK
    push EFLAGS_ONE
    push USER_CODE
    push offset user_program
    mov ax, USER_DATA
    mov ds, ax
    mov es, ax
    iretd

# ---- page tables -----------------------------------------------------------------------------------------------------

build_tables:
    mov edi, DIRECTORY              # all entries not present
    xor eax, eax
    mov ecx, 7 * 4096 / 4
    rep stosd
    mov edi, LOW_TABLE              # page n to frame n
    mov eax, RW
    mov ecx, 1024
.Lidentity_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lidentity_next
    # The program's own pages of this image are open to ring 3, but not for writing. The directory entry must allow it
    # too: rights are the intersection of all levels.
    mov eax, offset user_program
    shr eax, 12
    mov ecx, USER_PROGRAM_PAGES
.Lopen_next:
    and dword ptr [LOW_TABLE + eax * 4], -1 - PTE_W
    or dword ptr [LOW_TABLE + eax * 4], PTE_U
    inc eax
    dec ecx
    jnz .Lopen_next
    mov dword ptr [DIRECTORY], LOW_TABLE | USER_RW
    mov dword ptr [DIRECTORY + (LARGE >> 22) * 4], LARGE_FRAME | RW | PTE_PS
    mov dword ptr [DIRECTORY + (USER >> 22) * 4], USER_TABLE | USER_RW
    mov dword ptr [DIRECTORY + (WINDOW >> 22) * 4], WINDOW_TABLE | RW
    mov dword ptr [DIRECTORY + 1023 * 4], DIRECTORY | RW
    mov eax, offset shared_frame    # both copied pages show one frame, read-only
    or eax, PTE_P | PTE_U
    mov [USER_TABLE + ((COPIED - USER) >> 12) * 4], eax
    mov [USER_TABLE + ((COPIED - USER) >> 12) * 4 + 4], eax
    ret

# Write the entry EDX for the page at gva EAX through the self-map, and drop the old translation. Changes no register.
map_page:
    push ecx
    mov ecx, eax
    shr ecx, 12
    mov [TABLES + ecx * 4], edx
    invlpg [eax]
    pop ecx
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

# ---- supervisor checks -----------------------------------------------------------------------------------------------

# The last directory entry points to the directory. So the walk for the last 4 MiB takes the directory for a page table,
# and the tables themselves appear as pages.
test_self_map:
    mov eax, [SELF_PDE]
    and eax, 0xFFFFF000
    check_equal 2, eax, DIRECTORY
    mov eax, [TABLES + (0xB8000 >> 12) * 4]  # entry of gva 0xB8000 in LOW_TABLE
    and eax, 0xFFFFF000
    check_equal 3, eax, 0xB8000
    mov eax, [WINDOW_PDE]
    and eax, 0xFFFFF000
    check_equal 4, eax, WINDOW_TABLE
    ret

# Map two frames in turn at one gva, look at one of them through an alias, unmap.
test_windows:
    call take_frame
    mov esi, eax                    # first frame
    call take_frame
    mov edi, eax                    # second frame
    lea edx, [esi + RW]
    mov eax, WINDOW
    call map_page
    mov dword ptr [WINDOW + 8], 0x11111111
    lea edx, [edi + RW]
    call map_page                   # the same gva now shows the second frame
    check_equal 5, dword ptr [WINDOW + 8], 0
    mov dword ptr [WINDOW + 8], 0x22222222
    lea edx, [esi + RW]
    mov eax, WINDOW + 0x1000
    call map_page                   # an alias of the first frame
    check_equal 6, dword ptr [WINDOW + 0x1008], 0x11111111
    lea edx, [edi + RW]
    mov eax, WINDOW + 0x2000
    call map_page                   # two gvas for the second frame: what one writes, the other reads
    mov dword ptr [WINDOW + 0x200C], 0x33333333
    check_equal 7, dword ptr [WINDOW + 0xC], 0x33333333
    check_equal 8, dword ptr [WINDOW + 0x2008], 0x22222222
    check_equal 9, dword ptr [edi + 8], 0x22222222  # and a third: the frame's own address, from the identity map

    # Not present: no bit of the error code is set for a read, W for a write.
    map WINDOW, 0
    expect_page_fault 10, WINDOW + 8, 0, mov eax, [WINDOW + 8]
    expect_page_fault 11, WINDOW + 0xFFF, PF_W, mov byte ptr [WINDOW + 0xFFF], 1
    expect_page_fault 12, WINDOW, 0, cmp byte ptr [WINDOW], 0
    expect_page_fault 13, NOWHERE + 0x123, 0, mov al, [NOWHERE + 0x123]
    check_equal 14, dword ptr [edi + 8], 0x22222222  # the frame kept its contents

    # A page-table page mapped as an ordinary page: entries can be written there as well.
    map WINDOW + 0x8000, WINDOW_TABLE | RW
    lea eax, [esi + RW]
    mov [WINDOW + 0x8000 + 9 * 4], eax  # the entry of window 9
    invlpg [WINDOW + 0x9000]
    check_equal 15, dword ptr [WINDOW + 0x9008], 0x11111111
    map WINDOW + 0x8000, 0
    ret

# The CPU sets A in each entry of a walk, and D in the last one when the access is a write. It never clears them.
test_accessed_dirty:
    call take_frame
    lea edx, [eax + RW]
    mov eax, WINDOW
    call map_page
    and dword ptr [WINDOW_PDE], -1 - PTE_A
    mov eax, cr3                    # a new CR3 drops all translations that are not global
    mov cr3, eax
    mov eax, [WINDOW + 0x10]
    mov edx, [WINDOW_PTE]
    and edx, PTE_A | PTE_D
    check_equal 16, edx, PTE_A
    mov edx, [WINDOW_PDE]
    and edx, PTE_A
    check_equal 17, edx, PTE_A
    mov byte ptr [WINDOW + 0x10], 1
    mov edx, [WINDOW_PTE]
    and edx, PTE_A | PTE_D
    check_equal 18, edx, PTE_A | PTE_D
    # Cleared by hand, with INVLPG, they come back with the next access.
    and dword ptr [WINDOW_PTE], -1 - PTE_A - PTE_D
    invlpg [WINDOW]
    mov al, [WINDOW + 0x10]
    mov edx, [WINDOW_PTE]
    and edx, PTE_A | PTE_D
    check_equal 19, edx, PTE_A
    # A fault sets no dirty bit.
    and dword ptr [WINDOW_PTE], -1 - PTE_W - PTE_A
    invlpg [WINDOW]
    expect_page_fault 20, WINDOW, PF_P | PF_W, mov byte ptr [WINDOW], 1
    mov edx, [WINDOW_PTE]
    and edx, PTE_D
    check_equal 21, edx, 0
    ret

# With CR0.WP a read-only page binds the supervisor; without, it binds ring 3 only.
test_write_protection:
    call take_frame
    lea edx, [eax + PTE_P]
    mov ebx, eax
    mov eax, WINDOW
    call map_page
    mov eax, [WINDOW]
    expect_page_fault 22, WINDOW + 4, PF_P | PF_W, mov dword ptr [WINDOW + 4], 7
    mov eax, cr0
    and eax, -1 - CR0_WP
    mov cr0, eax
    mov dword ptr [WINDOW + 4], 7
    or eax, CR0_WP
    mov cr0, eax
    check_equal 23, dword ptr [ebx + 4], 7
    expect_page_fault 24, WINDOW + 4, PF_P | PF_W, mov dword ptr [WINDOW + 4], 8
    check_equal 25, dword ptr [ebx + 4], 7
    # Writable in the table, read-only in the directory: read-only.
    lea edx, [ebx + RW]
    mov eax, WINDOW
    call map_page
    mov dword ptr [WINDOW + 4], 9
    and dword ptr [WINDOW_PDE], -1 - PTE_W
    mov eax, cr3
    mov cr3, eax
    expect_page_fault 26, WINDOW + 4, PF_P | PF_W, mov dword ptr [WINDOW + 4], 10
    or dword ptr [WINDOW_PDE], PTE_W
    mov eax, cr3
    mov cr3, eax
    mov dword ptr [WINDOW + 4], 10
    check_equal 27, dword ptr [ebx + 4], 10
    ret

# Sixteen frames rotate through sixteen windows, 32 times; each frame carries its number.
test_moves:
    xor ebx, ebx
.Lfill_next:
    call take_frame
    mov [eax], ebx
    mov [eax + 0xFFC], ebx
    or eax, RW
    mov [WINDOW_PTE + ebx * 4], eax
    mov edx, ebx
    shl edx, 12
    invlpg [WINDOW + edx]
    inc ebx
    cmp ebx, 16
    jb .Lfill_next
    mov ebp, 1                      # round
.Lrotate:
    mov edx, [WINDOW_PTE]           # window 0 moves to 15, all others one down
    xor ecx, ecx
.Lrotate_next:
    mov eax, [WINDOW_PTE + 4 + ecx * 4]
    mov [WINDOW_PTE + ecx * 4], eax
    inc ecx
    cmp ecx, 15
    jb .Lrotate_next
    mov [WINDOW_PTE + 15 * 4], edx
    xor ecx, ecx
    mov esi, WINDOW
.Lverify_next:
    invlpg [esi]
    lea edx, [ecx + ebp]
    and edx, 15                     # the frame that must be here
    check_equal 28, [esi], edx
    check_equal 29, [esi + 0xFFC], edx
    add esi, 4096
    inc ecx
    cmp ecx, 16
    jb .Lverify_next
    inc ebp
    cmp ebp, 33
    jb .Lrotate
    ret

# A 4 MiB page, seen through 4 KiB windows; then the same memory through a page table, and back.
test_large_page:
    mov dword ptr [LARGE + 0x123458], 0x44444444
    mov dword ptr [LARGE + 0x3FFFFC], 0x55555555
    map WINDOW, LARGE_FRAME + 0x123000 + RW
    check_equal 30, dword ptr [WINDOW + 0x458], 0x44444444
    map WINDOW, LARGE_FRAME + 0x3FF000 + RW
    check_equal 31, dword ptr [WINDOW + 0xFFC], 0x55555555
    mov eax, [LARGE_PDE]
    and eax, PTE_A | PTE_D
    check_equal 32, eax, PTE_A | PTE_D
    # Split it: 1024 entries for the same frames, then the directory entry.
    mov edi, LARGE_TABLE
    mov eax, LARGE_FRAME | RW
    mov ecx, 1024
.Lsplit_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lsplit_next
    mov dword ptr [LARGE_PDE], LARGE_TABLE | RW
    mov eax, cr3
    mov cr3, eax
    check_equal 33, dword ptr [LARGE + 0x123458], 0x44444444
    mov dword ptr [LARGE_TABLE + 0x123 * 4], LARGE_FRAME + 0x3FF000 + RW  # one of its pages moves
    invlpg [LARGE + 0x123000]
    check_equal 34, dword ptr [LARGE + 0x123FFC], 0x55555555
    # Join it again. The frame of the table is an ordinary page from now on.
    mov dword ptr [LARGE_PDE], LARGE_FRAME | RW | PTE_PS
    mov eax, cr3
    mov cr3, eax
    mov edi, LARGE_TABLE
    mov eax, 0x66666666
    mov ecx, 1024
    rep stosd
    check_equal 35, dword ptr [LARGE + 0x123458], 0x44444444
    check_equal 36, dword ptr [LARGE_TABLE + 0x123 * 4], 0x66666666
    ret

# Bit 21 of an entry for a 4 MiB page is reserved: a fault with P and RSVD.
test_reserved_bit:
    or dword ptr [LARGE_PDE], 1 << 21
    invlpg [LARGE]
    expect_page_fault 37, LARGE + 0x123458, PF_RESERVED, mov eax, [LARGE + 0x123458]
    expect_page_fault 38, LARGE, PF_W | PF_RESERVED, mov byte ptr [LARGE], 0
    and dword ptr [LARGE_PDE], -1 - (1 << 21)
    invlpg [LARGE]
    check_equal 39, dword ptr [LARGE + 0x123458], 0x44444444
    ret

# A store that begins in one page and ends in the next: the fault names the page that is missing, and no byte was
# stored.
test_page_crossing:
    call take_frame
    lea edx, [eax + RW]
    mov ebx, eax
    mov eax, WINDOW
    call map_page
    map WINDOW + 0x1000, 0
    expect_page_fault 40, WINDOW + 0x1000, PF_W, mov dword ptr [WINDOW + 0xFFE], -1
    check_equal 41, dword ptr [ebx + 0xFFC], 0
    expect_page_fault 42, WINDOW + 0x1000, 0, mov eax, [WINDOW + 0xFFD]
    call take_frame
    mov esi, eax
    lea edx, [eax + RW]
    mov eax, WINDOW + 0x1000
    call map_page
    mov dword ptr [WINDOW + 0xFFE], 0x12345678
    check_equal 43, word ptr [ebx + 0xFFE], 0x5678
    check_equal 44, word ptr [esi], 0x1234
    ret

# A second directory with the same kernel and other windows: CR3 changes what a gva means.
test_second_space:
    mov esi, DIRECTORY              # a copy of the first,
    mov edi, DIRECTORY_2
    mov ecx, 1024
    rep movsd
    mov dword ptr [DIRECTORY_2 + (WINDOW >> 22) * 4], WINDOW_TABLE_2 | RW  # but for the windows
    mov dword ptr [DIRECTORY_2 + 1023 * 4], DIRECTORY_2 | RW  # and the self-map
    call take_frame
    mov dword ptr [eax], 0x77777777
    or eax, RW
    mov [WINDOW_TABLE], eax
    call take_frame
    mov dword ptr [eax], 0x88888888
    or eax, RW
    mov [WINDOW_TABLE_2], eax
    mov ecx, 8                      # there and back, several times
.Lspaces_next:
    mov eax, DIRECTORY_2
    mov cr3, eax
    check_equal 45, dword ptr [WINDOW], 0x88888888
    mov eax, [SELF_PDE]
    and eax, 0xFFFFF000
    check_equal 46, eax, DIRECTORY_2
    mov eax, DIRECTORY
    mov cr3, eax
    check_equal 47, dword ptr [WINDOW], 0x77777777
    dec ecx
    jnz .Lspaces_next
    ret

# ---- fault and call handlers -----------------------------------------------------------------------------------------

# Ring 3's data segments are good for ring 0 too: all segments are flat.
page_fault:
    pushad
    cmp dword ptr [fault_resume], 0
    jne .Lannounced
    mov eax, cr2
    mov edx, [esp + 32]             # the error code
    mov ecx, eax
    sub ecx, HEAP
    cmp ecx, HEAP_PAGES * 4096
    jb .Ldemand_zero
    mov ecx, eax
    sub ecx, USER_STACK - USER_STACK_PAGES * 4096
    cmp ecx, USER_STACK_PAGES * 4096
    jb .Ldemand_zero
    mov ecx, eax
    sub ecx, COPIED
    cmp ecx, 2 * 4096
    jb .Lcopy
    popad
    jmp unexpected_page_fault
.Lannounced:
    call take_announced_fault
    jmp .Lfault_done

# A first touch: a frame of zeros. Only a page that is not present, and only ring 3, may come here.
.Ldemand_zero:
    check 48
    mov ebx, edx
    and ebx, -1 - PF_W
    cmp ebx, PF_U
    jne failed
    and edx, PF_W                   # 2 for a write, 0 for a read
    inc dword ptr [demand_read + edx * 2]
    mov ebx, eax
    call take_frame
    lea edx, [eax + USER_RW]
    mov eax, ebx
    call map_page
    jmp .Lfault_done

# A write to a shared page: a copy of its own.
.Lcopy:
    check_equal 49, edx, PF_P | PF_W | PF_U
    mov ebx, eax
    and ebx, 0xFFFFF000
    call take_frame
    mov esi, ebx
    mov edi, eax
    mov ecx, 1024
    rep movsd
    lea edx, [eax + USER_RW]
    mov eax, ebx
    call map_page
    inc dword ptr [copies]
.Lfault_done:
    popad
    add esp, 4
    iretd

demand_read: .long 0                # demand-zero faults by reads,
demand_write: .long 0               # and by writes: 4 bytes behind
copies: .long 0                     # copy-on-write faults
yields: .long 0
user_checksum: .long 0

system_call:
    cmp eax, CALL_WRITE
    je .Lcall_write
    cmp eax, CALL_YIELD
    je .Lcall_yield
    cmp eax, CALL_CHECKSUM
    je .Lcall_checksum
    cmp eax, CALL_EXPECT
    je .Lcall_expect
    check 50                        # an unknown call
    cmp eax, CALL_EXIT
    jne failed
    mov [check_number], ebx         # the program's own verdict
    test ebx, ebx
    jne failed
    jmp finish
.Lcall_write:
    mov al, bl
    out PORT_CONSOLE, al
    iretd
.Lcall_yield:
    inc dword ptr [yields]
    iretd
.Lcall_checksum:
    mov [user_checksum], ebx
    iretd
.Lcall_expect:
    mov [fault_gva], ebx
    mov [fault_error], ecx
    mov [fault_eip], esi
    mov [fault_resume], edi
    iretd

# The program is done: look at its memory from this side. The user table says which frames the heap got.
finish:
    xor ebx, ebx                    # checksum
    mov esi, USER_TABLE + ((HEAP - USER) >> 12) * 4
    mov ecx, HEAP_PAGES
.Lheap_page:
    mov edi, [esi]
    add esi, 4
    and edi, 0xFFFFF000
    mov edx, 1024
.Lheap_word:
    rol ebx, 1
    add ebx, [edi]
    add edi, 4
    dec edx
    jnz .Lheap_word
    dec ecx
    jnz .Lheap_page
    check_equal 51, ebx, [user_checksum]
    check_equal 52, dword ptr [demand_read], HEAP_PAGES - HEAP_WRITTEN_FIRST
    check_equal 53, dword ptr [demand_write], HEAP_WRITTEN_FIRST + USER_STACK_PAGES
    check_equal 54, dword ptr [copies], 2
    check_equal 55, dword ptr [yields], 10
    check_equal 56, dword ptr [shared_frame], 0x99999999  # neither copy changed the original
    check_equal 57, dword ptr [shared_frame + 0xFFC], 0
    print "paging32: demand-zero "
    print_decimal [demand_write]
    print " by writes "
    print_decimal [demand_read]
    print " by reads, copy-on-write "
    print_decimal [copies]
    print ", yields "
    print_decimal [yields]
    print ", announced faults "
    print_decimal [faults_seen]
    print ", checksum "
    print_hex ebx
    print "\n"
    succeed

.balign 8
gdt:
    gdt_flat
    gdt_system task_state, 103, 0x89  # an available 32-bit TSS
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end

# The task state segment: only the ring 0 stack in it is used.
.balign 8
task_state:
    .long 0, RING0_STACK, DATA      # link, ESP0, SS0
    .space 88
    .word 0, 104                    # no I/O permission bitmap

.balign 4096, 0
shared_frame:                       # the frame that both COPIED pages show at first
    .long 0x99999999
    .space 4092

# ---- the ring 3 program ----------------------------------------------------------------------------------------------

# Announce a fault of the instruction, run it, and go on behind it. Changes all but EBP and ESP.
.macro user_expect_fault number, gva, error, instruction:vararg
    mov ebp, \number
    mov eax, CALL_EXPECT
    mov ebx, \gva
    mov ecx, \error
    mov esi, offset .Luser_faults\@
    mov edi, offset .Luser_resumes\@
    int 0x80
.Luser_faults\@:
    \instruction
    jmp user_failed
.Luser_resumes\@:
.endm

.balign 4096, 0
user_program:
    mov ebp, 60                     # EBP: number of the check that runs now
    mov ax, cs
    and eax, 3                      # the privilege level
    cmp eax, 3
    jne user_failed

    # The first PUSH already touches a page that is not there yet.
    mov esi, offset user_greeting
    call user_print

    # The stack grows down through its pages.
    mov ecx, USER_STACK_PAGES * 1024 - 16
.Lstack_next:
    push ecx
    dec ecx
    jnz .Lstack_next
    mov ebp, 61
    mov ecx, 1
.Lunstack_next:
    pop eax
    cmp eax, ecx
    jne user_failed
    inc ecx
    cmp ecx, USER_STACK_PAGES * 1024 - 16
    jbe .Lunstack_next

    # Heap, first part: a write comes first. Second part: a read, which must give 0, then a write.
    mov ebp, 62
    xor ecx, ecx
    mov edi, HEAP
.Lheap_next:
    cmp ecx, HEAP_WRITTEN_FIRST
    jb .Lheap_write
    mov eax, [edi + ecx * 8]
    test eax, eax
    jnz user_failed
.Lheap_write:
    imul eax, ecx, 0x01010101
    add eax, 12345
    mov [edi + ecx * 8], eax
    mov [edi + 0xFFC], eax
    add edi, 4096
    inc ecx
    cmp ecx, HEAP_PAGES
    jb .Lheap_next

    mov edi, 10
.Lyield_next:
    mov eax, CALL_YIELD
    int 0x80
    dec edi
    jnz .Lyield_next

    # Checksum of the whole heap.
    xor ebx, ebx
    mov edi, HEAP
    mov ecx, HEAP_PAGES * 1024
.Lsum_next:
    rol ebx, 1
    add ebx, [edi]
    add edi, 4
    dec ecx
    jnz .Lsum_next
    mov eax, CALL_CHECKSUM
    int 0x80

    # Two pages share a frame until one is written.
    mov ebp, 63
    cmp dword ptr [COPIED], 0x99999999
    jne user_failed
    mov dword ptr [COPIED + 0xFFC], 0x1111
    cmp dword ptr [COPIED + 0x1FFC], 0  # the other still shows the original
    jne user_failed
    mov dword ptr [COPIED + 0x1000], 0x2222
    mov ebp, 64
    cmp dword ptr [COPIED], 0x99999999
    jne user_failed
    cmp dword ptr [COPIED + 0x1000], 0x2222
    jne user_failed

    # What ring 3 must not do. U is set in each error code; a fetch looks like a read here, as there is no NX.
    user_expect_fault 65, DIRECTORY, PF_P | PF_U, mov eax, [DIRECTORY]
    user_expect_fault 66, DIRECTORY + 4, PF_P | PF_W | PF_U, mov dword ptr [DIRECTORY + 4], 0
    user_expect_fault 67, user_program, PF_P | PF_W | PF_U, mov byte ptr [user_program], 0x90
    user_expect_fault 68, SELF_PDE, PF_P | PF_U, mov eax, [SELF_PDE]
    user_expect_fault 69, NOWHERE, PF_U, mov eax, [NOWHERE]
    user_expect_fault 70, NOWHERE + 0xFFF, PF_U, mov al, [NOWHERE + 0xFFF]

    # Jumps into nothing and into the kernel: the faulting instruction is the target.
    mov ebp, 71
    mov eax, CALL_EXPECT
    mov ebx, NOWHERE + 5
    mov ecx, PF_U
    mov esi, ebx
    mov edi, offset .Ljumped
    int 0x80
    jmp ebx
.Ljumped:
    mov ebp, 72
    mov eax, CALL_EXPECT
    mov ebx, offset put_string
    mov ecx, PF_P | PF_U
    mov esi, ebx
    mov edi, offset .Lcalled
    int 0x80
    call ebx
.Lcalled:
    mov eax, CALL_EXIT
    xor ebx, ebx
    int 0x80

user_failed:
    mov eax, CALL_EXIT
    mov ebx, ebp
    int 0x80

# Print the string at ESI, a call a character.
user_print:
    mov bl, [esi]
    inc esi
    test bl, bl
    jz .Luser_print_done
    mov eax, CALL_WRITE
    int 0x80
    jmp user_print
.Luser_print_done:
    ret

user_greeting: .asciz "paging32: hello from ring 3\n"
user_program_end:
.equ USER_PROGRAM_PAGES, 1
