"""Metrics of sets of molecules, one family a file."""
