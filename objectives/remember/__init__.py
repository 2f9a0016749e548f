"""Which slots a batch may change."""
