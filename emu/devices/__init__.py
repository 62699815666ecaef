"""The chips of a PC, one a file. None of them knows the machine, the CPU or the port it is registered at."""
