"""Turn a text into batches: tokenizer, token shards, pairs."""
