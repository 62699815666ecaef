# long64: 64-bit mode ("long mode") with 4-level paging.
#
# From real mode through protected mode: PAE on, a PML4 in CR3, EFER.LME on, then paging on, then a jump to a 64-bit
# code segment. A walk uses four times nine bits of the gva: page-map level 4 (PML4), page-directory pointers (PDPT),
# page directory (PD), page table (PT); a PD entry may map 2 MiB at once. The guest checks aliases in the upper half, 2
# MiB and 4 KiB pages, no-execute, reserved bits, non-canonical addresses, exceptions on stacks of their own (IST), and
# runs a ring 3 program that uses SYSCALL and SYSRET.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"

# Selectors. SYSCALL takes CS and the SS behind it, SYSRET the SS behind its base and the CS behind that: the order is
# fixed.
.equ CODE64, 0x18
.equ DATA64, 0x20
.equ USER_CODE32, 0x28 | 3
.equ USER_DATA64, 0x30 | 3
.equ USER_CODE64, 0x38 | 3
.equ TSS64, 0x40

.include "console64.inc"
.include "interrupts64.inc"

# Physical memory
.equ PML4, 0x20000
.equ LOW_PDPT, 0x21000              # gva 0-512 GiB
.equ LOW_PD, 0x22000                # gva 0-1 GiB: 4 KiB pages below 2 MiB, then 2 MiB pages up to 16 MiB, gva = gpa
.equ LOW_PT, 0x23000
.equ WINDOW_PD, 0x24000             # gva 1-2 GiB
.equ WINDOW_PT, 0x25000
.equ USER_PDPT, 0x26000             # gva 512-1024 GiB
.equ USER_PD, 0x27000
.equ USER_PT, 0x28000
.equ TABLES_END, 0x29000
.equ LARGE_FRAME, 0x800000          # what the 2 MiB page maps
.equ FRAMES, 0x100000               # frames to give out, up to 2 MiB
.equ RAM_NEEDED, 0x1000000

# Linear memory
.equ WINDOW, 0x40000000             # windows: 4 KiB pages to map at will
.equ LARGE, 0x40200000              # the 2 MiB page
.equ GIANT, 0x80000000              # a 1 GiB page, where the CPU has them
.equ NOWHERE, 0xC0000000            # no PD here
.equ USER, 0x8000000000             # the ring 3 program
.equ USER_HEAP, USER + 0x10000      # demand-zero pages, not executable
.equ USER_HEAP_PAGES, 32
.equ USER_STACK, USER + 0x80000     # top of a stack of demand-zero pages
.equ UPPER, 0xFFFF800000000000      # the low 512 GiB again, in the upper half
.equ NON_CANONICAL, 0x0000800000000000  # bits 63-48 must repeat bit 47
.equ TABLES, 0xFFFFFF0000000000     # PML4 entry 510 maps the PML4 itself: all entries, by page number

.equ WINDOW_PTE, TABLES + (WINDOW >> 12) * 8
.equ RW, PTE_P | PTE_W
.equ NX, 1 << 63

.equ IST1_STACK, 0x5000             # for double faults
.equ IST2_STACK, 0x4000             # for page faults, in one check
.equ SYSCALL_STACK, 0x3000

# SYSCALL numbers, in RAX
.equ CALL_EXIT, 0                   # RDI: 0 or the number of the failed check
.equ CALL_WRITE, 1                  # DIL: a character for the console
.equ CALL_CHECKSUM, 2               # RDI: checksum of the heap
.equ CALL_EXPECT, 3                 # announce a page fault: RDI gva, RSI error code, RDX where, R10 where to go on

# Map the page at gva with the entry in RDX. Changes RAX.
.macro map gva
    mov rax, \gva
    call map_page
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    mov edi, PML4
    xor eax, eax
    mov ecx, (TABLES_END - PML4) / 4
    rep stosd
    mov dword ptr [PML4], LOW_PDPT | RW
    mov dword ptr [PML4 + 8], USER_PDPT | RW | PTE_U
    mov dword ptr [PML4 + 256 * 8], LOW_PDPT | RW
    mov dword ptr [PML4 + 510 * 8], PML4 | RW
    mov dword ptr [LOW_PDPT], LOW_PD | RW
    mov dword ptr [LOW_PDPT + 8], WINDOW_PD | RW
    mov dword ptr [WINDOW_PD], WINDOW_PT | RW
    mov dword ptr [WINDOW_PD + 8], LARGE_FRAME | RW | PTE_PS
    mov dword ptr [USER_PDPT], USER_PD | RW | PTE_U
    mov dword ptr [USER_PD], USER_PT | RW | PTE_U
    mov dword ptr [LOW_PD], LOW_PT | RW
    mov eax, 0x200000 | RW | PTE_PS
    mov edi, LOW_PD + 8
