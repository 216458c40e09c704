"""Describe where each tensor is in the flat vector of all parameters."""

ALIGNMENT = 64  # each tensor starts at a multiple of this many elements
# Each tensor's name, its start and size in elements, and whether it gets weight decay.
Layout = list[tuple[str, int, int, bool]]
Ranges = list[tuple[int, int]]  # start and stop, ascending


def padded(elements: int) -> int:
    """Return the number of elements that a tensor occupies, padding included."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


def total(layout: Layout) -> int:
    """Return the number of elements of the flat vector, padding included."""
    _, start, size, _ = layout[-1]
    return start + padded(size)
