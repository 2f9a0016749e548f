"""Parts that the studies of Commune share."""
