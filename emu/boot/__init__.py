"""Boot protocols: how a guest's files become its memory and its first CPU state."""
