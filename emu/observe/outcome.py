"""How a run of a VM ended: in one word, as an exit status, and for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

STATUS_SUCCESS = 0
STATUS_BAD_INPUT = 2
STATUS_RESET = 122
STATUS_LIMIT = 124  # as timeout(1)
STATUS_FAULT = 125  # emu itself failed
STATUS_CRASH = 134  # as a process killed by SIGABRT, seen from a shell


class Ending(Enum):
    """How a run ended."""

    UNTIL = "until"  # the console printed the text that was waited for
    EXIT = "exit"  # the guest wrote to the exit port
    CRASH = "crash"  # triple fault
    HALTED = "halted"  # HLT, and nothing can ever wake the guest
    MAX_TIME = "max-time"  # the limit in virtual time was reached
    TIMEOUT = "timeout"  # the limit in wall time was reached
    OUT_OF_FRAMES = "out-of-frames"  # a page needed a frame, and the pool had none
    STORE_FULL = "store-full"  # a page had to be evicted, and its contents fit nowhere
    STORE_FAILED = "store-failed"  # the contents of an evicted page cannot be written or are damaged
    POWER_OFF = "power-off"  # the guest switched the machine off
    RESET = "reset"  # the guest reset the machine, and was not to start again
    STOPPED = "stopped"  # somebody called VirtualMachine.request_stop


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        ending: in one word.
        status: the exit status that ``emu run`` has for it.
        sentence: for people, without a full stop.
    """

    ending: Ending
    status: int
    sentence: str
