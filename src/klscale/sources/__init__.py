"""Where log-likelihoods come from."""
