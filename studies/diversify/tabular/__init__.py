"""Parts of the study on tables of probabilities."""
