"""Callbacks of a molecule search: a report, figures, and its end."""
