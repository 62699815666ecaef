# v86: a virtual-8086 task and its monitor.
#
# In virtual-8086 mode a ring 3 task runs 16-bit real-mode code: a segment register holds a paragraph, not a selector,
# but paging holds. With IOPL 0 the instructions that would change the machine (CLI, STI, PUSHF, POPF, INT, IRET, HLT,
# IN, OUT) raise #GP, and a monitor in ring 0 does for the task what it asked for: it keeps an interrupt flag of its
# own, and reflects INT to the task's handlers. All else that happens to the task, exceptions and page faults, also
# enters the monitor, with ES, DS, FS and GS on its stack.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"

# Physical memory
.equ DIRECTORY, 0x20000
.equ LOW_TABLE, 0x21000
.equ VECTOR_FRAME, 0x22000          # the task's page 0: its interrupt vectors
.equ STACK_FRAME, 0x23000           # its stack

# Linear memory. The monitor has 0x1000-0xFFFF, for itself. The task has page 0, and its segment at 0x10000: there, each
# page of its program shows the image's page with the same offset, so that labels are offsets in the segment.
.equ SEGMENT, 0x1000                # the task's CS, DS, SS: a paragraph
.equ SEGMENT_GVA, SEGMENT * 16
.equ STACK_OFFSET, 0xF000           # SP at first; one page below it
.equ RW, PTE_P | PTE_W

.equ PORT_VERDICT, 0xF1             # the task writes the number of a failed check here
.equ PORT_INPUT, 0x80               # reads as 0x5A
.equ ARITHMETIC_FLAGS, 0xCD5        # what POPF may change: OF, DF, SF, ZF, AF, PF, CF

# The monitor's stack after an entry from the task, error code, and PUSHAD: offsets from ESP
.equ FRAME_EAX, 28
.equ FRAME_EDX, 20
.equ FRAME_ERROR, 32
.equ FRAME_EIP, 36
.equ FRAME_CS, 40
.equ FRAME_EFLAGS, 44
.equ FRAME_ESP, 48
.equ FRAME_SS, 52
.equ FRAME_DS, 60

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate 0, divide_error
    set_gate 3, breakpoint, GATE_INTERRUPT | GATE_DPL3
    set_gate 13, general_protection
    set_gate 14, page_fault
    mov ax, TSS
    ltr ax
    mov edi, DIRECTORY
    xor eax, eax
    mov ecx, 4 * 1024
    rep stosd
    mov dword ptr [DIRECTORY], LOW_TABLE | RW | PTE_U
    mov edi, LOW_TABLE + 4          # pages 1-15 for the monitor
    mov eax, 0x1000 | RW
.Lmonitor_next:
    stosd
    add eax, 4096
    cmp eax, 0x10000
    jb .Lmonitor_next
    mov dword ptr [LOW_TABLE], VECTOR_FRAME | RW | PTE_U
    mov dword ptr [LOW_TABLE + ((SEGMENT_GVA + STACK_OFFSET) >> 12) * 4 - 4], STACK_FRAME | RW | PTE_U
    mov eax, offset task_program
    mov ecx, eax
    shr ecx, 12
    or eax, RW | PTE_U
    mov [LOW_TABLE + (SEGMENT_GVA >> 12) * 4 + ecx * 4], eax
    mov word ptr [VECTOR_FRAME + 0x21 * 4], offset task_int21
    mov word ptr [VECTOR_FRAME + 0x21 * 4 + 2], SEGMENT
    mov word ptr [VECTOR_FRAME + 0x60 * 4], offset task_int60
    mov word ptr [VECTOR_FRAME + 0x60 * 4 + 2], SEGMENT
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
    print "v86: enter the task\n"
    push SEGMENT                    # GS, FS, DS, ES
    push SEGMENT
    push SEGMENT
    push SEGMENT
    push SEGMENT                    # SS
    push STACK_OFFSET
    push EFLAGS_VM | EFLAGS_ONE
    push SEGMENT                    # CS
    push offset task_program
    iretd

# ---- the monitor -----------------------------------------------------------------------------------------------------

# At the beginning of each handler, with an error code on the stack: save the task's registers, check that it was the
# task, give the monitor its own segments. The CPU loaded null selectors into all data segment registers but SS.
.macro enter_monitor
    pushad
    mov cx, ds
    mov dx, gs
    or cx, dx
    mov ax, DATA
    mov ds, ax
    mov es, ax
    check 1
    test cx, cx
    jnz failed
    check_equal 2, esp, RING0_STACK - 36 - 4 - 32
    check 3
    test dword ptr [esp + FRAME_EFLAGS], EFLAGS_VM
    jz failed
    check_equal 4, dword ptr [esp + FRAME_CS], SEGMENT
.endm

leave_monitor:
    popad
    add esp, 4
    iretd

