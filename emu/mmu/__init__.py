"""Paging: turns a gva into a machine address, by shadow tables or by a nested walk."""
