"""LightningModules: one training procedure a file."""
