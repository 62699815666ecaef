# A boot sector that loads the batch guest from the disk behind it to LOAD, and enters it as a multiboot loader does:
# for Bochs, which starts only disks. BLOCKS is the number of 32 KiB blocks, ENTRY the guest's first instruction.

.code16
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7C00
    cld
    mov bp, BLOCKS
block:
    mov si, offset packet
    mov ah, 0x42                    # extended read of 64 sectors to 1000:0000
    mov dl, 0x80
    int 0x13
    jc failed
    mov si, offset moves
    mov cx, 0x4000
    mov ah, 0x87                    # block move to extended memory
    int 0x15
    jc failed
    add dword ptr [sector], 64
    add word ptr [target], 0x8000
    adc byte ptr [target + 2], 0
    dec bp
    jnz block
    cli
    lgdt [gdt_pointer]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    ljmp 8:protected
failed:
    hlt

.code32
protected:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, ENTRY
    jmp eax

.balign 4
packet:
    .word 16, 64
    .word 0, 0x1000
sector:
    .long 1, 0
moves:
    .quad 0, 0
    .long 0x0000FFFF, 0x00009301    # from 0x10000
    .word 0xFFFF
target:
    .long 0x93000000 + LOAD
    .word 0
    .quad 0, 0
gdt:
    .quad 0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
gdt_pointer:
    .word 23
    .long gdt
