"""The child of :mod:`emu.asm.keystone_process`: Keystone, reading requests and writing answers.

It is started as a script, with the directory of Keystone's package as its argument, and imports nothing of emu's.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys

_REQUEST = struct.Struct("<QQd")  # as in keystone_process.py
_ANSWER = struct.Struct("<BQ")
_MEMORY = 2 << 30  # bytes of address space


def main() -> None:
    """Answer until there are no requests."""
    sys.path.append(sys.argv[1])
    from keystone import KS_ARCH_X86, KS_MODE_64, Ks, KsError

    for limit, most in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        resource.setrlimit(limit, (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent's, who ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what Keystone prints
    requests = sys.stdin.buffer
    while len(header := requests.read(_REQUEST.size)) == _REQUEST.size:
        size, load, seconds = _REQUEST.unpack(header)
        text = requests.read(size).decode()
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends the process, within C code too
        try:
            # no symbol resolver is set: with one, Keystone reads every number without a prefix as hexadecimal
            output, _ = Ks(KS_ARCH_X86, KS_MODE_64).asm(text, load, as_bytes=True)
            refused, answer = 0, output or b""
        except KsError as error:
            refused, answer = 1, str(error).encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(_ANSWER.pack(refused, len(answer)) + answer)
        answers.flush()


main()
