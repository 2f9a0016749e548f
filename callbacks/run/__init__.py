"""What every run does: its directory, checkpoints, exports, progress, tables, guards."""
