"""Policies: sampling and scoring with language models."""
