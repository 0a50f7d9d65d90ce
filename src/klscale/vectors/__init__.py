"""Log-likelihood vectors with their labels, scored here or imported."""
