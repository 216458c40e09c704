"""The rules that every stack must keep."""
