"""Callbacks of policy optimisation: figures, and a stop on collapse."""
