"""Examples of what people train for: the data that three of the stack files at the top level train on."""
