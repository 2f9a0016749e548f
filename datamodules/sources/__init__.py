"""Rows from embedded data, local files and the hub."""
