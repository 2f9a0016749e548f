"""What a model is asked before, during and after it learns: one probe a file."""
