# gates: how exceptions and interrupts are delivered in 32-bit protected mode.
#
# Each check makes one thing happen and compares vector, error code and saved EIP with what the manual says (Intel SDM
# volume 3, chapters 6, 7 and 17): software interrupts through interrupt and trap gates, privilege checks, the stack
# switch from ring 3, the I/O permission bitmap, a call gate, single steps and breakpoints, hardware task switches, and
# a double fault that gets a task of its own.
#
# A fault saves the EIP of the instruction that caused it, a trap the EIP behind it.

.code16
    jmp start

.equ OWN_EXCEPTIONS, 1
.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"

.equ TASK_TSS, 0x30                 # a second task
.equ DOUBLE_FAULT_TSS, 0x38         # a task for double faults
.equ NOT_PRESENT, 0x40              # a data segment that is not present
.equ CALL_GATE, 0x48 | 3            # a call gate that ring 3 may use
.equ BEHIND_GDT, 0x1000             # a selector without a descriptor

.equ TASK_STACK, 0x4000
.equ DOUBLE_FAULT_STACK, 0x4800
.equ USER_STACK, 0x3000

.equ FROM_IDT, 2                    # in an error code: the selector part is a vector
.equ CR0_TS, 1 << 3
.equ EFLAGS_RF, 1 << 16             # no instruction breakpoint on the next instruction
.equ DR6_BS, 1 << 14                # a single step

# Offsets in a TSS
.equ TSS_LINK, 0
.equ TSS_EIP, 32
.equ TSS_ESP, 56

# The instruction must raise this exception with this error code; the saved EIP is the instruction's.
.macro expect_fault number, vector, error, instruction:vararg
    announce \number, \vector, \error, .Lat\@, .Lresume\@
.Lat\@:
    \instruction
    jmp failed                      # nothing was raised
.Lresume\@:
.endm

# The same, with the EIP of the next instruction.
.macro expect_trap number, vector, error, instruction:vararg
    announce \number, \vector, \error, .Lbehind\@, .Lresume\@
    \instruction
.Lbehind\@:
    jmp failed
.Lresume\@:
.endm

.macro announce number, vector, error, where, resume
    mov dword ptr [check_number], \number
    mov dword ptr [expected_vector], \vector
    mov dword ptr [expected_error], \error
    mov dword ptr [expected_eip], offset \where
    mov dword ptr [expected_resume], offset \resume
.endm

# In ring 3, at label `entry`, this exception must come, with EIP at `where`. The way back is `user_back`.
.macro expect_in_ring3 number, vector, error, entry, where
    announce \number, \vector, \error, \where, user_back
    mov eax, offset \entry
    mov edx, EFLAGS_ONE
    call visit_ring3
    cmp dword ptr [expected_resume], 0
    jne failed                      # it did not come
.endm

.code16
start:
    enter_protected_mode gdt_pointer
    mov al, 0xFF                    # no hardware interrupts, so IF may be set
    out 0x21, al
    out 0xA1, al
    call install_idt
    set_gate 0x40, leave_ring3, GATE_INTERRUPT | GATE_DPL3
    mov ax, TSS
    ltr ax
    call test_gates
    print "gates: interrupt and trap gates\n"
    call test_exceptions
    print "gates: exceptions and error codes\n"
    call test_ring3
    print "gates: ring 3, stack switch, I/O permission, call gate\n"
    call test_debug
    print "gates: single step and breakpoints\n"
    call test_tasks
    print "gates: task gate and task switches\n"
    call test_double_fault
    print "gates: double fault in a task of its own\n"
    succeed

# ---- exceptions ------------------------------------------------------------------------------------------------------

# On the stack: vector, error code, EIP, CS, EFLAGS, and from ring 3 also ESP, SS.
exception:
    pushad
    cmp dword ptr [expected_resume], 0
    je .Lunannounced
    mov eax, [esp + 32]
    cmp eax, [expected_vector]
    jne .Ldiffers
    mov eax, [esp + 36]
    cmp eax, [expected_error]
    jne .Ldiffers
    mov eax, [esp + 40]
    cmp eax, [expected_eip]
    jne .Ldiffers
    lea eax, [esp + 40]
    mov [seen_esp], eax             # where the CPU's EIP, CS, EFLAGS lie
    mov eax, [esp + 44]
    mov [seen_cs], eax
    mov eax, [esp + 48]
    mov [seen_eflags], eax
    and dword ptr [esp + 48], -1 - EFLAGS_TF  # end of single steps
    mov eax, [expected_resume]
    mov [esp + 40], eax
    mov dword ptr [expected_resume], 0
    inc dword ptr [exceptions_seen]
    popad
    add esp, 8
    iretd
