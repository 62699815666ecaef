"""The assembler for firmware/ and for guests given as source."""
