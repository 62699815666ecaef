# The batch guest for 64-bit, 32-bit and 16-bit code under long mode: runs each case behind its own end, and prints how
# it ended. layout.py has the same numbers. A multiboot kernel with load addresses, so that QEMU and emu both start it.
#
# A case is a record of qwords: the registers to start with, the page-table entries of the window's six pages, CR0, CR4,
# the number of an FXSAVE image, offset and length of its code, the code. It is entered with IRETQ; every vector leads to
# one handler, which writes to port 0xE9 what differs from the start: (u16 index, u64 value) pairs, closed by 0xFFFF.
# The index counts the qwords of the registers, then of the FXSAVE area, then of the window.

.code32
header:
    .long 0x1BADB002, 0x00010000, 0xE4514FFE        # load addresses are given
    .long header, header, 0, 0, start

start:
    cli
    cld
    mov esp, STACK
    mov edi, TABLES                 # clear PML4, PDPT, two directories and a table
    xor eax, eax
    mov ecx, 5 * 1024
    rep stosd
    mov edi, TABLES
    mov dword ptr [edi], TABLES + 0x1007
    mov dword ptr [edi + 0x1000], TABLES + 0x2007
    mov dword ptr [edi + 0x1008], TABLES + 0x3007
    mov dword ptr [edi + 0x3000], TABLES + 0x4007
    mov eax, 0x200083               # from 2 to 16 MiB as they are, for the supervisor
    lea ebx, [edi + 0x2008]
identity:
    mov [ebx], eax
    add ebx, 8
    add eax, 0x200000
    cmp eax, 0x1000083
    jb identity
    mov eax, SAFE_CR4
    mov cr4, eax
    mov eax, edi
    mov cr3, eax
    mov ecx, 0xC0000080             # EFER: LME, NXE
    rdmsr
    or eax, 0x900
    wrmsr
    mov eax, SAFE_CR0
    mov cr0, eax
    lgdt gdt_pointer
    ljmp 0x08:long_mode

.code64
long_mode:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, STACK
    mov rdi, IDT                    # 256 gates, interrupt stack 1; user code may call 3 and 4
    lea rbx, [rip + stubs]
    xor ecx, ecx
gates:
    mov eax, ebx
    and eax, 0xFFFF
    or eax, 0x80000
    mov [rdi], eax
    mov eax, ebx
    and eax, 0xFFFF0000
    or eax, 0x8E01
    cmp ecx, 3
    je open_gate
    cmp ecx, 4
    jne closed_gate
open_gate:
    or eax, 0x6000
closed_gate:
    mov [rdi + 4], eax
    mov qword ptr [rdi + 8], 0
    add rdi, 16
    add rbx, 8
    inc ecx
    cmp ecx, 256
    jb gates
    lidt [rip + idt_pointer]
    lea rax, [rip + tss]
    mov [rip + tss_descriptor + 2], ax
    shr eax, 16
    mov [rip + tss_descriptor + 4], al
    mov eax, 0x78
    ltr ax
    mov al, 0xFF                    # no interrupts
    out 0x21, al
    out 0xA1, al
    lea rsi, [rip + beginning]
    mov ecx, 7
    mov dx, 0xE9
    rep outsb
    mov r15, CASES
next_case:
    cmp qword ptr [r15 + CASE_CODE_BYTES], 0
    jne one_case
    xor eax, eax
    out 0xF4, al
    lea rsi, [rip + shutdown]       # what makes Bochs end
    mov ecx, 8
    mov dx, 0x8900
    rep outsb
    hlt
beginning:
    .ascii "BEGIN:\n"
shutdown:
    .ascii "Shutdown"
