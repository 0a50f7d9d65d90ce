"""How far the estimate is from exact KL for the toy models of `klscale demo`.

    klscale demo && python benchmarks/exact_kl.py klscale-demo

Exact: the next-token KL over the whole vocabulary, symmetrised, summed over the positions of a text, averaged over
the first 150 texts, in bits per byte. Ratio: estimate / exact, over all pairs of GPT-NeoX models past warm-up; none
of them is quantized.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import torch

from klscale.scoring.loading import load, resolve
from klscale.scoring.tokens import tokenize
from klscale.store import Store

TEXTS = 150
WARM_UP = 40


def main(directory: Path) -> None:
    store = Store(directory / "store")
    texts = store.resolve_texts(None)
    vectors = store.vectors(texts)
    vectors = vectors.subset(
        [
            n
            for n, step, of, quantization in zip(
                vectors.names, *(vectors.attributes[key] for key in ("step", "type", "quantization")), strict=True
            )
            if (step is None or step >= WARM_UP) and of == "gpt_neox" and quantization is None
        ]
    )
    log_probabilities = []
    for ref in vectors.models:
        loaded = load(resolve(ref))
        tokens = tokenize(loaded.tokenizer, texts)
        with torch.inference_mode():
            rows = [loaded.model(torch.from_numpy(tokens.of(s)).long()[None]).logits[0, :-1] for s in range(TEXTS)]
        log_probabilities.append(torch.cat(rows).log_softmax(dim=-1))
    nats_per_bit = np.log(2) * texts.bytes[:TEXTS].sum()
    matrix, ratios = vectors.kl(), []
    for i, j in itertools.combinations(range(len(vectors)), 2):
        p, q = log_probabilities[i], log_probabilities[j]
        exact = float(((p.exp() - q.exp()) * (p - q)).sum()) / 2 / nats_per_bit
        ratios.append(matrix[i, j].value / exact)
    bits = [vectors.bits_per_byte(name).value for name in vectors.names]
    low, middle, high = np.quantile(ratios, [0.025, 0.5, 0.975])
    print(f"{len(vectors)} models at {min(bits):.2f} to {max(bits):.2f} bits/byte, {len(ratios)} pairs")
    print(f"estimate / exact KL: median {middle:.1f}, 95 % of the pairs from {low:.1f} to {high:.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "klscale-demo"))
