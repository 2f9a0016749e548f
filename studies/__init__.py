"""Studies: one claim a file, tested on runs of `train.main` over arms and seeds."""
