"""Training of memory models."""
