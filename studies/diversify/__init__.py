"""Parts of the studies of Diversify."""
