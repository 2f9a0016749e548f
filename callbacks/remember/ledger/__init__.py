"""Records which fact changed which slots, and takes it back."""
