"""Metrics of thoughts: disentanglement, leakage."""
