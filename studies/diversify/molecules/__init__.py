"""Parts of the molecule study."""
