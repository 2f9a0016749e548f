"""What a molecule is worth: components, transforms, their mean, an oracle that keeps books."""
