"""The slot ledger: which fact changed which slots, and how to undo it."""
