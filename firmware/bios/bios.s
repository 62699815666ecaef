# The BIOS: what a PC does between reset and boot sector, and the services that boot loaders call.
#
# A CPU starts at F000:FFF0, in real mode, with nothing set up: no interrupt vectors, no interrupt controller, nothing
# known about memory and disks. The BIOS sees to all that, writes what it found into a data area that programs may read,
# loads the first sector of a disk to 0000:7C00 and jumps there. From then on it runs only when a program
# executes INT, or a device interrupts and no operating system has taken over yet.
#
#   INT 00-07  exceptions             INT 14h  serial ports              INT 70h  IRQ 8, real-time clock
#   INT 08h    IRQ 0, timer           INT 15h  memory map, A20, waits    INT 71h-77h  IRQ 9-15
#   INT 09h    IRQ 1, keyboard        INT 16h  keyboard
#   INT 0A-0F  IRQ 2-7                INT 18h  nothing to boot           tables, not code:
#   INT 10h    screen                 INT 19h  boot                      INT 1Eh  diskette parameters
#   INT 11h    equipment              INT 1Ah  time                      INT 41h  parameters of disk 0
#   INT 12h    memory size            INT 1Ch  called at each tick       INT 46h  parameters of disk 1
#   INT 13h    disks                  INT 4Ah  called at the alarm
#
# What is written to the screen also goes to the first serial port, unless a program prints there itself, and what comes
# in there counts as typed: a machine without screen and keyboard has a console all the same.
#
# The image is 64 KiB and lies at 0xF0000. The assembler counts from 0, so a label is an offset in segment F000. The
# code is in the lower half; what has to be at a certain place is in the upper half, at the end of this file.

.code16

.include "pc.inc"
.include "interrupts.inc"
.include "clock.inc"
.include "serial.inc"
.include "video.inc"
.include "vbe.inc"
.include "pixels.inc"
.include "teletype.inc"
.include "keymap.inc"
.include "keyboard.inc"
.include "keys.inc"
.include "ata.inc"
.include "find_disks.inc"
.include "disk.inc"
.include "floppy.inc"
.include "atapi.inc"
.include "cd.inc"
.include "memory.inc"
.include "apm.inc"
.include "system.inc"
.include "pci.inc"

# ---- from reset to boot sector ---------------------------------------------------------------------------------------

.equ SHUTDOWN_EOI_RESUME, 5         # CMOS_SHUTDOWN: go on at BDA_RESUME, after an end of interrupt
.equ SHUTDOWN_RESUME, 10            # the same without it

# The CPU comes here after each reset. A 286 could leave protected mode only by one, so programs that wanted to go on
# said so in CMOS memory; start-up code for multiple processors still does.
reset:
    cli
    cld
    read_cmos CMOS_SHUTDOWN
    mov bl, al
    xor al, al
    write_cmos CMOS_SHUTDOWN
    xor ax, ax
    mov ss, ax
    mov sp, STACK_TOP
    push BDA
    pop ds
    cmp bl, SHUTDOWN_RESUME
    je resume
    cmp bl, SHUTDOWN_EOI_RESUME
    jne power_on
    call end_of_interrupt
resume:
    push word ptr [BDA_RESUME + 2]
    push word ptr [BDA_RESUME]
    retf

power_on:
    lidt cs:[real_mode_vectors]     # a program may have jumped here
    xor ax, ax                      # a clean data area, but for the word at 0x472 that tells a warm start
    mov di, 0x400
    mov es, ax
    mov cx, 0x100 / 2
    rep stosw
    call find_memory                # first of all: FS, the extended data area
    mov byte ptr fs:[EBDA_INTERRUPTS], 1
    call set_vectors
    call start_interrupt_controllers
    call start_local_apic
    call start_timer
    call open_a20
    call start_keyboard
    call find_serial_ports
    call start_video
    call find_drives
    call find_equipment
    sti
    int 0x19
    hlt

real_mode_vectors: .word 0x3FF, 0, 0

# Fill the table of interrupt vectors: what is not in our own table leads to a handler that returns at once.
set_vectors:
    xor di, di
    mov es, di
    mov cx, 256
