"""One question of speed or memory a file, always side by side with a peer or a baseline."""
