"""Selection of the slots that a batch may change."""
