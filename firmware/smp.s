# smp: several processors, and what their programs rely on.
#
# All processors start, and then do, part by part, what an operating system asks of them: exclude each other, share
# work, interrupt each other, keep their TLBs coherent, and write code that another one runs. What comes out is exact
# for any number of processors, one included. Sources: Intel SDM volume 3, 8.1 to 8.4 (atomic operations, code that
# changes, start), 4.10 (TLBs) and chapter 11 (local APIC); the number of processors is QEMU's fw_cfg item 5.
#
# Parameters on the command line: cpus=N, the processors that must come up (0: as many as the machine says, 1 to 16);
# rounds=N, how often each processor takes each lock; part=N, one part alone:
#   1  start: INIT and two SIPIs to all but self; each processor reads its APIC's ID (done before each other part too)
#   2  locks: spinlock, ticket lock, LOCK INC, CMPXCHG; a lost update would show in the counters
#   3  queue: items that any processor takes; who takes how many depends on the machine
#   4  ipi: ping and pong, broadcasts, NMI, HLT that an IPI ends, logical destinations, lowest priority
#   5  tlb: a page is remapped, the others are told to forget it; and once, on purpose, they are not told. A processor
#      may then go on reading the old page: a line of its own says how many did. Neither is a failure, but with forget=1
#      all must have done so; forget=2 leaves this out.
#   6  code: self-modifying, cross-modifying, and data next to code
# A processor that does not answer is named and ends the run; patience=N says after how many times 2^20 ticks of the TSC,
# which is 1 ms at 1 GHz.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.include "interrupts.inc"
.include "cmdline.inc"

.equ PARTS, 6

# Physical memory
.equ DIRECTORY, 0x20000
.equ LOW_TABLE, 0x21000             # 0-4 MiB to itself
.equ HIGH_TABLE, 0x22000            # the 4 MiB from HIGH on
.equ STACKS, 0x30000                # a page for each processor
.equ FRAME_A, 0x100000              # what WINDOW shows, in turn
.equ FRAME_B, 0x101000
.equ SHARED, 0x102000               # a function that all call, and data
.equ OWN_CODE, 0x110000             # a page for each processor

# Linear memory
.equ HIGH, 0x40000000
.equ APIC, HIGH + 0x24000           # the local APIC's registers
.equ WINDOW, HIGH + 0x28000
.equ RW, PTE_P | PTE_W
.equ PTE_UNCACHED, 3 << 3           # PCD, PWT: for device registers
.equ CR0_CACHE_OFF, 3 << 29         # CD and NW, which INIT sets

# Interrupt vectors
.equ WAKE, 0x40
.equ TIMER, 0x41
.equ PING, 0x50
.equ PONG, 0x51
.equ BROADCAST, 0x52
.equ GROUP, 0x53                    # to a logical destination
.equ LOWEST, 0x54
.equ SHOOTDOWN, 0x60
.equ SPURIOUS, 0xFF

.equ FW_CFG_KEY, 0x510              # QEMU's configuration device: write a key, read bytes
.equ FW_CFG_DATA, 0x511
.equ FW_CFG_CPUS, 5                 # number of processors, 16 bits

.equ ITEMS, 64                      # of the queue
.equ PINGS, 4                       # to each processor
.equ REMAPPINGS, 4
.equ VERSIONS, 6                    # of a function that changes

.include "apic.inc"
.include "processors.inc"

# The handler of an interrupt that only counts, in a table with a number for each processor.
.macro count_interrupt table
    push eax
    my_number eax
    inc dword ptr [\table + eax * 4]
    mov dword ptr [APIC_EOI], 0
    pop eax
    iretd
.endm

# Run a part, unless another one is asked for alone.
.macro part number, routine
    mov eax, [only_part]
    test eax, eax
    jz .Lpart\@
    cmp eax, \number
    jne .Lno_part\@
.Lpart\@:
    call \routine
.Lno_part\@:
.endm

