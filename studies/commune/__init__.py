"""Parts of the studies of Commune."""
