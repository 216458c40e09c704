"""The stack file: its keys, how it is read, how its mistakes are explained, what of it is secret."""
