"""Text: corpora, documents, text mixed with facts."""
