"""The memory policies: each decides, and has the DMM act (:mod:`emu.dmm.policy`)."""
