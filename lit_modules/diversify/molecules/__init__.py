"""Training of molecule priors, and searches that start from them."""