# A privileged instruction of the task. ESI: its gva.
general_protection:
    enter_monitor
    check_equal 5, dword ptr [esp + FRAME_ERROR], 0
    inc dword ptr [emulated]
    movzx esi, word ptr [esp + FRAME_CS]
    shl esi, 4
    add esi, [esp + FRAME_EIP]
    mov al, [esi]
    cmp al, 0xFA
    je emulate_cli
    cmp al, 0xFB
    je emulate_sti
    cmp al, 0x9C
    je emulate_pushf
    cmp al, 0x9D
    je emulate_popf
    cmp al, 0xCD
    je emulate_int
    cmp al, 0xCF
    je emulate_iret
    cmp al, 0xEE
    je emulate_out
    cmp al, 0xE6
    je emulate_out_immediate
    cmp al, 0xEC
    je emulate_in
    cmp al, 0xF4
    je task_halted
    check 6                         # nothing else may raise #GP
    jmp failed

emulate_cli:
    mov dword ptr [virtual_if], 0
    inc dword ptr [esp + FRAME_EIP]
    jmp leave_monitor
emulate_sti:
    mov dword ptr [virtual_if], EFLAGS_IF
    inc dword ptr [esp + FRAME_EIP]
    jmp leave_monitor

emulate_pushf:
    call virtual_flags
    call push_word
    inc dword ptr [esp + FRAME_EIP]
    jmp leave_monitor

emulate_popf:
    call pop_word
    call set_virtual_flags
    inc dword ptr [esp + FRAME_EIP]
    jmp leave_monitor

# What the CPU does in real mode: push FLAGS, CS and IP, and go where the vector at 4 * n points.
emulate_int:
    movzx ebx, byte ptr [esi + 1]
    call virtual_flags
    call push_word
    mov eax, [esp + FRAME_CS]
    call push_word
    mov eax, [esp + FRAME_EIP]
    add eax, 2
    call push_word
    mov dword ptr [virtual_if], 0
    movzx eax, word ptr [ebx * 4]
    mov [esp + FRAME_EIP], eax
    movzx eax, word ptr [ebx * 4 + 2]
    mov [esp + FRAME_CS], eax
    inc dword ptr [reflected]
    jmp leave_monitor

emulate_iret:
    call pop_word
    mov [esp + FRAME_EIP], eax
    call pop_word
    mov [esp + FRAME_CS], eax
    call pop_word
    call set_virtual_flags
    jmp leave_monitor

emulate_out_immediate:
    movzx edx, byte ptr [esi + 1]
    inc dword ptr [esp + FRAME_EIP]
    jmp .Lout
emulate_out:
    movzx edx, word ptr [esp + FRAME_EDX]
.Lout:
    inc dword ptr [esp + FRAME_EIP]
    mov al, [esp + FRAME_EAX]
    cmp edx, PORT_CONSOLE
    jne .Lout_verdict
    out PORT_CONSOLE, al
    jmp leave_monitor
.Lout_verdict:
    check 7
    cmp edx, PORT_VERDICT
    jne failed
    movzx eax, al
    mov [check_number], eax
    jmp failed

emulate_in:
    check_equal 8, word ptr [esp + FRAME_EDX], PORT_INPUT
    mov byte ptr [esp + FRAME_EAX], 0x5A
    inc dword ptr [esp + FRAME_EIP]
    jmp leave_monitor

# The handlers' helpers, called with the frame 4 bytes further up.
# EAX = the task's flags, with its own IF.
virtual_flags:
    mov eax, [esp + 4 + FRAME_EFLAGS]
    and eax, 0xFFFF - EFLAGS_IF
    or eax, [virtual_if]
    ret

# The task's flags = AX, as far as it may change them.
set_virtual_flags:
    mov ecx, eax
    and ecx, EFLAGS_IF
    mov [virtual_if], ecx
    and eax, ARITHMETIC_FLAGS
    and dword ptr [esp + 4 + FRAME_EFLAGS], -1 - ARITHMETIC_FLAGS
    or [esp + 4 + FRAME_EFLAGS], eax
    ret

# Push AX on the task's stack. Changes EDX.
push_word:
    sub word ptr [esp + 4 + FRAME_ESP], 2
    movzx edx, word ptr [esp + 4 + FRAME_SS]
    shl edx, 4
    add edx, [esp + 4 + FRAME_ESP]
    mov [edx], ax
    ret

# EAX = the word popped from the task's stack. Changes EDX.
pop_word:
    movzx edx, word ptr [esp + 4 + FRAME_SS]
    shl edx, 4
    add edx, [esp + 4 + FRAME_ESP]
    movzx eax, word ptr [edx]
    add word ptr [esp + 4 + FRAME_ESP], 2
    ret

