"""Scoring: a model and texts in, log-likelihoods out, a few texts at a time. Knows nothing of the store.

`loading` finds and loads a model, `quantization` replaces its weights where that is asked for, `tokens` prepares the
texts for it, `head` reads log-probabilities off hidden states tile by tile, `readout` leads there from every layer,
and `engine` puts batches through. `live` lets that be done to a model that is being trained.
"""
