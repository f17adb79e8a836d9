"""Model weights, layers, and attention."""
