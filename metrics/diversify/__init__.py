"""Metrics of texts: diversity, novelty, coverage of modes."""
