"""Rewards: what a completion is worth, one kind a file, by `class_path`."""
