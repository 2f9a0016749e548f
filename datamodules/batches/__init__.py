"""How rows become batches: tokenizers, packing, resumable loaders."""
