"""``python -m tests.torture guests|files|faults|kills|soak …``: what each does says its ``--help``."""

from __future__ import annotations

import sys
from importlib import import_module

PARTS = ("guests", "files", "faults", "kills", "soak")


def main(arguments: list[str]) -> int:
    """Run one part with the rest of the arguments; its status."""
    if not arguments or arguments[0] not in PARTS:
        print(f"usage: python -m tests.torture {'|'.join(PARTS)} [options]", file=sys.stderr)
        return 2
    status: int = import_module(f"tests.torture.{arguments[0]}").main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
