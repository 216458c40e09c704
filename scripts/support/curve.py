"""Draw curves in a terminal with braille characters, each of which has two by four dots."""

from collections.abc import Iterable, Sequence

from rich.text import Text

XY = tuple[float, float]
# The bit of each of the 2 x 4 dots of a braille character, by (column, row from above).
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
MARKS = {"validation": "●"}


class Canvas:
    """A grid of characters that shows a rectangle of data. Points outside of it are not drawn."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.width, self.height, self.x, self.y = width, height, x, y
        self.dots = [[0] * width for _ in range(height)]
        self.marks: dict[tuple[int, int], tuple[str, str]] = {}  # (row, column): character, style

    def _place(self, point: XY) -> tuple[float, float]:
        """Return (column, row from above) of a point, in dots."""
        (x0, x1), (y0, y1) = self.x, self.y
        column = (point[0] - x0) / ((x1 - x0) or 1) * (self.width * 2 - 1)
        row = (y1 - point[1]) / ((y1 - y0) or 1) * (self.height * 4 - 1)
        return column, row

    def _dot(self, column: int, row: int) -> None:
        if 0 <= column < self.width * 2 and 0 <= row < self.height * 4:
            self.dots[row // 4][column // 2] |= DOTS[column % 2][row % 4]

    def line(self, points: Sequence[XY]) -> None:
        """Draw a line through the points, which are in order of x.

        Points in the same column of dots are replaced by their mean.
        """
        columns: dict[int, list[float]] = {}
        for point in points:
            column, row = self._place(point)
            columns.setdefault(round(column), []).append(row)
        before: tuple[int, int] | None = None
        for column, rows in columns.items():
            row = round(sum(rows) / len(rows))
            if before is None:
                self._dot(column, row)
            else:
                across, down = column - before[0], row - before[1]
                length = max(abs(across), abs(down), 1)
                for i in range(1, length + 1):
                    self._dot(before[0] + round(across * i / length), before[1] + round(down * i / length))
            before = column, row

    def mark(self, points: Iterable[XY], character: str, style: str) -> None:
        """Draw a character at each point, over the lines."""
        for point in points:
            column, row = self._place(point)
            if 0 <= row < self.height * 4 and 0 <= column < self.width * 2:
                self.marks[int(row) // 4, int(column) // 2] = character, style

    def row(self, row: int, style: str) -> Text:
        """Return a row of characters, whose lines have the given style."""
        text = Text(no_wrap=True)
        for column, bits in enumerate(self.dots[row]):
            character, own_style = self.marks.get((row, column), (chr(0x2800 + bits) if bits else " ", style))
            text.append(character, own_style)
        text.rstrip()
        return text


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, or two numbers around them if they are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def sparkline(points: Sequence[XY], last_x: float, width: int, height: int = 2) -> list[Text]:
    """Return the rows of a curve over 0..last_x, with its highest and lowest value at the left."""
    low, high = bounds([y for _, y in points])
    canvas = Canvas(width - 6, height, (0, last_x), (low, high))
    canvas.line(points)
    labels = [f"{high:5.2f} ", *["      "] * (height - 2), f"{low:5.2f} "]
    return [Text(labels[i], "dim") + canvas.row(i, "cyan") for i in range(height)]


def loss_curve(
    train: Sequence[XY], validation: Sequence[XY], last_x: float, width: int, height: int, unigram: float | None
) -> list[Text]:
    """Return the rows of a plot with axes over 0..last_x steps: train loss as a line, validation loss as points.

    Args:
        train: (step, loss in nats per token).
        validation: the same for the validation loss.
        last_x: the last step of the axis.
        width: characters of a row.
        height: rows of the plot without its axis and legend.
        unigram: the unigram entropy, drawn as a dashed line, or None.
    """
    # The curves.
    values = [y for _, y in (*train, *validation)] + ([unigram] if unigram is not None else [])
    low, high = bounds(values)
    canvas = Canvas(width - 8, height, (0, last_x), (low, high))
    canvas.line(train)
    if unigram is not None:
        # Draw the dashed line only in empty characters, so that it does not hide the curve.
        row = int((high - unigram) / (high - low) * (height * 4 - 1)) // 4
        for column in range(canvas.width):
            if not canvas.dots[row][column]:
                canvas.marks[row, column] = "╌", "yellow"
    canvas.mark(validation, MARKS["validation"], "magenta")
    # The axes.
    lines = [Text("   loss in nats a token", "dim")]
    for i in range(height):
        y = high - (high - low) * i / (height - 1)
        label = f"{y:6.2f} ┤" if i % 3 == 0 or i == height - 1 else "       │"
        lines.append(Text(label, "dim") + canvas.row(i, "cyan"))
    lines.append(Text("       └" + "─" * canvas.width, "dim"))
    end = f"{last_x:,.0f} steps"
    lines.append(Text("        0" + end.rjust(canvas.width - 1), "dim"))
    # The legend.
    legend = Text("        ") + Text("⠤⠤ train", "cyan")
    if validation:
        legend += Text("   ") + Text(f"{MARKS['validation']} validation", "magenta")
    if unigram is not None:
        legend += Text("   ") + Text(f"╌ unigram entropy {unigram:.2f}", "yellow")
    return [*lines, legend]
