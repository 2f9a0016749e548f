"""Other methods against the collapse of diversity, as arms of the trainer that also runs MARA."""
