"""Guests that nobody here wrote: Debian's kernel, memtest86+.  Without a package source they are skipped."""
