"""What an export holds beside the weights: how the model is asked, its card; and its upload."""
