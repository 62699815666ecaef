# tasks: two tasks that share the CPU, and do not know it.
#
# Each task has an address space of its own: the same gva shows other frames in each. The timer interrupts 1000 times a
# second, and its handler switches: the registers of one task stay on that task's kernel stack, and the stack pointer
# and CR3 become the other's. Both run the same program in ring 3, with another seed: fill 16 pages with random numbers,
# compute a checksum of them, report it, begin again. The kernel knows what the checksum must be without any memory.
# What is printed depends on no timing.
#
# Parameter on the command line: switches=N, how many ticks to take before the end.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "timer.inc"
.include "cmdline.inc"

# Physical memory
.equ LOW_TABLE, 0x20000             # 0-4 MiB to itself, in both address spaces
.equ DIRECTORY_A, 0x21000
.equ TABLE_A, 0x22000               # the task's own memory
.equ DIRECTORY_B, 0x23000
.equ TABLE_B, 0x24000
.equ KERNEL_STACK_A, 0x31000        # tops of the stacks for entries from ring 3
.equ KERNEL_STACK_B, 0x32000
.equ FRAMES_A, 0x100000
.equ FRAMES_B, 0x140000

# Linear memory of a task
.equ TASK, 0x08000000
.equ TASK_PAGES, 16                 # that the checksum goes over
.equ TASK_WORDS, TASK_PAGES * 1024
.equ TASK_STACK, TASK + (TASK_PAGES + 1) * 4096  # top of a stack of one page

.equ SEED_A, 0x0A0A0A0A
.equ SEED_B, 0x0B0B0B0B
.equ RW, PTE_P | PTE_W
.equ ROUNDS_NEEDED, 2               # rounds that each task must have done at the end

.code16
start:
    enter_protected_mode gdt_pointer
    call install_idt
    set_gate TIMER_VECTOR, timer_waits
    set_gate TIMER_VECTOR + 7, spurious
    set_gate 0x80, task_reports, GATE_INTERRUPT | GATE_DPL3
    mov ax, TSS
    ltr ax
    parameter "switches", 20
    mov [switches_left], eax

    # What the checksums must be.
    mov ebp, SEED_A
    call expected_checksum
    mov [task_expected], ebx
    mov ebp, SEED_B
    call expected_checksum
    mov [task_expected + 4], ebx

    mov edi, LOW_TABLE
    xor eax, eax
    mov ecx, 5 * 1024
    rep stosd
    mov edi, LOW_TABLE
    mov eax, RW
    mov ecx, 1024
.Lidentity_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lidentity_next
    mov eax, offset task_program    # the program's page is open to ring 3, read-only
    shr eax, 12
    and dword ptr [LOW_TABLE + eax * 4], -1 - PTE_W
    or dword ptr [LOW_TABLE + eax * 4], PTE_U
    mov edi, DIRECTORY_A
    mov esi, TABLE_A
    mov eax, FRAMES_A
    call build_space
    mov edi, DIRECTORY_B
    mov esi, TABLE_B
    mov eax, FRAMES_B
    call build_space
    mov eax, DIRECTORY_A
    mov cr3, eax
    mov eax, cr0
    or eax, CR0_PG | CR0_WP
    mov cr0, eax

    # First see the timer tick: HLT waits for it. STI lets interrupts in only after the next instruction, so none is
    # lost between.
    start_timer 1000
.Lwait_next:
    sti
    hlt
    cli
    cmp dword ptr [ticks], 3
    jb .Lwait_next
    print "tasks: the timer ticks\n"
    set_gate TIMER_VECTOR, timer_switches

    # Each kernel stack looks as if its task had been interrupted before its first instruction.
    mov edi, KERNEL_STACK_B
    mov ebx, SEED_B
    call prepare_stack
    mov [task_esp + 4], edi
    mov edi, KERNEL_STACK_A
    mov ebx, SEED_A
    call prepare_stack
    mov esp, edi
    jmp return_to_task

# Directory EDI and table ESI of an address space: the kernel, and the task's pages at TASK from frame EAX on.
build_space:
    mov dword ptr [edi], LOW_TABLE | RW | PTE_U
    lea edx, [esi + RW + PTE_U]
    mov [edi + (TASK >> 22) * 4], edx
    or eax, RW | PTE_U
    mov ecx, TASK_PAGES + 1
.Lspace_next:
    mov [esi], eax
    add esi, 4
    add eax, 4096
    dec ecx
    jnz .Lspace_next
    ret

# What timer_switches leaves on the stack that ends at EDI, for a task with seed EBX. Returns the stack pointer in EDI.
prepare_stack:
    sub edi, 60
    mov dword ptr [edi + 56], USER_DATA  # SS
    mov dword ptr [edi + 52], TASK_STACK  # ESP
    mov dword ptr [edi + 48], EFLAGS_ONE | EFLAGS_IF
    mov dword ptr [edi + 44], USER_CODE
    mov dword ptr [edi + 40], offset task_program
    mov [edi + 16 + 8], ebx         # EBX, of PUSHAD's eight registers from 8 on
    mov dword ptr [edi + 4], USER_DATA  # DS
    mov dword ptr [edi], USER_DATA  # ES
    ret