.Llow_large_next:
    mov [edi], eax
    add eax, 0x200000
    add edi, 8
    cmp eax, RAM_NEEDED
    jb .Llow_large_next
    mov eax, RW
    mov edi, LOW_PT
.Llow_next:
    mov [edi], eax
    add eax, 4096
    add edi, 8
    cmp edi, LOW_PT + 4096
    jb .Llow_next

    mov eax, cr4
    or eax, CR4_PAE
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_LME | EFER_NXE | EFER_SCE
    wrmsr
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax                    # long mode is active, CS is still a 32-bit segment: compatibility mode
    ljmp CODE64:start64

.code64
start64:
    mov ax, DATA64
    mov ss, ax
    mov ds, ax
    mov es, ax
    mov rsp, STACK
    call install_idt
    mov ax, TSS64
    ltr ax
    print "long64: 64-bit mode is on\n"
    call test_mode
    call test_windows
    call test_upper_half
    call test_large_page
    call test_no_execute
    call test_reserved_bits
    call test_exceptions
    call test_stacks
    call test_optional
    print "long64: supervisor checks done, faults taken on purpose "
    print_decimal [faults_seen]
    print "\n"
    jmp enter_user

# ---- supervisor checks -----------------------------------------------------------------------------------------------

# What CPUID and EFER say; registers really have 64 bits.
test_mode:
    mov eax, 0x80000001
    cpuid
    check 1                         # long mode
    bt edx, 29
    jnc failed
    check 2                         # no-execute
    bt edx, 20
    jnc failed
    check 3                         # SYSCALL
    bt edx, 11
    jnc failed
    mov ecx, MSR_EFER
    rdmsr
    check 4                         # EFER.LMA: long mode is active
    bt eax, 10
    jnc failed
    mov rax, 0x123456789ABCDEF0
    mov r15, rax
    shr r15, 32
    check_equal 5, r15d, 0x12345678
    mov eax, eax                    # writing 32 bits clears the upper 32
    shr rax, 32
    check_equal 6, rax, 0
    check 7                         # enough RAM
    mov eax, RAM_NEEDED
    cmp [BOOT_RAM_SIZE], rax
    jb failed
    ret

# Map two frames in turn at one gva, alias, unmap, write-protect.
test_windows:
    call take_frame
    mov rsi, rax
    call take_frame
    mov rdi, rax
    lea rdx, [rsi + RW]
    map WINDOW
    mov qword ptr [WINDOW + 8], 0x11111111
    lea rdx, [rdi + RW]
    map WINDOW
    check_equal 8, qword ptr [WINDOW + 8], 0
    mov qword ptr [WINDOW + 8], 0x22222222
    lea rdx, [rsi + RW]
    map WINDOW + 0x1000
    check_equal 9, qword ptr [WINDOW + 0x1008], 0x11111111
    check_equal 10, qword ptr [rdi + 8], 0x22222222
    mov rax, WINDOW_PTE             # accessed and dirty bits, through the self-map
    mov edx, [rax]
    and edx, PTE_A | PTE_D
    check_equal 11, edx, PTE_A | PTE_D
    mov edx, [rax + 8]
    and edx, PTE_A | PTE_D
    check_equal 12, edx, PTE_A
    xor edx, edx
    map WINDOW
    expect_page_fault 13, WINDOW + 8, 0, mov rax, [WINDOW + 8]
    expect_page_fault 14, WINDOW + 0xFF8, PF_W, mov qword ptr [WINDOW + 0xFF8], 1
    mov ebx, NOWHERE
    expect_page_fault 15, NOWHERE, 0, mov al, [rbx]
    lea rdx, [rdi + PTE_P]
    map WINDOW
    expect_page_fault 16, WINDOW + 8, PF_P | PF_W, mov qword ptr [WINDOW + 8], 1
    check_equal 17, qword ptr [WINDOW + 8], 0x22222222
    ret

