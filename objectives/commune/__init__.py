"""Losses of the thought autoencoder, and the sparsity of its Jacobian."""