# EBX = checksum of the numbers from seed EBP. Changes EBP, ECX.
expected_checksum:
    xor ebx, ebx
    mov ecx, TASK_WORDS
.Lexpected_next:
    imul ebp, ebp, 1664525
    add ebp, 1013904223
    rol ebx, 1
    add ebx, ebp
    dec ecx
    jnz .Lexpected_next
    ret

# ---- interrupts ------------------------------------------------------------------------------------------------------

timer_waits:                        # until the tasks run
    push eax
    inc dword ptr [ticks]
    end_of_interrupt
    pop eax
    iretd

spurious:                           # IRQ 7 without a request: nothing to end
    iretd

# The CPU came from ring 3 to the task's kernel stack, and pushed SS, ESP, EFLAGS, CS, EIP there.
timer_switches:
    pushad
    push ds
    push es
    mov ax, DATA
    mov ds, ax
    mov es, ax
    end_of_interrupt
    check 1                         # only tasks are interrupted
    test dword ptr [esp + 44], 3    # their CS has privilege level 3
    jz failed
    cmp dword ptr [switches_left], 0
    je .Lenough_switches
    dec dword ptr [switches_left]
.Lswitch:
    mov ecx, [current]
    mov [task_esp + ecx * 4], esp
    xor ecx, 1
    mov [current], ecx
    mov esp, [task_esp + ecx * 4]
    mov eax, [task_cr3 + ecx * 4]
    mov cr3, eax
    mov eax, [task_stack + ecx * 4]
    mov [task_state + 4], eax       # ESP0: where the next interrupt of this task begins to push
return_to_task:
    pop es
    pop ds
    popad
    iretd

.Lenough_switches:                  # the end, if both tasks got far enough
    cmp dword ptr [task_rounds], ROUNDS_NEEDED
    jb .Lswitch
    cmp dword ptr [task_rounds + 4], ROUNDS_NEEDED
    jb .Lswitch
    jmp finish

# INT 0x80: EAX is 0 and EBX the checksum of a round, or EAX is the number of a failed check.
task_reports:
    push ds
    push ecx
    mov cx, DATA
    mov ds, cx
    test eax, eax
    mov [check_number], eax
    jnz failed
    mov ecx, [current]
    check_equal 2, ebx, [task_expected + ecx * 4]
    inc dword ptr [task_rounds + ecx * 4]
    pop ecx
    pop ds
    iretd

finish:
    # The same gva, two frames: seen through the identity map, each begins with the first number of its own seed.
    imul eax, [seeds], 1664525
    add eax, 1013904223
    check_equal 3, eax, [FRAMES_A]
    imul eax, [seeds + 4], 1664525
    add eax, 1013904223
    check_equal 4, eax, [FRAMES_B]
    print "tasks: both made progress; checksums "
    print_hex [task_expected]
    print " and "
    print_hex [task_expected + 4]
    print " in every round\n"
    succeed

.balign 4
ticks: .long 0
switches_left: .long 0
current: .long 0                    # the task that runs: 0 is A, 1 is B
seeds: .long SEED_A, SEED_B
task_esp: .long 0, 0
task_cr3: .long DIRECTORY_A, DIRECTORY_B
task_stack: .long KERNEL_STACK_A, KERNEL_STACK_B
task_rounds: .long 0, 0             # finished rounds
task_expected: .long 0, 0           # checksums

.balign 8
gdt:
    gdt_flat
    gdt_system task_state, 103, 0x89
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end

.balign 8
task_state:
    .long 0, KERNEL_STACK_A, DATA   # link, ESP0, SS0
    .space 88
    .word 0, 104

# ---- the program of both tasks; EBX: seed ----------------------------------------------------------------------------

.balign 4096, 0
task_program:
    mov esi, ebx
.Lround:
    mov ebp, esi
    mov edi, TASK
    mov ecx, TASK_WORDS
.Lfill_next:
    call next_number                # through the stack, for that is a page of its own too
    mov [edi], ebp
    add edi, 4
    dec ecx
    jnz .Lfill_next
    mov edi, TASK
    mov ecx, TASK_WORDS
    xor ebx, ebx
.Lsum_next:
    rol ebx, 1
    add ebx, [edi]
    add edi, 4
    dec ecx
    jnz .Lsum_next
    xor eax, eax
    int 0x80
    mov eax, 5                      # a lost register would have led the loop elsewhere
    cmp edi, TASK_STACK - 4096
    jne .Ltask_failed
    jmp .Lround
.Ltask_failed:
    int 0x80

next_number:
    imul ebp, ebp, 1664525
    add ebp, 1013904223
    ret