# One PDPT under two PML4 entries: the low half again, 128 TiB below the top.
test_upper_half:
    mov rbx, UPPER
    mov rax, [BOOT_RAM_SIZE]
    check_equal 18, [rbx + BOOT_RAM_SIZE], rax
    mov qword ptr [rbx + upper_word], 0x33333333
    check_equal 19, qword ptr [upper_word], 0x33333333
    lea rax, [rbx + upper_code]
    call rax                        # run code there
    lea rcx, [rbx + upper_code_end]
    check_equal 20, rax, rcx
    ret
upper_code:
    lea rax, [rip + upper_code_end]        # RIP-relative: says where it runs
upper_code_end:
    ret

# A 2 MiB page; the identity map shows the same memory.
test_large_page:
    mov qword ptr [LARGE + 0x12340], 0x44444444
    mov qword ptr [LARGE + 0x1FFFF8], 0x55555555
    check_equal 21, qword ptr [LARGE_FRAME + 0x12340], 0x44444444
    check_equal 22, qword ptr [LARGE_FRAME + 0x1FFFF8], 0x55555555
    lea rdx, [LARGE_FRAME + 0x12000 + RW]
    map WINDOW
    check_equal 23, qword ptr [WINDOW + 0x340], 0x44444444
    mov eax, [WINDOW_PD + 8]
    and eax, PTE_A | PTE_D
    check_equal 24, eax, PTE_A | PTE_D
    mov qword ptr [WINDOW_PD + 8], 0
    invlpg [LARGE]
    expect_page_fault 25, LARGE + 0x12340, 0, mov rax, [LARGE + 0x12340]
    mov qword ptr [WINDOW_PD + 8], LARGE_FRAME | RW | PTE_PS
    invlpg [LARGE]
    check_equal 26, qword ptr [LARGE + 0x12340], 0x44444444
    ret

# NX in the entry of any level forbids fetches, and nothing else. The error code of a fetch has I set.
test_no_execute:
    call take_frame
    mov byte ptr [rax], 0xC3        # RET
    mov rsi, rax
    lea rdx, [rsi + RW]
    map WINDOW
    mov eax, WINDOW
    call rax
    mov rdx, NX | RW
    or rdx, rsi
    map WINDOW
    expect_fetch_fault 27, WINDOW, PF_P | PF_I
    check_equal 28, byte ptr [WINDOW], 0xC3
    xor edx, edx
    map WINDOW
    expect_fetch_fault 29, WINDOW + 0x123, PF_I
    lea rdx, [rsi + RW]
    map WINDOW
    mov eax, WINDOW
    call rax
    bts qword ptr [LOW_PDPT + 8], 63  # NX two levels up
    mov rax, cr3
    mov cr3, rax
    expect_fetch_fault 30, WINDOW, PF_P | PF_I
    btr qword ptr [LOW_PDPT + 8], 63
    mov rax, cr3
    mov cr3, rax
    mov eax, WINDOW
    call rax
    mov byte ptr [LARGE], 0xC3
    mov eax, LARGE
    call rax
    bts qword ptr [WINDOW_PD + 8], 63
    invlpg [LARGE]
    expect_fetch_fault 31, LARGE, PF_P | PF_I
    ret

# Reserved bits: RSVD in the error code. Without EFER.NXE, bit 63 is one.
test_reserved_bits:
    call take_frame
    mov rsi, rax
    mov rdx, NX | RW
    or rdx, rax
    map WINDOW
    mov qword ptr [WINDOW], 0x66666666
    mov ecx, MSR_EFER
    rdmsr
    and eax, -1 - EFER_NXE
    wrmsr
    mov rax, cr3
    mov cr3, rax
    expect_page_fault 32, WINDOW, PF_RESERVED, mov rax, [WINDOW]
    mov ecx, MSR_EFER
    rdmsr
    or eax, EFER_NXE
    wrmsr
    mov rax, cr3
    mov cr3, rax
    check_equal 33, qword ptr [WINDOW], 0x66666666
    lea rdx, [rsi + RW]             # bit 51, above all addresses that the CPU can form
    bts rdx, 51
    map WINDOW
    mov eax, 0x80000008
    cpuid
    cmp al, 52
    jae .Lno_reserved_address_bit
    expect_page_fault 34, WINDOW + 8, PF_RESERVED | PF_W, mov qword ptr [WINDOW + 8], 1
    dec qword ptr [faults_seen]     # not on every CPU, so not in the sum
