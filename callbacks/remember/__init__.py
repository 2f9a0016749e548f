"""Sparse memory finetuning, and what it is compared with: replay, EWC, KL to the base."""
