"""Rules that every stack must keep."""