.Lno_reserved_address_bit:
    bts qword ptr [WINDOW_PD + 8], 13  # below the address of a 2 MiB page
    invlpg [LARGE]
    expect_page_fault 35, LARGE, PF_RESERVED, mov rax, [LARGE]
    btr qword ptr [WINDOW_PD + 8], 13
    invlpg [LARGE]
    mov qword ptr [PML4 + 2 * 8], LOW_PDPT | RW | PTE_PS  # no large pages at this level
    mov rbx, 2 << 39
    expect_page_fault 36, 2 << 39, PF_RESERVED, mov rax, [rbx]
    mov qword ptr [PML4 + 2 * 8], 0
    ret

# Some exceptions that are not page faults.
test_exceptions:
    expect_exception 37, 6, 0, 0, ud2
    xor ecx, ecx
    expect_exception 38, 0, 0, 0, div ecx
    mov rbx, NON_CANONICAL
    expect_exception 39, 13, 0, 0, mov rax, [rbx]
    mov rbx, UPPER - 1
    expect_exception 40, 13, 0, 0, mov byte ptr [rbx], 1
    mov ecx, 0x1000                 # a selector behind the end of the GDT: it is the error code
    expect_exception 41, 13, 0x1000, 0, mov fs, cx
    ret

# A stack that is not mapped: #PF cannot be delivered on it, so a double fault comes, on IST 1. Then #PF itself gets IST
# 2.
test_stacks:
    set_gate 8, double_fault, GATE_INTERRUPT, 1
    mov [saved_rsp], rsp
    mov esp, NOWHERE + 0x1000
.Lbad_push:
    push rax
    jmp failed
double_fault:                       # error code (0), RIP, CS, RFLAGS, RSP, SS
    check_equal 42, rsp, IST1_STACK - 48
    check_equal 43, qword ptr [rsp], 0
    check_equal 44, qword ptr [rsp + 8], .Lbad_push
    mov eax, NOWHERE + 0x1000
    check_equal 45, [rsp + 32], rax
    mov rsp, [saved_rsp]            # no IRET: the stack pointer it would load is the bad one
    set_gate 14, page_fault_on_ist, GATE_INTERRUPT, 2
    xor edx, edx
    map WINDOW
    mov esp, NOWHERE + 0x1000
.Lbad_read:
    mov rax, [WINDOW]
    jmp failed
page_fault_on_ist:
    check_equal 46, rsp, IST2_STACK - 48
    check_equal 47, qword ptr [rsp + 8], .Lbad_read
    mov qword ptr [rsp + 8], offset .Lbad_read_done
    add rsp, 8
    iretq
.Lbad_read_done:
    mov rsp, [saved_rsp]
    set_gate 14, exception_stubs + 14 * 16
    set_gate 8, exception_stubs + 8 * 16, GATE_INTERRUPT, 1
    ret

# What not every CPU has: 1 GiB pages, SMEP (the supervisor runs no user page), SMAP (nor touches one, unless AC is
# set).
.equ CR4_SMEP, 1 << 20
.equ CR4_SMAP, 1 << 21
test_optional:
    push qword ptr [faults_seen]
    mov eax, 0x80000001
    cpuid
    bt edx, 26
    jnc .Lno_giant_pages
    mov qword ptr [LOW_PDPT + 16], RW | PTE_PS
    mov eax, GIANT + LARGE_FRAME + 0x12340
    check_equal 80, qword ptr [rax], 0x44444444
