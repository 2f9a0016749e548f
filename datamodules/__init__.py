"""Data: each file reads one kind of source and makes batches of it."""
