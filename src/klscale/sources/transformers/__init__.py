"""Models of transformers: from the hub, a directory or a GGUF file to log-likelihoods. Knows nothing of the store.

`hub` and `files` find a model, `load` brings it into memory (`adapters`, `placement`, `gguf_files`), `quantization`
replaces its weights where a reference asks for it. `tokens` prepares the texts, `engine` puts batches through, `head`
reads log-probabilities off hidden states, `readout` reads every layer, `next_token` whole next-token distributions.
"""
