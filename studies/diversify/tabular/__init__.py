"""Parts of the study of tabular policies."""
