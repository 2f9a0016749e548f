"""Measurement of what a model forgets while it learns."""
