"""What a guest, a file, a host and a moment can do to emu, on purpose (``python -m tests.torture``)."""
