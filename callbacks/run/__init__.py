"""The frame of every run: directory, checkpoints, exports, progress, tables, guards."""