.Lno_giant_pages:
    xor eax, eax
    cpuid
    cmp eax, 7
    jb .Lno_smap
    call take_frame
    mov byte ptr [rax], 0xC3
    lea rdx, [rax + RW + PTE_U]
    map WINDOW
    or dword ptr [PML4], PTE_U      # a user page is one that is open to ring 3 at all levels
    or dword ptr [LOW_PDPT + 8], PTE_U
    or dword ptr [WINDOW_PD], PTE_U
    mov rax, cr3
    mov cr3, rax
    mov eax, 7
    xor ecx, ecx
    cpuid
    mov esi, ebx
    bt esi, 7
    jnc .Lno_smep
    mov rax, cr4
    or rax, CR4_SMEP
    mov cr4, rax
    expect_fetch_fault 81, WINDOW, PF_P | PF_I
    mov rax, cr4
    and rax, -1 - CR4_SMEP
    mov cr4, rax
    mov eax, WINDOW
    call rax
.Lno_smep:
    bt esi, 20
    jnc .Lno_smap
    mov rax, cr4
    or rax, CR4_SMAP
    mov cr4, rax
    expect_page_fault 82, WINDOW, PF_P, mov rax, [WINDOW]
    expect_page_fault 83, WINDOW, PF_P | PF_W, mov byte ptr [WINDOW], 0xC3
    stac
    mov rax, [WINDOW]
    clac
    expect_page_fault 84, WINDOW, PF_P, mov rax, [WINDOW]
    mov rax, cr4
    and rax, -1 - CR4_SMAP
    mov cr4, rax
.Lno_smap:
    and dword ptr [PML4], -1 - PTE_U
    and dword ptr [LOW_PDPT + 8], -1 - PTE_U
    and dword ptr [WINDOW_PD], -1 - PTE_U
    mov rax, cr3
    mov cr3, rax
    pop qword ptr [faults_seen]
    ret

# ---- page tables -----------------------------------------------------------------------------------------------------

# Write the entry RDX for the page at gva RAX through the self-map, and drop the old translation. Changes no register.
map_page:
    push rcx
    push rdi
    mov rcx, rax
    shr rcx, 9
    mov rdi, 0x7FFFFFFFF8           # 36 bits of page number, times 8
    and rcx, rdi
    mov rdi, TABLES
    mov [rdi + rcx], rdx
    invlpg [rax]
    pop rdi
    pop rcx
    ret

# Give out a frame of zeros. Returns its gpa in RAX; changes no other register.
take_frame:
    push rcx
    push rdi
    mov rdi, [next_frame]
    add qword ptr [next_frame], 4096
    push rdi
    xor eax, eax
    mov ecx, 512
    rep stosq
    pop rax
    pop rdi
    pop rcx
    ret

# ---- ring 3 ----------------------------------------------------------------------------------------------------------

enter_user:
    set_gate 0x80, software_interrupt, GATE_INTERRUPT | GATE_DPL3
    # The program's pages of this image: open to ring 3 at USER, read-only.
    mov eax, offset user_program
    or eax, PTE_P | PTE_U
    mov [USER_PT], rax
    # SYSCALL: from which selectors, to where, and with which flags cleared.
    mov ecx, MSR_STAR
    xor eax, eax
    mov edx, USER_CODE32 << 16 | CODE64
    wrmsr
    mov ecx, MSR_LSTAR
    mov eax, offset system_call
    xor edx, edx
    wrmsr
    mov ecx, MSR_SFMASK
    mov eax, EFLAGS_IF | EFLAGS_DF | EFLAGS_TF
    wrmsr
    mov ecx, MSR_KERNEL_GS_BASE     # SWAPGS makes GS point there
    mov eax, offset cpu_local
    xor edx, edx
    wrmsr
    mov ecx, MSR_GS_BASE
    xor eax, eax
    wrmsr
    push USER_DATA64
    mov rax, USER_STACK
    push rax
    push EFLAGS_ONE
    push USER_CODE64
    mov rax, USER
    push rax
    iretq

# SYSCALL changes RIP, CS, SS and the flags, puts the old RIP in RCX and the old flags in R11, and leaves RSP alone: the
# handler must find itself a stack.
system_call:
    swapgs
    mov gs:[16], rsp
    mov rsp, gs:[8]
    push rcx
    push r11
    check 50                        # SFMASK cleared DF, and only there
    pushfq
    test dword ptr [rsp], EFLAGS_DF | EFLAGS_IF | EFLAGS_TF
    jnz failed
    add rsp, 8
    inc qword ptr [calls]
    cmp eax, CALL_WRITE
    je .Lcall_write
    cmp eax, CALL_CHECKSUM
    je .Lcall_checksum
    cmp eax, CALL_EXPECT
    je .Lcall_expect
    check 51                        # an unknown call
    cmp eax, CALL_EXIT
    jne failed
    mov [check_number], rdi         # the program's own verdict
    test rdi, rdi
    jnz failed
    jmp finish
