"""Exit codes of the computing process; any other than these and 0 is a failure of the program."""

INPUT, LEFT, AWAY = 2, 75, 74