# All processors come here: the first at 0000:8000, the others at 0800:0000 with a start-up IPI for page 8.
.code16
start:
    enter_protected_mode gdt_pointer
    mov ecx, MSR_APIC_BASE
    rdmsr
    test ah, 1                      # bit 8
    jz another_processor

    mov esp, STACKS + 0xFF0
    and eax, 0xFFFFF000
    mov [apic_gpa], eax
    call read_parameters
    call build_tables
    call install_handlers
    xor ebp, ebp
    call start_processor
    call test_start
    sti
    part 2, test_locks
    part 3, test_queue
    part 4, test_ipi
    part 5, test_tlb
    part 6, test_code
    must_equal "processors that came up", dword ptr [came_up], dword ptr [processors]
    print "smp: "
    print_decimal [processors]
    print " processors, all ok\n"
    succeed

another_processor:
    mov ebp, 1
    lock xadd [came_up], ebp        # EBP: its number
    cmp ebp, MOST
    jae stop
    mov esp, ebp
    shl esp, 12
    add esp, STACKS + 0xFF0
    call start_processor
    mov dword ptr [ready + ebp * 4], 1
    jmp idle

read_parameters:
    parameter "rounds", 50
    mov [rounds], eax
    parameter "forget", 0
    mov [forget], eax
    parameter "patience", 4096
    mov [patience], eax
    parameter "part", 0
    mov [only_part], eax
    cmp eax, PARTS
    ja .Lbad_parameter
    parameter "cpus", 0
    test eax, eax
    jnz .Lcount_known
    mov dx, FW_CFG_KEY
    mov eax, FW_CFG_CPUS
    out dx, ax
    mov dx, FW_CFG_DATA
    in al, dx
    mov ah, al
    in al, dx
    xchg al, ah
.Lcount_known:
    mov [processors], eax
    dec eax
    cmp eax, MOST
    jae .Lbad_parameter
    ret
.Lbad_parameter:
    print "FAILED: cpus= takes 1 to 16, part= takes 0 to 6\n"
    mov eax, 2
    jmp exit

build_tables:
    mov edi, DIRECTORY
    xor eax, eax
    mov ecx, 3 * 1024
    rep stosd
    mov dword ptr [DIRECTORY], LOW_TABLE | RW
    mov dword ptr [DIRECTORY + (HIGH >> 22) * 4], HIGH_TABLE | RW
    mov edi, LOW_TABLE
    mov eax, RW
    mov ecx, 1024
.Lidentity_next:
    stosd
    add eax, 4096
    dec ecx
    jnz .Lidentity_next
    mov eax, [apic_gpa]
    or eax, RW | PTE_UNCACHED
    mov [HIGH_TABLE + ((APIC - HIGH) >> 12) * 4], eax
    ret

install_handlers:
    call install_idt
    set_gate 2, nmi_comes
    set_gate WAKE, wake_comes
    set_gate TIMER, timer_comes
    set_gate PING, ping_comes
    set_gate PONG, pong_comes
    set_gate BROADCAST, broadcast_comes
    set_gate GROUP, group_comes
    set_gate LOWEST, lowest_comes
    set_gate SHOOTDOWN, shootdown_comes
    set_gate SPURIOUS, spurious_comes
    mov al, 0xFF                    # no interrupts of the two 8259s
    out 0x21, al
    out 0xA1, al
    ret

# Paging, IDT and local APIC of the processor with number EBP. Changes EAX, ECX.
start_processor:
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    and eax, -1 - CR0_CACHE_OFF
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
    lidt [idt_pointer]
    mov eax, [APIC_ID]
    shr eax, 24
    mov [id_of + ebp * 4], eax
    mov dword ptr [APIC_LVT_LINT0], LVT_MASKED
    mov dword ptr [APIC_TPR], 0
    mov dword ptr [APIC_DFR], 0xFFFFFFFF
    mov eax, 1 << 24
    mov ecx, ebp
    shl eax, cl                     # the numbers from 8 on have no logical ID
    mov [APIC_LDR], eax
    mov dword ptr [APIC_SVR], SVR_ENABLE | SPURIOUS
    ret

# ---- interrupt handlers ----------------------------------------------------------------------------------------------

wake_comes:
    mov dword ptr [APIC_EOI], 0
    iretd

timer_comes:
    mov dword ptr [slept], 1
    mov dword ptr [APIC_EOI], 0
spurious_comes:                     # has no EOI
    iretd

nmi_comes:                          # neither
    push eax
    my_number eax
    inc dword ptr [nmis + eax * 4]
    pop eax
    iretd

ping_comes:
    push eax
    push edx
    my_number eax
    inc dword ptr [pings + eax * 4]
    mov dword ptr [APIC_EOI], 0
    mov eax, [id_of]
    send ASSERT | PONG, eax
    pop edx
    pop eax
    iretd

