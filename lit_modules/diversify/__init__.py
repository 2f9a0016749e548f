"""Policy optimisation."""
