"""What happens around training: tracking, checkpoints, exports, tables, guards."""
