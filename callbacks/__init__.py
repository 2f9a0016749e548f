"""Callbacks by panel, and the frame of a run: command line, tracking, directory."""