.Ldiffers:
    print "the exception differs\n"
.Lunannounced:
    popad
    jmp unexpected_exception

expected_vector: .long 0
expected_error: .long 0
expected_eip: .long 0
expected_resume: .long 0            # 0: nothing is announced
seen_esp: .long 0
seen_cs: .long 0
seen_eflags: .long 0
exceptions_seen: .long 0

# ---- gates -----------------------------------------------------------------------------------------------------------

# An interrupt gate clears IF, a trap gate does not; IRET brings the old flags back. Both clear TF, NT and RF.
test_gates:
    set_gate 0x30, note_flags, GATE_INTERRUPT
    set_gate 0x31, note_flags, GATE_TRAP
    sti
    int 0x30
.Lbehind_int:
    pushfd
    pop ecx
    check_equal 1, dword ptr [noted_eip], .Lbehind_int
    check_equal 2, dword ptr [noted_cs], CODE
    check 3
    test dword ptr [noted_inside], EFLAGS_IF
    jnz failed
    test dword ptr [noted_pushed], EFLAGS_IF
    jz failed
    test ecx, EFLAGS_IF
    jz failed
    int 0x31
    check 4
    test dword ptr [noted_inside], EFLAGS_IF
    jz failed
    cli
    int 0x31
    check 5
    test dword ptr [noted_inside], EFLAGS_IF
    jnz failed
    std                             # DF is left as it is
    int 0x30
    cld
    check 6
    test dword ptr [noted_inside], EFLAGS_DF
    jz failed
    check_equal 7, dword ptr [noted_esp], STACK - 4 - 12  # no stack switch: below this routine's return address
    ret

note_flags:
    mov [noted_esp], esp
    pushfd
    pop dword ptr [noted_inside]
    push dword ptr [esp]
    pop dword ptr [noted_eip]
    push dword ptr [esp + 4]
    pop dword ptr [noted_cs]
    push dword ptr [esp + 8]
    pop dword ptr [noted_pushed]
    iretd

noted_inside: .long 0               # EFLAGS in the handler,
noted_eip: .long 0                  # and what the CPU pushed
noted_cs: .long 0
noted_pushed: .long 0
noted_esp: .long 0

test_exceptions:
    expect_trap 8, 3, 0, int3
    expect_trap 9, 3, 0, int 3      # two bytes: CD 03
    xor eax, eax
    into                            # OF is clear: nothing
    mov al, 0x7F
    inc al                          # sets OF
    expect_trap 10, 4, 0, into
    mov eax, 10
    bound eax, [bounds]             # inside: nothing
    mov eax, 21
    expect_fault 11, 5, 0, bound eax, [bounds]
    mov eax, -1
    expect_fault 12, 5, 0, bound eax, [bounds]
    expect_fault 13, 6, 0, ud2
    xor ecx, ecx
    expect_fault 14, 0, 0, div ecx
    mov eax, cr0
    or eax, CR0_TS
    mov cr0, eax
    expect_fault 15, 7, 0, fld1     # task switched: the FPU's state may be another task's
    clts
    fninit
    mov ecx, BEHIND_GDT
    expect_fault 16, 13, BEHIND_GDT, mov fs, ecx
    mov ecx, NOT_PRESENT
    expect_fault 17, 11, NOT_PRESENT, mov fs, ecx
    expect_fault 18, 12, NOT_PRESENT, mov ss, ecx
    xor ecx, ecx
    expect_fault 19, 13, 0, mov ss, ecx
    mov ecx, USER_DATA
    expect_fault 20, 13, USER_DATA & 0xFFFC, mov ss, ecx  # ring 0 needs a ring 0 stack
    # INT through what is no gate, and through a gate that is not present: the error code names the vector.
    expect_fault 21, 13, 0x50 * 8 + FROM_IDT, int 0x50
    set_gate 0x50, note_flags, GATE_INTERRUPT - 0x80
    expect_fault 22, 11, 0x50 * 8 + FROM_IDT, int 0x50
    set_gate 0x51, note_flags
    mov word ptr [IDT + 0x51 * 8 + 2], DATA  # a gate into a data segment
    expect_fault 23, 13, DATA, int 0x51
    expect_fault 24, 13, BEHIND_GDT, ljmp BEHIND_GDT:0
    ret

bounds: .long 0, 20

