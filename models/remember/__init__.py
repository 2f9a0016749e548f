"""Memory layers in transformers models."""
