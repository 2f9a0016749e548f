"""Benchmarks: one question of speed or memory per file, always against a peer or a baseline."""
