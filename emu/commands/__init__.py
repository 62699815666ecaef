"""The sub-commands of ``emu``, one module each (see :mod:`emu.cli`)."""
