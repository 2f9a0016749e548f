"""Parts of the studies of Remember."""
