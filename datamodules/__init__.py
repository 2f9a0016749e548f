"""Data families: each file reads one kind of source and turns it into batches."""
