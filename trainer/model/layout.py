"""Where tensors lie in the flat vector of all parameters, which is what members send, cut and checkpoint."""

ALIGNMENT = 64  # elements: where each tensor starts
# Name, start and elements of each tensor, and whether weight decay is for it.
Layout = list[tuple[str, int, int, bool]]
Ranges = list[tuple[int, int]]  # start and stop, ascending


def padded(elements: int) -> int:
    """Up to where the next tensor may start."""
    return -(-elements // ALIGNMENT) * ALIGNMENT


def total(layout: Layout) -> int:
    """Elements of the flat vector, padding included."""
    _, start, size, _ = layout[-1]
    return start + padded(size)
