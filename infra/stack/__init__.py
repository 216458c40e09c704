"""Read stack files: their keys, how mistakes are explained, and which values are secret."""
