"""Proof that every memory structure agrees with every other."""
