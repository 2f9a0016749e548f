"""What an exported folder holds beside the weights: how the model is asked, its card, its upload."""
