"""Changes of slots as files that can be applied, merged and reverted."""
