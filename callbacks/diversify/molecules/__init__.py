"""Reports, figures and the end of a search for molecules."""
