"""Loggers: MLflow, local metrics, and the version of the code."""
