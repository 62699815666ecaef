"""A differential fuzzer of instructions: emu, in both paging architectures, against QEMU and Bochs."""
