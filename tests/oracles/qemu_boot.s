# A boot sector that gives QEMU's PC the boot protocol of our flat images (firmware/include/platform.inc).
#
# On the disk: this sector, one sector for gpa 0x7000 (RAM size and command line), then the image for gpa 0x8000.
# IMAGE_SECTORS is defined by the caller. Loaded by the BIOS at 0x7C00, with the boot drive's number in DL.

.code16
start:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7C00
    cld
    sti
    mov si, offset boot_info_packet
    mov ah, 0x42                    # extended read
    int 0x13
    jc failed
    mov si, offset image_packet
    mov ah, 0x42
    int 0x13
    jc failed
    cli
    in al, 0x92                     # the fast A20 gate, in case that the BIOS left it closed
    or al, 2
    and al, 0xFE                    # bit 0 would reset
    out 0x92, al
    ljmp 0:0x8000

failed:
    mov al, 0x7F                    # exit status 255: no guest does that
    out 0xF4, al
    hlt

.balign 4
boot_info_packet:
    .word 16, 1                     # size of this packet, sectors
    .word 0x7000, 0                 # to offset, segment
    .quad 1                         # from sector
image_packet:
    .word 16, IMAGE_SECTORS
    .word 0x8000, 0
    .quad 2
