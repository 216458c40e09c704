"""One process that computes: it trains or serves parameters."""
