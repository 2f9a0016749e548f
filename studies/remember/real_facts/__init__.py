"""Parts of the study of real facts in a real chat model."""
