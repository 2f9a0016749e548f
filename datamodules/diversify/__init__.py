"""Data for policies: prompts, replies."""
