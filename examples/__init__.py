"""Examples of training: the data of three of the stack files at the top level."""