set_vectors_next:
    mov ax, offset ignore_interrupt
    stosw
    mov ax, ROM_SEGMENT
    stosw
    loop set_vectors_next
    mov di, 0x60 * 4                # these belong to programs, which may look whether one of them is free
    mov cx, 7 * 2
    xor ax, ax
    rep stosw
    mov si, offset vectors
set_vectors_own:
    mov di, cs:[si]                 # where
    mov ax, cs:[si + 2]             # what
    mov es:[di], ax
    add si, 4
    cmp si, offset vectors_end
    jne set_vectors_own
    mov word ptr es:[0x1F * 4], 0   # no upper half of a graphics font
    mov word ptr es:[0x1F * 4 + 2], 0
    mov ax, [BDA_EBDA]              # disk parameters are in the extended data area
    mov word ptr es:[0x41 * 4], EBDA_PARAMETERS
    mov es:[0x41 * 4 + 2], ax
    mov word ptr es:[0x46 * 4], EBDA_PARAMETERS + 16
    mov es:[0x46 * 4 + 2], ax
    ret

.macro vector number, handler
    .word (\number) * 4, \handler
.endm

vectors:
    vector 0x00, divide_error
    vector 0x06, invalid_opcode
    vector 0x08, timer_interrupt
    vector 0x09, keyboard_interrupt
    vector 0x0A, unexpected_master_interrupt
    vector 0x0B, unexpected_master_interrupt
    vector 0x0C, stack_fault
    vector 0x0D, general_protection
    vector 0x0E, floppy_interrupt
    vector 0x0F, unexpected_master_interrupt
    vector 0x10, video_service
    vector 0x11, equipment_service
    vector 0x12, memory_size_service
    vector 0x13, disk_service
    vector 0x14, serial_service
    vector 0x15, system_service
    vector 0x16, keyboard_service
    vector 0x17, printer_service
    vector 0x18, nothing_to_boot
    vector 0x19, boot
    vector 0x1A, time_service
    vector 0x1E, diskette_parameters
    vector 0x70, clock_interrupt
    vector 0x71, unexpected_slave_interrupt
    vector 0x72, unexpected_slave_interrupt
    vector 0x73, unexpected_slave_interrupt
    vector 0x74, unexpected_slave_interrupt
    vector 0x75, unexpected_slave_interrupt
    vector 0x76, disk_interrupt
    vector 0x77, unexpected_slave_interrupt
vectors_end:

# What there is, in bits, for INT 11h: 0 a floppy drive, 6-7 how many more of them, 1 a numeric coprocessor, 2 a mouse, 4-5 the first video mode,
# 9-11 the number of serial ports.
find_equipment:
    read_cmos CMOS_EQUIPMENT
    and ax, 0xC7
    or al, 2 << 4                   # 80 columns, colour
    mov bx, BDA_COM
    mov cx, 4
find_equipment_next:
    cmp word ptr [bx], 0
    je find_equipment_end
    add ah, 1 << 1
    add bx, 2
    loop find_equipment_next
find_equipment_end:
    mov [BDA_EQUIPMENT], ax
    ret

.equ BOOT_FLOPPY, 1                 # CMOS_BOOT
.equ BOOT_DISK, 2
.equ BOOT_CD, 3

# ---- INT 19h: boot ---------------------------------------------------------------------------------------------------

# Boot from what CMOS memory says. The boot sector is entered at 0000:7C00 with the drive's number in DL, interrupts on,
# and a stack that ends where it begins; other registers mean nothing.
boot:
    cli
    xor ax, ax
    mov ss, ax
    mov sp, STACK_TOP
    push BDA
    pop ds
    mov fs, [BDA_EBDA]
    in al, LOADER                   # a kernel that the machine has loaded without us
    cmp al, LOADER_PRESENT
    jne boot_by_order
    out LOADER, al
boot_wait:
    hlt
    jmp boot_wait
boot_by_order:
    read_cmos CMOS_BOOT_3
    shr al, 4
    mov bh, al
    read_cmos CMOS_BOOT
    mov bl, al
    mov fs:[EBDA_BOOT_ORDER], bx
    xor bp, bp                      # whether there was something to try
    sti