# ---- ring 3 ----------------------------------------------------------------------------------------------------------

# Run ring 3 code at EAX with EFLAGS in EDX; comes back when it does INT 0x40.
visit_ring3:
    mov [supervisor_esp], esp
    mov cx, USER_DATA
    mov ds, cx
    mov es, cx
    push USER_DATA
    push USER_STACK
    push edx
    push USER_CODE
    push eax
    iretd
leave_ring3:
    mov esp, [supervisor_esp]
    mov cx, DATA
    mov ds, cx
    mov es, cx
    ret

supervisor_esp: .long 0

test_ring3:
    # An INT through a gate for ring 0 only, and through one for all.
    set_gate 0x32, note_flags, GATE_INTERRUPT
    expect_in_ring3 30, 13, 0x32 * 8 + FROM_IDT, user_int32, user_int32
    check_equal 31, dword ptr [seen_cs], USER_CODE
    check_equal 32, dword ptr [seen_esp], RING0_STACK - 20  # the stack from the TSS: EIP, CS, EFLAGS, ESP, SS
    check_equal 33, dword ptr [RING0_STACK - 8], USER_STACK
    check_equal 34, dword ptr [RING0_STACK - 4], USER_DATA
    set_gate 0x33, note_flags, GATE_INTERRUPT | GATE_DPL3
    mov eax, offset user_int33
    mov edx, EFLAGS_ONE | EFLAGS_IF
    call visit_ring3
    check_equal 35, dword ptr [noted_cs], USER_CODE
    check_equal 36, dword ptr [noted_esp], RING0_STACK - 20
    check 37
    test dword ptr [noted_inside], EFLAGS_IF
    jnz failed
    # INT3 and INTO check the gate's DPL as well; a fault does not.
    expect_in_ring3 38, 13, 3 * 8 + FROM_IDT, user_int3, user_int3
    or byte ptr [IDT + 3 * 8 + 5], GATE_DPL3
    expect_in_ring3 39, 3, 0, user_int3, user_int3_behind
    expect_in_ring3 40, 6, 0, user_ud2, user_ud2
    # Privileged instructions.
    expect_in_ring3 41, 13, 0, user_cli, user_cli
    expect_in_ring3 42, 13, 0, user_hlt, user_hlt
    expect_in_ring3 43, 13, 0, user_cr0, user_cr0
    expect_in_ring3 44, 13, 0, user_lgdt, user_lgdt
    expect_in_ring3 45, 13, CODE, user_far_jump, user_far_jump
    expect_in_ring3 46, 13, DATA, user_load_ds, user_load_ds
    # Ports: IOPL is 0, so the bitmap in the TSS decides. It allows port 0x80 only.
    expect_in_ring3 47, 13, 0, user_out_console, user_out_console
    mov eax, offset user_out_80
    mov edx, EFLAGS_ONE
    call visit_ring3
    mov eax, offset user_iopl       # with IOPL 3: CLI, and any port
    mov edx, EFLAGS_ONE | EFLAGS_IOPL3 | EFLAGS_IF
    call visit_ring3
    # A call gate switches stacks too, and copies two words of parameters.
    mov eax, offset user_call_gate
    mov edx, EFLAGS_ONE
    call visit_ring3
    check_equal 48, dword ptr [gate_sum], 30
    check_equal 49, dword ptr [gate_esp], RING0_STACK - 24  # EIP, CS, two parameters, ESP, SS
    check_equal 50, dword ptr [user_result], USER_STACK
    ret

through_call_gate:
    mov [gate_esp], esp
    mov eax, [esp + 8]
    add eax, [esp + 12]
    mov [gate_sum], eax
    retf 8                          # removes the parameters from both stacks

gate_sum: .long 0
gate_esp: .long 0
user_result: .long 0

# What runs in ring 3. No paging, so it sees everything.
user_int32:
    int 0x32
user_int33:
    int 0x33
    jmp user_back
user_int3:
    int3
user_int3_behind:
    jmp user_back
user_ud2:
    ud2
user_cli:
    cli
user_hlt:
    hlt
user_cr0:
    mov eax, cr0
user_lgdt:
    lgdt [gdt_pointer]
user_far_jump:
    ljmp CODE:user_back
user_load_ds:
    mov ds, [user_ring0_data]
user_out_console:
    out PORT_CONSOLE, al
user_out_80:
    out 0x80, al
    jmp user_back
user_iopl:
    cli
    in al, 0x61
    sti
    jmp user_back