.Lcall_write:
    mov al, dil
    out PORT_CONSOLE, al
    jmp .Lcall_done
.Lcall_checksum:
    mov [user_checksum], rdi
    jmp .Lcall_done
.Lcall_expect:
    mov [fault_gva], rdi
    mov [fault_error], rsi
    mov [fault_rip], rdx
    mov [fault_resume], r10
    mov [fault_vector], r8
.Lcall_done:
    pop r11
    pop rcx
    mov rsp, gs:[16]
    swapgs
    sysretq

# INT 0x80 from ring 3 also works in 64-bit mode; the CPU takes RSP0 from the TSS.
software_interrupt:
    check_equal 52, rsp, RING0_STACK - 40
    inc qword ptr [interrupts]
    iretq

# Error code on the stack, nothing announced: demand-zero pages of the ring 3 program, or a mistake.
page_fault_unannounced:
    push rax
    push rdx
    mov rax, cr2
    mov rdx, USER_HEAP
    sub rax, rdx
    cmp rax, USER_STACK - USER_HEAP
    jae .Lnot_demand
    mov rax, [rsp + 16]
    and eax, -1 - PF_W
    cmp eax, PF_U                   # not present, by ring 3
    jne .Lnot_demand
    call take_frame
    mov rdx, NX | RW | PTE_U
    or rdx, rax
    mov rax, cr2
    call map_page
    inc qword ptr [demand_zero]
    pop rdx
    pop rax
    add rsp, 8
    iretq
.Lnot_demand:
    pop rdx
    pop rax
    jmp unexpected_page_fault

# The program is done: look at its heap through the frames that its page table names.
finish:
    xor ebx, ebx
    mov esi, USER_PT + ((USER_HEAP - USER) >> 12) * 8
    mov ecx, USER_HEAP_PAGES
.Lheap_page:
    mov rdi, [rsi]
    add rsi, 8
    mov rax, 0xFFFFFFFFFF000
    and rdi, rax
    mov edx, 512
.Lheap_word:
    rol rbx, 1
    add rbx, [rdi]
    add rdi, 8
    dec edx
    jnz .Lheap_word
    dec ecx
    jnz .Lheap_page
    check_equal 53, rbx, [user_checksum]
    check_equal 54, qword ptr [demand_zero], USER_HEAP_PAGES + 1  # and one page of stack
    check_equal 55, qword ptr [interrupts], 10
    print "long64: calls "
    print_decimal [calls]
    print ", interrupts "
    print_decimal [interrupts]
    print ", demand-zero pages "
    print_decimal [demand_zero]
    print ", announced faults "
    print_decimal [faults_seen]
    print ", checksum "
    print_hex rbx
    print "\n"
    succeed

.balign 8
next_frame: .quad FRAMES
saved_rsp: .quad 0
upper_word: .quad 0
user_checksum: .quad 0
calls: .quad 0
interrupts: .quad 0
demand_zero: .quad 0
cpu_local: .quad 0, SYSCALL_STACK, 0  # at 8 the kernel's RSP, at 16 the program's

.balign 8
gdt:
    .quad 0
    .quad 0x00CF9B000000FFFF        # 0x08 ring 0 code, 32-bit: for the way here
    .quad 0x00CF93000000FFFF        # 0x10 ring 0 data
    .quad 0x00AF9B000000FFFF        # 0x18 ring 0 code, 64-bit: the L bit
    .quad 0x00CF93000000FFFF        # 0x20 ring 0 data
    .quad 0x00CFFB000000FFFF        # 0x28 ring 3 code, 32-bit
    .quad 0x00CFF3000000FFFF        # 0x30 ring 3 data
    .quad 0x00AFFB000000FFFF        # 0x38 ring 3 code, 64-bit
    gdt_system task_state, 103, 0x89  # 0x40 the TSS: 16 bytes in long mode
    .quad 0
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end

