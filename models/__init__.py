"""Models: pure torch and transformers modules, with no Lightning in them."""
