"""Policy losses, KL estimates and MARA."""
