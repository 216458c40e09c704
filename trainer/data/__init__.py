"""From the text to batches: tokenizer, token shards, pairs."""