pong_comes:
    count_interrupt pongs

broadcast_comes:
    count_interrupt broadcasts

group_comes:
    count_interrupt groups

lowest_comes:
    count_interrupt lowest

shootdown_comes:
    invlpg [WINDOW]
    count_interrupt shootdowns

# ---- 1: start --------------------------------------------------------------------------------------------------------

test_start:
    send TO_OTHERS | ASSERT | INIT
    mov eax, 10000000               # 10 ms, then 200 us, as the manual wants
    call sleep
    send TO_OTHERS | ASSERT | STARTUP | 8
    mov eax, 200000
    call sleep
    send TO_OTHERS | ASSERT | STARTUP | 8
    wait_for_all "it has started", ready, 1, 1
    must_equal "processors that came up", dword ptr [came_up], dword ptr [processors]
    print "smp: start: APIC IDs"
    xor edx, edx                    # processors found with these IDs
    xor eax, eax                    # an ID
.Lid_next:
    xor ecx, ecx
.Lid_of_next:
    cmp eax, [id_of + ecx * 4]
    jne .Lother_id
    inc edx
    print " "
    print_decimal eax
    jmp .Lid_found
.Lother_id:
    inc ecx
    cmp ecx, [processors]
    jb .Lid_of_next
.Lid_found:
    inc eax
    cmp eax, 256
    jb .Lid_next
    must_equal "different APIC IDs", edx, dword ptr [processors]
    print ": ok\n"
    ret

# Sleep for EAX ns. The timer of QEMU's local APIC counts ns. Changes no register.
sleep:
    pushfd
    mov dword ptr [slept], 0
    mov dword ptr [APIC_TIMER_DIVIDE], DIVIDE_BY_1
    mov dword ptr [APIC_LVT_TIMER], TIMER
    mov [APIC_TIMER_COUNT], eax
.Lsleep_next:
    sti
    hlt
    cli
    cmp dword ptr [slept], 0
    je .Lsleep_next
    popfd
    ret

# ---- 2: locks --------------------------------------------------------------------------------------------------------

test_locks:
    mov eax, offset take_locks
    call do_job
    mov eax, [rounds]
    mul dword ptr [processors]
    must_equal "counter under the spinlock", dword ptr [spin_counter], eax
    must_equal "counter under the ticket lock", dword ptr [ticket_counter], eax
    must_equal "counter of LOCK INC", dword ptr [inc_counter], eax
    must_equal "counter of CMPXCHG", dword ptr [cmpxchg_counter], eax
    print "smp: locks: spinlock, ticket lock, LOCK INC and CMPXCHG counted to "
    print_decimal eax
    print ": ok\n"
    ret

take_locks:
    call meet
    mov ecx, [rounds]
.Lspin_next:
    dec ecx
    js .Lspun
.Lspin_try:
    lea eax, [ebp + 1]              # the holder, and not 0
    lock xchg [spin_lock], eax
    test eax, eax
    jz .Lspin_taken
    call begin_waiting
.Lspin_wait:                        # reading alone, until it looks free
    call wait_longer
    jc .Lspin_in_vain
    cmp dword ptr [spin_lock], 0
    jne .Lspin_wait
    jmp .Lspin_try
.Lspin_in_vain:
    dec eax
    call waited_in_vain
    .asciz "the spinlock is free"
.Lspin_taken:
    mov eax, [spin_counter]
    inc eax
    mov [spin_counter], eax
    mov dword ptr [spin_lock], 0
    jmp .Lspin_next
.Lspun:

    mov ecx, [rounds]
.Lticket_next:
    dec ecx
    js .Ltickets_done
    mov ebx, 1
    lock xadd [ticket_next], ebx
    wait_for [ticket_holder], "the ticket lock is free", je, cmp [ticket_served], ebx
    mov [ticket_holder], ebp
    mov eax, [ticket_counter]
    inc eax
    mov [ticket_counter], eax
    inc dword ptr [ticket_served]
    jmp .Lticket_next
.Ltickets_done:

    mov ecx, [rounds]
.Lfree_next:
    dec ecx
    js .Lfree_done
    lock inc dword ptr [inc_counter]
    mov eax, [cmpxchg_counter]
