"""SMILES: reading, filters, splits, the tokenizer."""
