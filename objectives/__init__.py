"""From samples to numbers: losses, scores and rewards in pure torch."""
