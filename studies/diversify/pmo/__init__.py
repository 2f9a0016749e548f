"""Parts of the study on PMO, the benchmark of practical molecular optimization."""
