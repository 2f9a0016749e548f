"""The table of values: gather, sparse gradient, row optimizers."""
