"""Batches from rows: tokenizers, packing, resumable loaders."""
