"""Measures what a model forgets while it learns."""
