"""emu: a full-system x86 emulator that virtualises memory by the Dynamic Memory Mapping model."""