boot_next:
    mov ax, fs:[EBDA_BOOT_ORDER]
    shr word ptr fs:[EBDA_BOOT_ORDER], 4
    test ax, ax
    jz boot_failed
    and al, 0x0F
    mov dx, 0x0080                  # disk 0
    cmp al, BOOT_DISK
    je boot_disk
    cmp al, BOOT_CD
    je boot_cd
    cmp al, BOOT_FLOPPY
    jne boot_next
    cmp byte ptr fs:[EBDA_FLOPPY_TYPES], 0
    je boot_next
    xor dx, dx
    jmp boot_sector
boot_disk:
    cmp byte ptr [BDA_DISKS], 0
    je boot_next
boot_sector:                        # of drive DL
    inc bp
    xor ax, ax
    mov es, ax
    mov bx, BOOT_SECTOR
    mov ax, 0x0201                  # read one sector
    mov cx, 0x0001                  # cylinder 0, sector 1, and head 0
    int 0x13
    mov si, offset unreadable_text
    jc boot_sector_failed
    mov si, offset no_signature_text
    cmp word ptr es:[BOOT_SECTOR + 510], 0xAA55
    jne boot_sector_failed
    xor ax, ax
    mov ds, ax
    ljmp 0:BOOT_SECTOR

boot_sector_failed:
    push si
    mov si, offset floppy_text
    test dl, dl
    jz boot_sector_say
    mov si, offset cd_text
    cmp dl, CD_DRIVE
    je boot_sector_say
    mov si, offset disk_text
boot_sector_say:
    call print
    pop si
    call print
    jmp boot_next

boot_cd:
    cmp word ptr fs:[EBDA_CD_PORT], 0
    je boot_next
    inc bp
    call cd_load
    jc boot_cd_failed
    mov ax, es                      # where 16 times the segment is below 64 KiB, let CS be 0
    mov bx, ax
    and ax, 0xF000
    and bx, 0x0FFF
    shl bx, 4
    push ax
    push bx
    xor ax, ax
    mov ds, ax
    mov es, ax
    retf
boot_cd_failed:
    mov dl, CD_DRIVE
    jmp boot_sector_failed

boot_failed:
    mov si, offset no_disk_text
    test bp, bp
    jz boot_failed_say
    mov si, offset bios_text
boot_failed_say:
    call print
    int 0x18

# INT 18h, where IBM had BASIC in ROM: there is nothing to boot.
nothing_to_boot:
    mov si, offset nothing_to_boot_text
    call print
halt:
    cli
    hlt
    jmp halt

# Print the NUL-terminated string at CS:SI. Changes AX, BX, SI.
print:
    mov bx, 0x0007
print_next:
    lods al, byte ptr cs:[si]
    test al, al
    jz print_end
    mov ah, 0x0E
    int 0x10
    jmp print_next
print_end:
    ret

no_disk_text: .asciz "BIOS: there is no disk: "
bios_text: .asciz "BIOS: "
disk_text: .asciz "BIOS: the disk "
cd_text: .asciz "BIOS: the CD "
floppy_text: .asciz "BIOS: the floppy disk "
unreadable_text: .asciz "cannot be read\r\n"
no_signature_text: .asciz "has no boot sector (no 55 AA at its end)\r\n"
nothing_to_boot_text: .asciz "nothing to boot, halted\r\n"

# ---- the upper half: fixed places ------------------------------------------------------------------------------------

.equ FIXED_PART, 0x8000
.equ MEMORY_MAP, 0xF000             # filled in by who places the ROM: emu/boot/bios.py
.equ OLD_IRET, 0xFF53               # programs compare vectors with this address to see whether they are in use
.equ RESET_VECTOR, 0xFFF0

.balign FIXED_PART
.space MEMORY_MAP - FIXED_PART
memory_map_count: .word 0           # ranges
memory_map: .space OLD_IRET - MEMORY_MAP - 2 # 20 bytes each: first gpa u64, length u64, type u32
ignore_interrupt:
    iret
.space RESET_VECTOR - OLD_IRET - 1
    ljmp ROM_SEGMENT:reset
    .ascii "01/01/26"               # date of the BIOS
    .byte 0, 0xFC, 0                # a PC/AT
