"""Metrics of memory models: multiple choice, retention, use of slots."""
