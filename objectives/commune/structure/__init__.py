"""Who thinks what: the structure that a decoder's Jacobian shows, and how far to trust it."""
