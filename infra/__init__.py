"""What stands up a run: stack files, and the resources of each platform."""
