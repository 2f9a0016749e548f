"""Probes: what a language model knows, measured on fixed rows."""
