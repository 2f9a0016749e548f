"""Studies: one claim per file, tested on runs of `train.main` over arms and seeds."""