one_case:
    mov [CURRENT], r15
    cld
    mov rsi, TEMPLATE               # the window, and what it is compared with
    mov rdi, WINDOW_GPA
    mov ecx, WINDOW_QWORDS
    rep movsq
    lea rsi, [r15 + CASE_CODE]
    mov rdi, WINDOW_GPA
    add rdi, [r15 + CASE_CODE_OFFSET]
    mov ecx, CODE_BYTES
    rep movsb
    lea rsi, [r15 + CASE_CODE]
    mov rdi, BEFORE_WINDOW
    add rdi, [r15 + CASE_CODE_OFFSET]
    mov ecx, CODE_BYTES
    rep movsb
    mov rsi, r15                    # the registers as they are before
    mov rdi, BEFORE
    mov ecx, REGISTER_QWORDS
    rep movsq
    mov rsi, [r15 + CASE_FX]
    mov rdi, BEFORE + REGISTER_QWORDS * 8
    mov ecx, 64
    rep movsq
    mov rsi, BEFORE + REGISTER_QWORDS * 8
    mov rdi, AFTER + REGISTER_QWORDS * 8
    mov ecx, 64
    rep movsq
    lea rsi, [r15 + CASE_PTES]      # the window's pages
    mov rdi, TABLES + 0x4000 + 3 * 8
    movsq
    movsq
    mov rdi, TABLES + 0x4000 + 8 * 8
    movsq
    movsq
    mov rdi, TABLES + 0x4000 + 12 * 8
    movsq
    movsq
    mov rax, TABLES
    mov cr3, rax
    mov rax, [r15 + CASE_CR2]
    mov cr2, rax
    mov rax, BEFORE + REGISTER_QWORDS * 8
    fxrstor64 [rax]
    xor eax, eax
    mov dr6, rax
    mov eax, 0x400
    mov dr7, rax
    mov rax, [r15 + 20 * 8]
    mov ds, eax
    mov rax, [r15 + 21 * 8]
    mov es, eax
    mov rax, [r15 + 22 * 8]
    mov fs, eax
    mov rax, [r15 + 23 * 8]
    mov gs, eax
    mov ecx, 0xC0000100             # bases of FS and GS
    mov eax, [r15 + 28 * 8]
    mov edx, [r15 + 28 * 8 + 4]
    wrmsr
    mov ecx, 0xC0000101
    mov eax, [r15 + 29 * 8]
    mov edx, [r15 + 29 * 8 + 4]
    wrmsr
    mov rsp, STACK
    push qword ptr [r15 + 19 * 8]   # SS, RSP, RFLAGS, CS, RIP
    push qword ptr [r15 + 4 * 8]
    push qword ptr [r15 + 17 * 8]
    push qword ptr [r15 + 18 * 8]
    push qword ptr [r15 + 16 * 8]
    mov rax, [r15 + CASE_CR4]
    mov cr4, rax
    mov rax, [r15 + CASE_CR0]
    mov cr0, rax
    mov rax, [r15]
    mov rcx, [r15 + 8]
    mov rdx, [r15 + 16]
    mov rbx, [r15 + 24]
    mov rbp, [r15 + 40]
    mov rsi, [r15 + 48]
    mov rdi, [r15 + 56]
    mov r8, [r15 + 64]
    mov r9, [r15 + 72]
    mov r10, [r15 + 80]
    mov r11, [r15 + 88]
    mov r12, [r15 + 96]
    mov r13, [r15 + 104]
    mov r14, [r15 + 112]
    mov r15, [r15 + 120]
    iretq

# The end of a case: on interrupt stack 1 there are the vector, the error code if any, RIP, CS, RFLAGS, RSP, SS.
ended:
    push rax
    mov rax, SAFE_CR4               # first what the case chose, so that everything below works
    mov cr4, rax
    mov rax, SAFE_CR0
    mov cr0, rax
    mov rax, AFTER
    mov [rax + 8], rcx
    mov [rax + 16], rdx
    mov [rax + 24], rbx
    mov [rax + 40], rbp
    mov [rax + 48], rsi
    mov [rax + 56], rdi
    mov [rax + 64], r8
    mov [rax + 72], r9
    mov [rax + 80], r10
    mov [rax + 88], r11
    mov [rax + 96], r12
    mov [rax + 104], r13
    mov [rax + 112], r14
    mov [rax + 120], r15
    mov rbx, rax
    pop qword ptr [rbx]
    cld
    pop rax
    movzx eax, al                   # a stub pushes its number as a signed byte
    mov [rbx + 24 * 8], rax
    mov rax, NO_ERROR_CODE
    cmp rsp, INTERRUPT_STACK - 40
    je no_error_code
    pop rax
