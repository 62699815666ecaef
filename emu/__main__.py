"""``python -m emu`` is the command ``emu``."""

import sys

from emu.cli import main

sys.exit(main())