user_call_gate:
    push 10
    push 20
    lcall CALL_GATE:0
    mov [user_result], esp
user_back:
    int 0x40

user_ring0_data: .word DATA

# ---- debug exceptions ------------------------------------------------------------------------------------------------

test_debug:
    # TF: a trap behind the next instruction.
    xor eax, eax
    mov dr6, eax
    announce 60, 1, 0, .Lstepped, .Lstep_resume
    pushfd
    or dword ptr [esp], EFLAGS_TF
    popfd
    inc eax                         # TF takes effect here: the trap comes behind it
.Lstepped:
    inc eax
    jmp failed
.Lstep_resume:
    check_equal 61, eax, 1
    mov eax, dr6
    and eax, DR6_BS | 15
    check_equal 62, eax, DR6_BS
    check 63                        # the saved flags have TF, so that IRET goes on stepping
    test dword ptr [seen_eflags], EFLAGS_TF
    jz failed
    # Ten instructions of a loop, step by step.
    set_gate 1, count_step
    mov dword ptr [steps], 0
    mov ecx, 5
    pushfd
    or dword ptr [esp], EFLAGS_TF
    popfd
.Lstepped_loop:
    dec ecx
    jnz .Lstepped_loop
    pushfd
    and dword ptr [esp], -1 - EFLAGS_TF
    popfd
    check_equal 64, dword ptr [steps], 13  # five times two, PUSHFD, AND, POPFD
    set_gate 1, unexpected_stubs + 16

    # DR0: an instruction. A fault, before it runs; RF in the saved flags lets it run when the handler returns.
    xor eax, eax
    mov dr6, eax
    mov eax, offset .Lbreak_here
    mov dr0, eax
    mov eax, 0x00000402             # bit 10 is always set; G0
    mov dr7, eax
    xor ebx, ebx
    announce 65, 1, 0, .Lbreak_here, .Lbreak_resume
    inc ebx
.Lbreak_here:
    inc ebx
    jmp failed
.Lbreak_resume:
    check_equal 66, ebx, 1
    mov eax, dr6
    and eax, DR6_BS | 15
    check_equal 67, eax, 1
    set_gate 1, go_on_with_rf
    mov dword ptr [steps], 0
    mov eax, offset .Lbreak_thrice
    mov dr0, eax
    mov ecx, 3
.Lbreak_thrice:
    inc ebx
    dec ecx
    jnz .Lbreak_thrice
    check_equal 68, dword ptr [steps], 3
    check_equal 69, ebx, 4
    set_gate 1, unexpected_stubs + 16

    # DR1: writes to four bytes. DR2: reads or writes of one. Traps, behind the instruction.
    mov eax, offset watched
    mov dr1, eax
    mov eax, offset watched + 6
    mov dr2, eax
    mov eax, 0x03D00428             # DR1: write, 4 bytes; DR2: any access, 1 byte; G1, G2
    mov dr7, eax
    xor eax, eax
    mov dr6, eax
    mov ecx, [watched]              # DR1 watches no reads
    expect_trap 70, 1, 0, mov [watched], ebx
    mov eax, dr6
    and eax, 15
    check_equal 71, eax, 2
    check_equal 72, [watched], ebx  # the store was made
    expect_trap 73, 1, 0, mov byte ptr [watched + 3], 1
    xor eax, eax
    mov dr6, eax
    mov cl, [watched + 5]
    mov byte ptr [watched + 7], 1
    expect_trap 74, 1, 0, mov cl, [watched + 6]
    mov eax, dr6
    and eax, 15
    check_equal 75, eax, 4
    mov eax, 0x400
    mov dr7, eax
    mov [watched], ebx              # all off
    ret

count_step:
    inc dword ptr [steps]
    iretd

go_on_with_rf:
    inc dword ptr [steps]
    or dword ptr [esp + 8], EFLAGS_RF
    iretd

.balign 8
watched: .long 0, 0
steps: .long 0

# ---- tasks -----------------------------------------------------------------------------------------------------------

# A task gate saves all registers in the current TSS and loads them from another. IRET with NT goes back along the link.
test_tasks:
    mov dword ptr [IDT + 0x34 * 8], TASK_TSS << 16
    mov dword ptr [IDT + 0x34 * 8 + 4], GATE_TASK << 8
    mov ebx, 0x12345678
    mov ebp, 0x9ABCDEF0
    int 0x34