no_error_code:
    mov [rbx + 25 * 8], rax
    pop qword ptr [rbx + 16 * 8]
    pop qword ptr [rbx + 18 * 8]
    pop qword ptr [rbx + 17 * 8]
    pop qword ptr [rbx + 4 * 8]
    pop qword ptr [rbx + 19 * 8]
    mov rsp, STACK
    xor eax, eax
    mov eax, ds
    mov [rbx + 20 * 8], rax
    mov eax, es
    mov [rbx + 21 * 8], rax
    mov eax, fs
    mov [rbx + 22 * 8], rax
    mov eax, gs
    mov [rbx + 23 * 8], rax
    mov rax, cr2
    mov [rbx + 26 * 8], rax
    mov rax, dr6
    mov [rbx + 27 * 8], rax
    mov ecx, 0xC0000100
    rdmsr
    mov [rbx + 28 * 8], eax
    mov [rbx + 28 * 8 + 4], edx
    mov ecx, 0xC0000101
    rdmsr
    mov [rbx + 29 * 8], eax
    mov [rbx + 29 * 8 + 4], edx
    lea rdi, [rbx + 30 * 8]
    mov rsi, TABLES + 0x4000 + 3 * 8
    movsq
    movsq
    mov rsi, TABLES + 0x4000 + 8 * 8
    movsq
    movsq
    mov rsi, TABLES + 0x4000 + 12 * 8
    movsq
    movsq
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov rax, AFTER + REGISTER_QWORDS * 8
    fxsave64 [rax]
    mov rbp, OUTPUT
    mov rsi, BEFORE
    mov rdi, AFTER
    mov ecx, STATE_QWORDS
    mov edx, STATE_QWORDS - 1
    call differences
    mov rsi, BEFORE_WINDOW
    mov rdi, WINDOW_GPA
    mov ecx, WINDOW_QWORDS
    mov edx, STATE_QWORDS + WINDOW_QWORDS - 1
    call differences
    mov word ptr [rbp], 0xFFFF
    lea rcx, [rbp + 2]
    mov rsi, OUTPUT
    sub rcx, rsi
    mov dx, 0xE9
    rep outsb
    mov r15, [CURRENT]              # the code's place gets its filling back
    mov rsi, TEMPLATE
    add rsi, [r15 + CASE_CODE_OFFSET]
    mov rdi, BEFORE_WINDOW
    add rdi, [r15 + CASE_CODE_OFFSET]
    mov ecx, CODE_BYTES
    rep movsb
    add r15, CASE_BYTES
    jmp next_case

# Append to RBP each of the RCX qwords at RDI that is not that at RSI; EDX is the last one's index.
differences:
    repe cmpsq
    je no_difference
    mov eax, edx
    sub eax, ecx
    mov [rbp], ax
    mov rax, [rdi - 8]
    mov [rbp + 2], rax
    add rbp, 10
    cmp rbp, OUTPUT_END
    jae no_difference
    test ecx, ecx
    jnz differences
no_difference:
    ret

.balign 8
stubs:
.set vector, 0
.rept 256
    .byte 0x6A, vector              # push vector, in two bytes
    .byte 0xE9                      # jmp ended
    .long ended - . - 4
    .byte 0x90
    .set vector, vector + 1
.endr

.balign 8
gdt:
    .quad 0
    .quad 0x00AF9A000000FFFF        # 08 code, 64 bit
    .quad 0x00CF92000000FFFF        # 10 data
    .quad 0x00CF9A000000FFFF        # 18 code, 32 bit
    .quad 0x40009A000000FFFF        # 20 code, 16 bit, in the window
    .quad 0x00CFFA000000FFFF        # 28 code, 32 bit, user
    .quad 0x00CFF2000000FFFF        # 30 data, user
    .quad 0x00AFFA000000FFFF        # 38 code, 64 bit, user
    .quad 0x4000FA000000FFFF        # 40 code, 16 bit, in the window, user
    .quad 0x4040F20080000FFF        # 48 data of one page at the window's data, user
    .quad 0x4040F60080000FFF        # 50 the same, expanding downwards
    .quad 0x00CFF0000000FFFF        # 58 data, read only, user
    .quad 0x00CF72000000FFFF        # 60 data, not present, user
    .quad 0x00CF9E000000FFFF        # 68 code, 32 bit, conforming
    .quad 0x00CFF8000000FFFF        # 70 code, 32 bit, execute only, user
tss_descriptor:
    .quad 0x0000890000000067, 0     # 78 TSS; its address comes at the start
    .quad 0x4000F2000000FFFF        # 88 data, 16 bit, in the window, user
    .quad 0x400092000000FFFF        # 90 data, 16 bit, in the window
    .quad 0x00008200000000FF        # 98 an LDT, to be refused as data
    .quad 0x0000E20000000000        # A0 an empty LDT, user
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
idt_pointer:
    .word 0xFFF
    .quad IDT
.balign 8
tss:
    .long 0
    .quad STACK, STACK, STACK, 0
    .quad INTERRUPT_STACK
    .quad 0, 0, 0, 0, 0, 0, 0
    .word 0, 0x68
