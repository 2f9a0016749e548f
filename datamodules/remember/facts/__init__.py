"""Facts: questions, statements, streams of facts."""
