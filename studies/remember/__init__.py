"""Parts that the studies of Remember share."""
