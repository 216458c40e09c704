"""The program that declares a run: its stack files, and the resources of each platform."""
