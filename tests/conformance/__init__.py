"""Suites that nobody here wrote, run on emu and on QEMU; docs/conformance.md tells where they come from."""
