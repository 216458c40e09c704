"""Stack files from AI Platform and Vertex job files."""