.Lcmpxchg_again:
    lea ebx, [eax + 1]
    lock cmpxchg [cmpxchg_counter], ebx
    jne .Lcmpxchg_again             # EAX: the value that another one left
    jmp .Lfree_next
.Lfree_done:
    ret

# ---- 3: queue --------------------------------------------------------------------------------------------------------

test_queue:
    mov eax, offset take_items
    call do_job
    xor edx, edx                    # expected sum
    mov esi, ITEMS
.Lexpected_next:
    dec esi
    mov ebx, esi
    call work_on_item
    add edx, ebx
    test esi, esi
    jnz .Lexpected_next
    must_equal "checksum of the queue", dword ptr [queue_sum], edx
    xor eax, eax                    # processors that worked
    xor ebx, ebx                    # items that they took
    xor ecx, ecx
.Lworker_next:
    add ebx, [worked + ecx * 4]
    cmp dword ptr [worked + ecx * 4], 1
    sbb eax, -1                     # one more unless it is 0
    inc ecx
    cmp ecx, [processors]
    jb .Lworker_next
    must_equal "items of the queue", ebx, ITEMS
    print "smp: queue: checksum "
    print_hex edx
    print ", "
    print_decimal eax
    print " processors worked: ok\n"
    ret

take_items:
    call meet
.Ltake_next:
    mov ebx, 1
    lock xadd [queue_next], ebx
    cmp ebx, ITEMS
    jae .Lqueue_empty
    call work_on_item
    lock add [queue_sum], ebx
    inc dword ptr [worked + ebp * 4]
    pause                           # where processors share a real one, another may have its turn
    jmp .Ltake_next
.Lqueue_empty:
    ret

# EBX = the result of item EBX. Changes ECX.
work_on_item:
    mov ecx, 100
.Lwork_next:
    imul ebx, ebx, 1664525
    add ebx, 1013904223
    dec ecx
    jnz .Lwork_next
    ret

# ---- 4: ipi ----------------------------------------------------------------------------------------------------------

test_ipi:
    xor ecx, ecx                    # also from 0 to itself
.Lping_processor:
    xor ebx, ebx
.Lping_next:
    inc ebx
    mov esi, [pongs]
    inc esi
    mov eax, [id_of + ecx * 4]
    send ASSERT | PING, eax
    wait_for ecx, "ping", je, cmp [pongs], esi
    must_equal "pings that came", dword ptr [pings + ecx * 4], ebx
    cmp ebx, PINGS
    jb .Lping_next
    inc ecx
    cmp ecx, [processors]
    jb .Lping_processor

    send TO_ALL | ASSERT | BROADCAST
    wait_for_all "broadcast to all", broadcasts, 1, 0
    send TO_OTHERS | ASSERT | BROADCAST
    wait_for_all "broadcast to all others", broadcasts, 2, 1
    must_equal "broadcasts that came to their sender", dword ptr [broadcasts], 1
    send TO_SELF | ASSERT | BROADCAST
    wait_for_all "IPI to itself", broadcasts, 2, 0

    # To the last two of those with a logical ID, or to the only one.
    mov ecx, [processors]
    cmp ecx, 8
    jb .Lfew
    mov ecx, 8
.Lfew:
    mov ebx, 1
    shl ebx, cl
    dec ebx                         # a bit for each logical ID
    mov esi, ebx
    shr esi, 2
    xor esi, ebx                    # the highest two
    send LOGICAL | ASSERT | GROUP, esi
    xor ecx, ecx
.Lgroup_next:
    bt esi, ecx
    jnc .Lnot_in_group
    wait_for ecx, "IPI to a logical destination", je, cmp dword ptr [groups + ecx * 4], 1
.Lnot_in_group:
    inc ecx
    cmp ecx, 8
    jb .Lgroup_next
    send LOGICAL | LOWEST_PRIORITY | ASSERT | LOWEST, ebx
    wait_for 0, "IPI with lowest priority, by any processor", jne, call count_lowest

    mov eax, offset take_nmi
    call begin_job
    xor ecx, ecx
.Lnmi_next:
    mov eax, [id_of + ecx * 4]
    send ASSERT | NMI, eax
    wait_for ecx, "NMI", je, cmp dword ptr [nmis + ecx * 4], 1
    inc ecx
    cmp ecx, [processors]
    jb .Lnmi_next
    call end_job

    mov eax, offset halt_once
    call begin_job
    xor ecx, ecx
    jmp .Lhalt_self
