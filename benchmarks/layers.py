"""Every layer through the logit lens: time and memory compared with plain scoring and with the lower limit.

    python benchmarks/layers.py

A 70M GPT-NeoX shape with random weights, 50k vocabulary, 6 blocks: 7 readouts. The limit is one backbone pass and seven
output projections on the same tokens, without padding, softmax, norms or targets. It is timed in the faster of the two
ways of `scoring.py`. Rounds are interleaved. Each way has its own process; memory is its peak resident memory minus the
loaded model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scoring import forget_peak, memory, sample, save_model, spread

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.sources.quiet import quiet_transformers
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.tokens import tokenize

SHAPE = "70M, 50k vocabulary"


def scoring(loaded: Any, texts: TextSet, layers: bool) -> None:
    engine = Engine(loaded, device="cpu", layers=layers)
    for _ in engine.score(tokenize(loaded.tokenizer, texts), range(len(texts))):
        pass


def parts(loaded: Any, texts: TextSet) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The backbone over all texts, and the output projection of all their hidden states."""
    tokens, weight = tokenize(loaded.tokenizer, texts), loaded.model.get_output_embeddings().weight
    order, batches = np.argsort(-tokens.lengths), []
    while len(order):
        rows = max(1, Engine(loaded, device="cpu").batch_tokens // int(tokens.lengths[order[0]]))
        part, order = order[:rows], order[rows:]
        ids = np.concatenate([tokens.of(s) for s in part])
        width = len(ids) // len(part)
        batches.append(torch.from_numpy(ids[: width * len(part)]).long().view(len(part), width))
    singles = [torch.from_numpy(tokens.of(s)).long()[None] for s in range(len(texts))]

    def backbone() -> float:
        """Seconds of the faster way."""
        taken = []
        for inputs in (batches, singles):
            start = time.perf_counter()
            for ids in inputs:
                loaded.model.base_model(ids, use_cache=False)
            taken.append(time.perf_counter() - start)
        return min(taken)

    hidden = torch.randn(512, weight.shape[1])

    def projection() -> float:
        start = time.perf_counter()
        for _ in range(int(tokens.lengths.sum()) // 512):
            hidden @ weight.T
        return time.perf_counter() - start

    return backbone, projection


def peak(pipe: Any, directory: str, texts: TextSet, layers: bool) -> None:
    loaded = load(resolve(ModelRef(directory)))
    forget_peak("cpu")
    before = memory("VmRSS")
    scoring(loaded, texts, layers)
    pipe.send(memory("VmHWM") - before)


def gigabytes(directory: str, texts: TextSet, layers: bool) -> float:
    near, far = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=peak, args=(far, directory, texts, layers))
    worker.start()
    found: float = near.recv()
    worker.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = sample(arguments.texts)
    with tempfile.TemporaryDirectory() as directory, quiet_transformers(), torch.inference_mode():
        save_model(Path(directory), SHAPE, texts.texts or ())
        loaded = load(resolve(ModelRef(directory)))
        readouts = loaded.model.config.num_hidden_layers + 1
        backbone, projection = parts(loaded, texts)
        times: dict[str, list[float]] = {"layers": [], "plain": [], "limit": []}
        for number in range(arguments.rounds + 1):
            round_ = {}
            for name in ("layers", "plain"):
                start = time.perf_counter()
                scoring(loaded, texts, name == "layers")
                round_[name] = time.perf_counter() - start
            round_["limit"] = backbone() + readouts * projection()
            print(f"  round {number}: " + ", ".join(f"{k} {v:.2f} s" for k, v in round_.items()), file=sys.stderr)
            if number:  # the first one warms up
                for name, seconds in round_.items():
                    times[name].append(seconds)
        plain, layers = gigabytes(directory, texts, False), gigabytes(directory, texts, True)
    for name, seconds in times.items():
        print(f"{name:8s} {spread(seconds, '.2f')} s")
    ratio = [a / b for a, b in zip(times["layers"], times["limit"], strict=True)]
    print(f"layers / ({readouts} output projections + backbone): {spread(ratio, '.2f')}")
    print(f"layers / plain scoring: {statistics.median(times['layers']) / statistics.median(times['plain']):.2f} times")
    print(f"memory above the loaded model: plain {plain:.3f} GB, layers {layers:.3f} GB ({layers / plain:.2f} times)")


if __name__ == "__main__":
    main()
