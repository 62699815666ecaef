"""Benchmarks: ours and a peer's, side by side in one run.  ``emu bench`` prints them."""