.Lhalt_next:
    wait_for ecx, "about to halt", jne, cmp dword ptr [halts + ecx * 4], 0
    mov eax, [id_of + ecx * 4]
    send ASSERT | WAKE, eax
    wait_for ecx, "woken from HLT", je, cmp dword ptr [halts + ecx * 4], 2
    jmp .Lhalted
.Lhalt_self:
    cli
    send TO_SELF | ASSERT | WAKE
    xor ebp, ebp
    call halt_once
.Lhalted:
    inc ecx
    cmp ecx, [processors]
    jb .Lhalt_next
    call end_job

    # Nothing came twice, or to others than it was meant for.
    xor ecx, ecx
    xor eax, eax
.Lgroups_next:
    add eax, [groups + ecx * 4]
    bt esi, ecx
    sbb eax, 0
    must_equal "IPIs to a logical destination that came to others", eax, 0
    inc ecx
    cmp ecx, [processors]
    jb .Lgroups_next
    call count_lowest
    must_equal "processors that took the IPI with lowest priority", eax, 1
    print "smp: ipi: fixed, broadcast, logical, lowest priority, NMI, and out of HLT: ok\n"
    ret

# EAX = how often LOWEST came, and flags of it.
count_lowest:
    push ecx
    xor eax, eax
    mov ecx, MOST
.Llowest_next:
    add eax, [lowest + ecx * 4 - 4]
    dec ecx
    jnz .Llowest_next
    pop ecx
    test eax, eax
    ret

take_nmi:
    wait_for 0, "NMI", jne, cmp dword ptr [nmis + ebp * 4], 0
    ret

# HLT ends with an interrupt that comes behind the STI, or already waits.
halt_once:
    cli
    mov dword ptr [halts + ebp * 4], 1
    sti
    hlt
    mov dword ptr [halts + ebp * 4], 2
    ret

# ---- 5: tlb ----------------------------------------------------------------------------------------------------------

test_tlb:
    call begin_steps
    mov dword ptr [HIGH_TABLE + ((WINDOW - HIGH) >> 12) * 4], FRAME_A | RW
    mov edi, FRAME_A                # the frame that is shown
    mov ebx, 0x1000                 # its contents
    mov [edi], ebx
    mov eax, offset read_window
    call do_step
    call all_see
.Lremap_next:
    call remap
    call shoot_down
    mov eax, FRAME_A ^ FRAME_B      # the frame that was shown is free for anything
    xor eax, edi
    mov dword ptr [eax], 0xDEAD
    mov eax, offset read_window
    call do_step
    call all_see
    cmp ebx, 0x1000 + REMAPPINGS
    jb .Lremap_next
    print "smp: tlb: page remapped "
    print_decimal REMAPPINGS
    print " times, all told, all saw it: ok\n"
    cmp dword ptr [forget], 2
    je end_steps
    mov esi, ebx                    # what is stale in a moment
    call remap
    cmp dword ptr [processors], 1   # one alone forgets it itself
    je .Lforgotten
    invlpg [WINDOW]
.Lforgotten:
    mov eax, offset read_window
    call do_step
    call count_seen
    mov edx, eax                    # processors that see the new page
    xchg ebx, esi
    call count_seen
    xchg ebx, esi
    add edx, eax
    must_equal "processors that see the old page or the new one", edx, dword ptr [processors]
    cmp dword ptr [forget], 1
    jne .Lstale_counted
    mov edx, [processors]
    cmp edx, 2
    cmc
    sbb edx, 0                      # all but the one that was told
    must_equal "stale translations after a forgotten shootdown", eax, edx
.Lstale_counted:
    print "smp: tlb: page remapped, nobody told: stale on "
    print_decimal eax
    print "\n"
    call shoot_down
    mov eax, offset read_window
    call do_step
    call all_see
    jmp end_steps

read_window:
    mov eax, [WINDOW]
    mov [seen + ebp * 4], eax
    ret

# Show the other frame, EDI, with the next contents, EBX. Changes EAX.
remap:
    xor edi, FRAME_A ^ FRAME_B
    inc ebx
    mov [edi], ebx
    mov eax, edi
    or eax, RW
    mov [HIGH_TABLE + ((WINDOW - HIGH) >> 12) * 4], eax
    ret

