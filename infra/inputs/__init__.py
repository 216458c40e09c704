"""What a run starts from: its text, its vocabulary and its checkpoint, found where they are."""
