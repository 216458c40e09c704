"""Turn AI Platform and Vertex AI job files into stack files."""
