"""Sparse memory finetuning and its baselines: replay, EWC, KL to the base."""