# INT3 is no privileged instruction: it goes through the monitor's gate.
breakpoint:
    push 0
    enter_monitor
    inc dword ptr [breakpoints]
    jmp leave_monitor

# DIV CX, two bytes.
divide_error:
    push 0
    enter_monitor
    inc dword ptr [divide_errors]
    add dword ptr [esp + FRAME_EIP], 2
    jmp leave_monitor

# The task reads the monitor's memory: DS is 0, the offset 0x7000.
page_fault:
    enter_monitor
    mov eax, cr2
    check_equal 9, eax, BOOT_RAM_SIZE
    check_equal 10, dword ptr [esp + FRAME_ERROR], PF_P | PF_U
    check_equal 11, dword ptr [esp + FRAME_DS], 0
    check_equal 12, dword ptr [esp + FRAME_EIP], task_reads_monitor
    mov dword ptr [esp + FRAME_EIP], offset task_goes_on
    inc dword ptr [page_faults]
    jmp leave_monitor

task_halted:
    check_equal 13, dword ptr [reflected], 3
    check_equal 14, dword ptr [breakpoints], 1
    check_equal 15, dword ptr [divide_errors], 1
    check_equal 16, dword ptr [page_faults], 1
    check_equal 17, dword ptr [esp + FRAME_ESP], STACK_OFFSET
    print "v86: the task halted; instructions emulated "
    print_decimal [emulated]
    print ", interrupts reflected "
    print_decimal [reflected]
    print "\n"
    succeed

virtual_if: .long 0                 # EFLAGS_IF when the task believes that it has interrupts on
emulated: .long 0
reflected: .long 0
breakpoints: .long 0
divide_errors: .long 0
page_faults: .long 0

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
    .word 0, 104                    # no I/O permission bitmap: each IN and OUT enters the monitor

# ---- the task: 16-bit code -------------------------------------------------------------------------------------------

.balign 4096, 0
.code16
task_program:
    mov bl, 40                      # BL: number of the check that runs now
    mov ax, cs
    cmp ax, SEGMENT
    jne task_failed
    smsw ax                         # real-mode code would see PE clear
    test ax, CR0_PE
    jz task_failed

    # The interrupt flag is the monitor's invention, all others are real.
    mov bl, 41
    sti
    pushf
    pop ax
    test ax, EFLAGS_IF
    jz task_failed
    cli
    pushf
    pop ax
    test ax, EFLAGS_IF
    jnz task_failed
    mov bl, 42
    push EFLAGS_IF | 0x41           # ZF and CF
    popf
    jnc task_failed
    jnz task_failed
    pushf
    pop ax
    test ax, EFLAGS_IF
    jz task_failed

    # Interrupts go to the task's own handlers, with interrupts off, and come back with the flags of before.
    mov bl, 43
    mov si, offset task_message
    int 0x21
    pushf
    pop ax
    test ax, EFLAGS_IF
    jz task_failed
    mov bl, 44
    mov cx, 5
    int 0x60                        # its handler does another INT
    cmp cx, 107
    jne task_failed

    mov bl, 45
    mov dx, PORT_INPUT
    in al, dx
    cmp al, 0x5A
    jne task_failed

    mov bl, 46
    int3
    xor cx, cx
    div cx

    # Segments are paragraphs: 0x0FFF:0x8010 is SEGMENT:0x8000.
    mov bl, 47
    mov ax, SEGMENT - 1
    mov es, ax
    mov ax, es:[task_word + 16]
    cmp ax, 0xBEEF
    jne task_failed
    mov es:[task_word + 16], bx
    cmp [task_word], bx
    jne task_failed

    # Page 0 is the task's, the monitor's pages are not.
    mov bl, 48
    xor ax, ax
    mov ds, ax
    cmp word ptr [0x21 * 4 + 2], SEGMENT
    jne task_failed
task_reads_monitor:
    mov al, [BOOT_RAM_SIZE]
    jmp task_failed
task_goes_on:
    mov eax, 0x12345678             # 32-bit operands work here too
    shr eax, 16
    cmp ax, 0x1234
    jne task_failed
    hlt

task_failed:
    mov al, bl
    mov dx, PORT_VERDICT
    out dx, al

# Print the string at DS:SI.
task_int21:
    pushf
    pop ax
    mov bl, 50
    test ax, EFLAGS_IF
    jnz task_failed
.Ltask_print:
    lodsb
    test al, al
    jz .Ltask_printed
    out PORT_CONSOLE, al
    jmp .Ltask_print
.Ltask_printed:
    iret

task_int60:
    add cx, 2
    mov si, offset task_message_2
    int 0x21
    add cx, 100
    iret

task_message: .asciz "v86: hello from 16-bit code, "
task_message_2: .asciz "and from its handler\n"
.balign 2
task_word: .word 0xBEEF
