"""Find what a run starts from: its text, its vocabulary and its checkpoint."""
