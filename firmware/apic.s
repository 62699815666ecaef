# apic: the local APICs and the I/O APIC, case by case, one line each.
#
# Judged by the manuals: Intel SDM volume 3A, chapter 11 (local APIC, IPIs, x2APIC) and 9.4 (INIT and SIPI), and the data
# sheet of the 82093AA I/O APIC (290566). A case prints its name and "ok", what was wrong, or why it was skipped; the
# value at the end is the number of cases that were wrong. Interrupts come from other processors, the timer of the local
# APIC, PIT, RTC, HPET and serial port; the serial port's is a line that the guest can drive: it is up while the
# interrupt of the empty transmitter is enabled.
#
# Parameters on the command line: patience=N, how long to wait for an interrupt, in 2^20 ticks of the TSC.
#
# QEMU 7.2 does some of this differently, and fails the cases named in brackets:
#   an IPI with a vector below 16 is delivered (illegal vector)
#   a write to ESR does nothing, so that errors are never forgotten (illegal register)
#   while the APIC is disabled by software, the LVT is not masked (software disable)
#   in the cluster model FF is cluster 15, not everybody (IPI: logical, clusters)
#   lowest priority goes to the first processor that is meant, whatever its TPR is (lowest priority: TPR)
# It has neither x2APIC nor the TSC-deadline timer without hardware virtualisation. An NMI ends its wait for a start-up
# message; the manual does not say what comes of it, and no case sends one.

.code16
    jmp start

.include "platform.inc"
.include "protected.inc"
.include "console.inc"
.equ OWN_EXCEPTIONS, 1
.include "interrupts.inc"
.include "cmdline.inc"

# Physical memory. The processors' numbers are their APIC IDs.
.equ DIRECTORY, 0x20000
.equ STACKS, 0x30000                # a page for each processor
.equ COUNTS, 0x40000                # interrupts that came: 256 numbers for each processor
.equ COUNTS_OF_ONE, 1024            # bytes
.equ ORDER, 0x44000                 # vectors that came to processor 0, a byte each
.equ SIPI_PAGE, 0x70                # where a processor starts the second time
.equ APIC, 0xFEE00000
.equ DEVICES, 0xFEC00000            # 4 MiB with the registers of the APICs and the HPET
.equ PTE_UNCACHED, 3 << 3           # PCD, PWT
.equ CR0_CACHE_OFF, 3 << 29         # CD and NW, which INIT sets

# Interrupt vectors; the cases have those from 0x50 on
.equ NMI_VECTOR, 2
.equ ILLEGAL, 15                    # no APIC may deliver it
.equ WAKE, 0x40
.equ SPURIOUS, 0xFF

.equ FW_CFG_KEY, 0x510              # QEMU's configuration device: write a key, read bytes
.equ FW_CFG_DATA, 0x511
.equ FW_CFG_CPUS, 5                 # number of processors, 16 bits

.equ OWN_MISMATCH, 1
.include "apic.inc"
.include "processors.inc"
.include "apic_case.inc"
.include "apic_priority.inc"
.include "apic_timer.inc"
.include "apic_ipi.inc"
.include "apic_start.inc"
.include "apic_x2apic.inc"
.include "apic_io.inc"
.include "apic_timers.inc"

