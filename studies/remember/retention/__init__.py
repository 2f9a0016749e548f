"""Parts of the retention study."""