.Lbehind_task:
    check_equal 80, ebx, 0x12345678
    check_equal 81, ebp, 0x9ABCDEF0
    check_equal 82, dword ptr [task_runs], 1
    check_equal 83, dword ptr [task_state + TSS_EIP], .Lbehind_task
    check_equal 84, word ptr [second_state + TSS_LINK], TSS
    check 85                        # NT was set in the task, and TS in CR0
    test dword ptr [task_eflags], EFLAGS_NT
    jz failed
    test dword ptr [task_cr0], CR0_TS
    jz failed
    clts
    int 0x34                        # it goes on behind its IRET
    check_equal 86, dword ptr [task_runs], 2
    clts
    mov al, [gdt + TASK_TSS + 5]
    check_equal 87, al, 0x89        # not busy
    mov al, [gdt + TSS + 5]
    check_equal 88, al, 0x8B        # busy
    # A far jump to a TSS switches without a way back: NT stays clear, the old task is not busy any more.
    mov dword ptr [second_state + TSS_EIP], offset jumped_task
    mov dword ptr [second_state + TSS_ESP], TASK_STACK
    ljmp TASK_TSS:0
    check_equal 89, dword ptr [task_runs], 3
    clts
    ret

second_task:
    inc dword ptr [task_runs]
    pushfd
    pop dword ptr [task_eflags]
    mov eax, cr0
    mov [task_cr0], eax
    iretd
    jmp second_task                 # the next switch to this task goes on here

jumped_task:
    inc dword ptr [task_runs]
    mov al, [gdt + TSS + 5]
    check_equal 90, al, 0x89
    pushfd
    pop eax
    check 91
    test eax, EFLAGS_NT
    jnz failed
    ljmp TSS:0

task_runs: .long 0
task_eflags: .long 0
task_cr0: .long 0

# #GP whose own gate is not present: #NP while delivering #GP makes a double fault. Its handler is a task, which would
# run even if the stack were no good.
test_double_fault:
    mov dword ptr [IDT + 8 * 8], DOUBLE_FAULT_TSS << 16
    mov dword ptr [IDT + 8 * 8 + 4], GATE_TASK << 8
    and byte ptr [IDT + 13 * 8 + 5], 0x7F
    mov ecx, BEHIND_GDT
    mov ebx, esp
    xor esp, esp                    # not used
.Ldouble_faults:
    mov fs, ecx
    jmp failed
.Ldouble_fault_done:
    check_equal 92, esp, 0
    mov esp, ebx
    check_equal 93, dword ptr [double_faults], 1
    or byte ptr [IDT + 13 * 8 + 5], 0x80
    mov ecx, BEHIND_GDT
    expect_fault 94, 13, BEHIND_GDT, mov fs, ecx
    ret

double_fault_task:
    inc dword ptr [double_faults]
    check_equal 95, esp, DOUBLE_FAULT_STACK - 4  # only the error code, which is 0
    cmp dword ptr [esp], 0
    jne failed
    cmp dword ptr [task_state + TSS_EIP], .Ldouble_faults
    jne failed
    mov dword ptr [task_state + TSS_EIP], offset .Ldouble_fault_done
    add esp, 4
    iretd

double_faults: .long 0

.balign 8
gdt:
    gdt_flat
    gdt_system task_state, 104 + 32, 0x89
    gdt_system second_state, 103, 0x89
    gdt_system double_fault_state, 103, 0x89
    .quad 0x00CF13000000FFFF        # 0x40 data, not present
    .word through_call_gate, CODE   # 0x48 a call gate with DPL 3 and two parameters
    .byte 2, 0xEC, 0, 0
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end

# A task state segment that starts at eip with an empty stack.
.macro task_state_segment eip, stack
    .long 0, RING0_STACK, DATA, 0, 0, 0, 0, 0  # link, ring 0 stack, other rings' stacks, CR3
    .long \eip, EFLAGS_ONE
    .long 0, 0, 0, 0, \stack, 0, 0, 0  # EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI
    .long DATA, CODE, DATA, DATA, DATA, DATA, 0  # ES, CS, SS, DS, FS, GS, LDT
    .word 0, 104                    # debug trap; where the I/O permission bitmap begins
.endm

.balign 8
second_state:
    task_state_segment second_task, TASK_STACK
.balign 8
double_fault_state:
    task_state_segment double_fault_task, DOUBLE_FAULT_STACK
.balign 8
task_state:                         # of everything else; the task switches save into it
    task_state_segment 0, 0
    .space 16, 0xFF                 # I/O permission: a bit a port, 0 allows
    .byte 0xFE                      # port 0x80
    .space 16, 0xFF