# All processors come here: the first at 0000:8000, the others at 0800:0000 with a start-up IPI for page 8.
.code16
start:
    enter_protected_mode gdt_pointer
    mov eax, 1
    cpuid
    shr ebx, 24                     # the initial APIC ID
    mov ebp, ebx
    cmp ebp, MOST
    jae stop
    mov esp, ebp
    shl esp, 12
    add esp, STACKS + 0xFF0
    mov ecx, MSR_APIC_BASE
    rdmsr
    test eax, BASE_FIRST
    jz another_processor

    call read_parameters
    call build_tables
    call install_handlers
    call start_processor
    call end_case
    case "start", start_others
    case "ID and version", id_and_version
    case "one processor is the first", first_processor

    case "task priority", task_priority
    case "order of pending interrupts", pending_order
    case "nested interrupts", nested_interrupts
    case "edge twice", edge_twice
    case "EOI with nothing in service", idle_eoi
    case "NMI", nmi_to_self
    case "illegal vector", illegal_vector
    case "illegal register", illegal_register
    case "spurious interrupt", spurious_interrupt
    case "software disable", software_disable

    case "timer: one-shot", timer_one_shot
    case "timer: periodic", timer_periodic
    case "timer: masked", timer_masked
    case "timer: divide", timer_divide
    case "timer: TSC-deadline", timer_deadline

    case "IPI: physical destination", ipi_physical
    case "IPI: nobody's ID", ipi_to_nobody
    case "IPI: shorthands and broadcast", ipi_broadcast
    case "IPI: logical, flat", ipi_flat
    case "IPI: logical, clusters", ipi_cluster
    case "lowest priority: one takes it", lowest_takes_one
    case "lowest priority: TPR", lowest_by_tpr
    case "NMI to others", nmi_to_others
    case "INIT and SIPI", init_and_sipi
    case "INIT de-assertion, SIPI while running", init_without_effect
    case "x2APIC: registers", x2apic_registers
    case "x2APIC: IPIs", x2apic_ipis
    case "x2APIC: changes of mode", x2apic_modes

    case "I/O APIC: ID and version", io_id
    case "I/O APIC: entries", io_entries
    case "I/O APIC: edge", io_edge
    case "I/O APIC: edge to another processor", io_edge_to_other
    case "I/O APIC: logical destination", io_logical
    case "I/O APIC: lowest priority", io_lowest
    case "I/O APIC: NMI", io_nmi
    case "I/O APIC: masked edge", io_masked_edge
    case "I/O APIC: level", io_level
    case "I/O APIC: level again after EOI", io_level_again
    case "I/O APIC: masked level", io_masked_level
    case "I/O APIC: level to another processor", io_level_to_other
    case "I/O APIC: vector change while pending", io_vector_change
    case "I/O APIC: EOI register", io_eoi_register
    case "I/O APIC: level to edge and back", io_trigger_change
    case "PIT", pit_interrupts
    case "PIT: out of HLT", pit_halt
    case "RTC", rtc_interrupts
    case "HPET", hpet_interrupts
    print "apic: "
    print_decimal [processors]
    print " processors, "
    print_decimal [failures]
    print " cases wrong\n"
    mov eax, [failures]
    jmp exit

# Its number is in EBP.
another_processor:
    mov eax, [APIC_SVR]             # what INIT leaves
    mov [svr_at_start + ebp * 4], eax
    mov eax, [APIC_LVT_LINT0]
    mov [lint0_at_start + ebp * 4], eax
    mov eax, [APIC_TPR]
    mov [tpr_at_start + ebp * 4], eax
    call start_processor
    mov eax, [job_number]           # an older job is none for it
    mov [done + ebp * 4], eax
    lock inc dword ptr [starts + ebp * 4]
    jmp idle

read_parameters:
    parameter "patience", 1024
    mov [patience], eax
    mov dx, FW_CFG_KEY
    mov eax, FW_CFG_CPUS
    out dx, ax
    mov dx, FW_CFG_DATA
    in al, dx
    mov ah, al
    in al, dx
    xchg al, ah
    movzx eax, ax
    mov [processors], eax
    ret

# The first 4 MiB and the device registers, to themselves.
build_tables:
    mov edi, DIRECTORY
    xor eax, eax
    mov ecx, 1024
    rep stosd
    mov dword ptr [DIRECTORY], PTE_PS | PTE_W | PTE_P
    mov dword ptr [DIRECTORY + (DEVICES >> 22) * 4], DEVICES | PTE_PS | PTE_UNCACHED | PTE_W | PTE_P
    ret

install_handlers:
    call install_idt
    mov edx, offset stubs           # of the vectors from 0x20 on
    mov edi, IDT + 0x20 * 8
.Lgate_next:
    mov [edi], dx
    mov word ptr [edi + 2], CODE
    mov word ptr [edi + 4], GATE_INTERRUPT << 8
    add edi, 8
    add edx, 16
    cmp edi, IDT + 256 * 8
    jb .Lgate_next
    set_gate NMI_VECTOR, nmi_comes
    set_gate ILLEGAL, illegal_comes
    mov al, 0xFF                    # no interrupts of the two 8259s
    out 0x21, al
    out 0xA1, al
    ret

