"""Dynamic Memory Mapping: the only owner of machine frames and of the mapping from gfn to mfn."""
