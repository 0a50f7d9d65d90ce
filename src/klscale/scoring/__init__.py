"""Scoring: a model and texts in, log-likelihoods out, a few texts at a time. Knows nothing of the store.

`loading` finds and loads a model, `tokens` prepares the texts for it, `head` reads log-probabilities off hidden
states tile by tile, and `engine` puts batches through.
"""