# Paging, IDT and local APIC of the processor with number EBP. Changes EAX, ECX.
start_processor:
    mov eax, cr4
    or eax, CR4_PSE
    mov cr4, eax
    mov eax, DIRECTORY
    mov cr3, eax
    mov eax, cr0
    and eax, -1 - CR0_CACHE_OFF
    or eax, CR0_PG | CR0_WP
    mov cr0, eax
    lidt [idt_pointer]
# The local APIC as the cases want it. Changes EAX, ECX.
set_up_apic:
    mov [id_of + ebp * 4], ebp
    mov dword ptr [APIC_SVR], SVR_ENABLE | SPURIOUS
    mov dword ptr [APIC_LVT_TIMER], LVT_MASKED
    mov dword ptr [APIC_LVT_LINT0], LVT_MASKED
    mov dword ptr [APIC_LVT_LINT1], LVT_MASKED
    mov dword ptr [APIC_LVT_ERROR], LVT_MASKED
    mov dword ptr [APIC_TPR], 0
flat_model:
    mov dword ptr [APIC_DFR], 0xFFFFFFFF
    mov eax, 1 << 24
    mov ecx, ebp
    shl eax, cl                     # the numbers from 8 on have no logical ID
    mov [APIC_LDR], eax
    ret

# ---- interrupts ------------------------------------------------------------------------------------------------------

# Each is counted, and for processor 0 its vector noted; then the case's hook is called, and the EOI written.
interrupt:                          # the vector is on the stack
    pushad
    my_number ebp
    mov eax, [esp + 32]
    mov edx, ebp
    shl edx, 10
    inc dword ptr [COUNTS + edx + eax * 4]
    test ebp, ebp
    jnz .Lnoted
    mov ecx, [noted]
    mov [ORDER + ecx], al
    inc ecx
    movzx ecx, cl
    mov [noted], ecx
    cmp dword ptr [hook], 0
    je .Lnoted
    call [hook]
.Lnoted:
    mov eax, [esp + 32]
    cmp eax, NMI_VECTOR             # these two have no EOI
    je .Lended
    cmp eax, SPURIOUS
    je .Lended
    cmp dword ptr [in_x2apic + ebp * 4], 0
    jne .Lx2apic_eoi
    mov dword ptr [APIC_EOI], 0
    jmp .Lended
.Lx2apic_eoi:
    xor eax, eax
    xor edx, edx
    mov ecx, MSR_X2APIC + 0x0B
    wrmsr
.Lended:
    popad
    add esp, 4
    iretd

nmi_comes:
    push NMI_VECTOR
    jmp interrupt

illegal_comes:
    push ILLEGAL
    jmp interrupt

# An exception; on the stack are its vector, error code and EIP. Only a #GP of processor 0 may be expected.
exception:
    cmp dword ptr [esp], 13
    jne unexpected_exception
    cmp dword ptr [after_gp], 0
    je unexpected_exception
    add esp, 8
    push eax
    mov eax, [after_gp]
    mov [esp + 4], eax
    mov dword ptr [after_gp], 0
    pop eax
    iretd

.balign 16
.equ vector, 0x20
stubs:
.rept 224
    push vector
    jmp interrupt
    .balign 16
    .equ vector, vector + 1
.endr

# ---- data ------------------------------------------------------------------------------------------------------------

.balign 4
noted: .long 0                      # vectors that came to processor 0
hook: .long 0                       # a routine that is called in its handlers, with the vector in EAX
after_gp: .long 0                   # where it goes on after a #GP

# A number for each processor
starts: .space 4 * MOST             # how often it has started
svr_at_start: .space 4 * MOST
lint0_at_start: .space 4 * MOST
tpr_at_start: .space 4 * MOST
in_x2apic: .space 4 * MOST          # 1: its APIC is in x2APIC mode

.balign 8
gdt:
    gdt_flat
gdt_end:
gdt_pointer:
    gdt_pointer_to gdt, gdt_end
