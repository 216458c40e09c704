"""The records of a run in its bucket: status, metrics, samples, scores, trials."""