# The 64-bit TSS holds no registers any more: stacks only.
.balign 8
task_state:
    .long 0
    .quad RING0_STACK, 0, 0, 0      # RSP0, RSP1, RSP2, reserved
    .quad IST1_STACK, IST2_STACK    # IST1, IST2
    .space 50
    .word 104                       # no I/O permission bitmap

# ---- the ring 3 program, mapped at USER ------------------------------------------------------------------------------

# Announce an exception of the instruction, run it, and go on behind it.
.macro user_expect number, vector, error, gva, instruction:vararg
    mov ebp, \number
    mov eax, CALL_EXPECT
    mov r8d, \vector
    mov rdi, \gva
    mov esi, \error
    lea rdx, [rip + user_faults_\@]
    lea r10, [rip + user_resumes_\@]
    syscall
user_faults_\@:
    \instruction
    jmp user_failed
user_resumes_\@:
.endm

# Announce a page fault of a jump: the faulting instruction is the target.
.macro user_expect_fetch number, error, gva
    mov ebp, \number
    mov eax, CALL_EXPECT
    mov r8d, 14
    mov rdi, \gva
    mov esi, \error
    mov rdx, rdi
    lea r10, [rip + user_resumes_\@]
    syscall
    jmp rdi
user_resumes_\@:
.endm

.balign 4096, 0
user_program:
    mov ebp, 60                     # EBP: number of the check that runs now
    mov ax, cs
    and eax, 3                      # the privilege level
    cmp eax, 3
    jne user_failed

    # SYSCALL leaves the way back in RCX and the flags in R11; they come back as they were.
    mov ebp, 61
    lea r12, [rip + syscall_back]
    mov edi, '>'
    mov eax, CALL_WRITE
    std
    syscall
syscall_back:
    pushfq                          # also the first touch of the stack
    cld
    pop rax
    cmp rcx, r12
    jne user_failed
    cmp rax, r11
    jne user_failed
    bt rax, 10
    jnc user_failed
    lea rbx, [rip + user_greeting]
.Lgreet_next:
    mov dil, [rbx]
    inc rbx
    mov eax, CALL_WRITE
    syscall
    cmp byte ptr [rbx], 0
    jne .Lgreet_next

    mov ebx, 10
.Linterrupt_next:
    int 0x80
    dec ebx
    jnz .Linterrupt_next

    # The heap: each page comes with its first write.
    mov rdi, USER_HEAP
    mov rax, 0x0123456789ABCDEF
    xor ecx, ecx
.Lheap_next:
    mov [rdi + rcx * 8], rax
    mov [rdi + 0xFF8], rcx
    rol rax, 7
    add rax, rcx
    add rdi, 4096
    inc ecx
    cmp ecx, USER_HEAP_PAGES
    jb .Lheap_next
    xor ebx, ebx
    mov rdx, USER_HEAP
    mov ecx, USER_HEAP_PAGES * 512
.Lsum_next:
    rol rbx, 1
    add rbx, [rdx]
    add rdx, 8
    dec ecx
    jnz .Lsum_next
    mov eax, CALL_CHECKSUM
    mov rdi, rbx
    syscall

    # What ring 3 must not do.
    user_expect 62, 14, PF_P | PF_U, PML4, mov rax, [rdi]
    user_expect 63, 14, PF_P | PF_U | PF_W, UPPER + PML4, mov [rdi], rax
    user_expect 64, 14, PF_P | PF_U | PF_W, USER, mov byte ptr [rdi], 0x90
    user_expect 65, 14, PF_U, NOWHERE, mov rax, [rdi]
    user_expect_fetch 66, PF_P | PF_U | PF_I, USER_HEAP
    user_expect_fetch 67, PF_U | PF_I, USER + 0x200000
    user_expect_fetch 68, PF_P | PF_U | PF_I, PML4
    user_expect 69, 13, 0, NON_CANONICAL, mov rax, [rdi]
    user_expect 70, 13, 0, 0, cli
    user_expect 71, 13, 0, 0, hlt
    user_expect 72, 13, 0, 0, mov rax, cr3
    user_expect 73, 13, 0, 0, out PORT_CONSOLE, al
    user_expect 74, 6, 0, 0, ud2
    mov eax, CALL_EXIT
    xor edi, edi
    syscall

user_failed:
    mov eax, CALL_EXIT
    mov edi, ebp
    syscall

user_greeting: .asciz " hello from ring 3\n"
