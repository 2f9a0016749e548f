"""Data for memory models."""
