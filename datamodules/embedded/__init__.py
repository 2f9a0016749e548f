"""Data sets in the repository, for runs without any data: tables of facts, articles, molecules."""
