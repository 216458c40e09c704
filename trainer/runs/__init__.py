"""Read and write what a run records in its bucket: status, metrics, samples, scores, trials."""
