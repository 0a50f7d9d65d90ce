"""A sweep over the checkpoints of a run, compared with scoring alone: the cost of reading, checking, hashing, storing.

    python benchmarks/sweeps.py            # --quick: tests only that it runs

Checkpoints with random weights are scored on short texts, so that the other costs have a large share. The sweep:
`klscale.score` on a directory of checkpoints into an empty store, from finding them to the last vector. The scoring
alone: the seconds inside `Engine.score` for the same checkpoints in sequence; models are loaded and texts tokenized
beforehand. Rounds are interleaved; the first warms up and is not counted. Files come from the page cache.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from scoring import SHAPES, save_model, spread
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, build_texts, pocket_corpus
from klscale.sources.quiet import quiet_transformers
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.tokens import tokenize
from klscale.store.store import Store
from klscale.studies.pocket import pocket_tokenizer
from klscale.sweep import score as sweeps
from klscale.sweep.runs import checkpoints

LARGE, TINY, SMOLLM2 = "70M, 50k vocabulary", "130k, bytes", "135M, the shape of SmolLM2"


def save_run(run: Path, shape: str, n_checkpoints: int) -> None:
    """Checkpoints of one configuration and one tokenizer, each with its own random weights."""
    first = run / "checkpoint-0"
    if shape != TINY:
        save_model(first, LARGE, [text for _, text, _ in pocket_corpus()])
    if shape == SMOLLM2:
        LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=SHAPES[LARGE].vocab_size, tie_word_embeddings=True,
        ).save_pretrained(first)  # fmt: skip
    elif shape == TINY:
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
        GPTNeoXConfig(**small, vocab_size=256, max_position_embeddings=512).save_pretrained(first)
        pocket_tokenizer(512).save_pretrained(first)
    config = AutoConfig.from_pretrained(first)
    for n in range(n_checkpoints):
        place = run / f"checkpoint-{n}"
        if n:
            shutil.copytree(first, place, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.manual_seed(n)
        AutoModelForCausalLM.from_config(config).save_pretrained(place)


def swept(run: Path, texts: TextSet) -> float:
    """Seconds of a sweep over a run."""
    with tempfile.TemporaryDirectory() as store:
        start = time.perf_counter()
        outcomes = sweeps.score([ModelRef(str(run))], texts, Store(store))
        seconds = time.perf_counter() - start
    assert all(outcome.status == "scored" for outcome in outcomes), outcomes
    return seconds


def scored(run: Path, texts: TextSet) -> float:
    """Seconds of the scoring alone."""
    seconds = 0.0
    for ref in checkpoints(ModelRef(str(run))):
        loaded = load(resolve(ref))
        tokens, engine = tokenize(loaded.tokenizer, texts), Engine(loaded)
        start = time.perf_counter()
        for _ in engine.score(tokens, range(len(texts))):
            pass
        seconds += time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=[LARGE, TINY], choices=[LARGE, TINY, SMOLLM2])
    parser.add_argument("--quick", action="store_true", help="the tiny shape, 3 checkpoints, 50 texts, 1 round")
    options = parser.parse_args()
    if options.quick:
        options.texts, options.checkpoints, options.rounds, options.shapes = 50, 3, 1, [TINY]
    texts = build_texts("benchmark", pocket_corpus(), options.texts, max_bytes=64, min_bytes=32)
    print(
        f"{options.checkpoints} checkpoints, {len(texts):,} texts of {texts.mean_bytes:.0f} bytes in the mean, "
        f"{torch.get_num_threads()} threads; median of {options.rounds} interleaved rounds (lowest to highest).\n"
    )
    print("| | sweep, s | scoring alone, s | sweep / scoring |\n|---|---|---|---|")
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as directory, quiet_transformers():
            run, times = Path(directory, "run"), list[tuple[float, float]]()
            save_run(run, shape, options.checkpoints)
            for number in range(options.rounds + 1):
                times.append((swept(run, texts), scored(run, texts)))
                print(f"  round {number}: {times[-1][0]:.2f} s, {times[-1][1]:.2f} s", file=sys.stderr, flush=True)
        sweep, alone = zip(*times[1:], strict=True)
        ratio = [a / b for a, b in zip(sweep, alone, strict=True)]
        cells = (shape, spread(sweep, ".2f"), spread(alone, ".2f"), spread(ratio, ".2f"))
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
