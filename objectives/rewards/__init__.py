"""Rewards of completions, one kind per file, named by `class_path`."""