# Tell all processors to forget WINDOW's translation, and wait until they have. Changes EAX, ECX, EDX.
shoot_down:
    invlpg [WINDOW]
    inc dword ptr [shootdowns]      # this one's own
    send TO_OTHERS | ASSERT | SHOOTDOWN
    mov edx, [shootdowns]
    wait_for_all "TLB shootdown", shootdowns, edx, 1
    ret

# `seen` must be EBX on all processors. Changes EAX, ECX.
all_see:
    call count_seen
    must_equal "processors that see what is there now", eax, dword ptr [processors]
    ret

# ---- 6: code ---------------------------------------------------------------------------------------------------------

test_code:
    mov eax, offset modify_own
    call do_job
    mov ebx, VERSIONS
    call all_see

    mov byte ptr [SHARED], 0xB8     # MOV EAX, number; RET
    mov byte ptr [SHARED + 5], 0xC3
    mov ebx, 0x1000
    call begin_steps
.Lversion_next:
    inc ebx
    mov [SHARED + 1], ebx
    push ebx
    mov eax, offset call_shared
    call do_step
    pop ebx
    call all_see
    cmp ebx, 0x1000 + VERSIONS
    jb .Lversion_next

    mov [version], ebx
    mov eax, offset count_beside
    call do_step
    call end_steps
    mov ebx, [rounds]
    call all_see
    xor ecx, ecx
.Lbeside_next:
    must_equal "counter next to code", dword ptr [SHARED + 0x800 + ecx * 4], ebx
    inc ecx
    cmp ecx, [processors]
    jb .Lbeside_next
    print "smp: code: self-modifying, cross-modifying, and data beside it: ok\n"
    ret

# A function in a page of its own that changes the instruction behind the one that runs. `seen` = how often it was right.
modify_own:
    mov edi, ebp
    shl edi, 12
    add edi, OWN_CODE
    mov dword ptr [edi], 0xB8044789 # MOV [EDI + 4], EAX; MOV EAX, number, which is at EDI + 4
    mov byte ptr [edi + 8], 0xC3    # RET
    xor ebx, ebx
    mov ecx, VERSIONS
.Lmodify_next:
    lea esi, [ecx + 0x2000]
    mov eax, esi
    call edi
    cmp eax, esi
    jne .Lmodify_wrong
    inc ebx
.Lmodify_wrong:
    dec ecx
    jnz .Lmodify_next
    mov [seen + ebp * 4], ebx
    ret

# Another processor has changed the function: CPUID serialises, so that what was fetched ahead is dropped.
call_shared:
    xor eax, eax
    cpuid
    mov eax, SHARED
    call eax
    mov [seen + ebp * 4], eax
    ret

# Stores to the page of a function between its calls. `seen` = how often it was right.
count_beside:
    mov edi, SHARED
    xor ebx, ebx
    mov ecx, [rounds]
.Lbeside_again:
    dec ecx
    js .Lbeside_done
    inc dword ptr [edi + 0x800 + ebp * 4]
    call edi
    cmp eax, [version]
    jne .Lbeside_again
    inc ebx
    jmp .Lbeside_again
.Lbeside_done:
    mov [seen + ebp * 4], ebx
    ret

# ---- data ------------------------------------------------------------------------------------------------------------

.balign 4
rounds: .long 0
forget: .long 0
only_part: .long 0
came_up: .long 1                    # that there are
apic_gpa: .long 0
slept: .long 0
spin_lock: .long 0                  # its holder's number + 1
ticket_next: .long 0
ticket_served: .long 0
ticket_holder: .long 0
spin_counter: .long 0
ticket_counter: .long 0
inc_counter: .long 0
cmpxchg_counter: .long 0
queue_next: .long 0
queue_sum: .long 0
version: .long 0                    # what the shared function returns

# A number for each processor
ready: .space 4 * MOST              # 1: it has started
worked: .space 4 * MOST             # items taken
pings: .space 4 * MOST              # interrupts that came
pongs: .space 4 * MOST
broadcasts: .space 4 * MOST
groups: .space 4 * MOST
lowest: .space 4 * MOST
nmis: .space 4 * MOST
shootdowns: .space 4 * MOST
halts: .space 4 * MOST              # 1: about to halt, 2: woken

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
