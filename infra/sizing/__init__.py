"""The size of a run: parameters, FLOPs and memory, and the speed of its machines."""
