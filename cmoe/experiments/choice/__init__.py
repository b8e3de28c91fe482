"""What a choice of layers is worth: the chosen set beside random ones, after the same training."""
