"""Parts that the studies of Diversify share."""
