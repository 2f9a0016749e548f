"""Diversity filters and experience replay for molecules."""
