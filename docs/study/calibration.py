"""How far the estimate of KL is from exact KL, over pairs of small models of every kind: a row a pair.

    klscale demo && python docs/study/calibration.py klscale-demo

Measured once, and kept in DEMO/calibration-store: the models that `klscale demo` trained, on the pocket texts and on
their beginnings; and a model of stories with its quantized variants on public-domain texts, where these are at hand.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from klscale.calibration import Calibration, calibrate
from klscale.divergence import KL, Estimate
from klscale.models import WEIGHTS_ONLY, ModelRef
from klscale.progress import Progress
from klscale.store import Store
from klscale.sweeps import score
from klscale.texts import TextSet, load_texts
from klscale.vectors import Vectors

STUDY = Path(__file__).resolve().parent
N_TEXTS = 200
SHORTER = (64, 128, 256)
"""Bytes that texts are cut to, to see what their length does."""
SHORTENED = ("later training", "distance along a run", "seed", "size", "quantization", "fine-tuning", "architecture")
"""Settings of the pocket suite whose first pair is measured on shorter texts too."""

Pair = tuple[str, ModelRef, ModelRef]
"""Setting and models."""


class Told(Progress):
    """Lines on the terminal, for work that takes an hour."""

    def now(self, what: str) -> None:
        print(what, flush=True)

    def note(self, message: str) -> None:
        print(message, flush=True)


def calibration_study(demo: Path, shared: Path | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """A row a pair of models and text set. `demo` is what `klscale demo` left; `shared` holds models/stories260K and
    texts/public-domain-short-3k.jsonl, or their part is left out, aloud."""
    progress = progress or Told()
    store = Store(demo / "calibration-store")
    pocket = load_texts("pocket")
    pairs = list(pocket_pairs(demo / "models"))
    rows = list(measured(pairs, pocket, store, progress))
    some = [next(pair for pair in pairs if pair[0] == setting) for setting in SHORTENED]
    for limit in SHORTER[:2]:
        rows += measured(some, cut(pocket, limit), store, progress)
    stories = shared and shared / "models" / "stories260K"
    if stories and stories.is_dir():
        assert shared is not None
        texts = load_texts(shared / "texts" / "public-domain-short-3k.jsonl")
        pairs = list(story_pairs(ModelRef(str(stories))))
        rows += measured(pairs, texts, store, progress)
        for limit in SHORTER:
            rows += measured(pairs, cut(texts, limit), store, progress)
    else:
        progress.note("stories260K is not at hand: its pairs are left out.")
    return pd.DataFrame(rows)


def pocket_pairs(models: Path) -> Iterator[Pair]:
    """Pairs of the pocket suite, of every setting."""

    def checkpoint(run: str, step: int = 800) -> ModelRef:
        return ModelRef(str(models / f"pocket-{run}" / f"checkpoint-{step}"))

    first = "130k-seed1"
    for a, b in ((0, 1), (16, 32), (80, 120)):
        yield "early training", checkpoint(first, a), checkpoint(first, b)
    for run, step in ((first, 400), (first, 760), ("460k-seed1", 760), ("llama-130k-seed1", 760)):
        yield "later training", checkpoint(run, step), checkpoint(run, step + 40)
    for step in (0, 16, 40, 200, 400):
        yield "distance along a run", checkpoint(first, step), checkpoint(first)
    for a, b in itertools.combinations(("130k-seed1", "130k-seed2", "130k-seed3"), 2):
        yield "seed", checkpoint(a), checkpoint(b)
    for a, b in itertools.combinations(("40k-seed1", first, "460k-seed1"), 2):
        yield "size", checkpoint(a), checkpoint(b)
    for run, kinds in {first: ("int8", "nf4", "fp4", "int4"), "460k-seed1": ("int8", "fp4"),
                       "llama-130k-seed1": ("int8", "fp4")}.items():  # fmt: skip
        for kind in kinds:
            yield "quantization", checkpoint(run), replace(checkpoint(run), quantization=kind)
    yield "dtype", checkpoint(first), replace(checkpoint(first), dtype="bfloat16")
    yield "fine-tuning", checkpoint(first), ModelRef(str(models / "pocket-130k-finetuned"))
    yield "architecture", checkpoint(first), checkpoint("llama-130k-seed1")


def story_pairs(stories: ModelRef) -> Iterator[Pair]:
    for kind in WEIGHTS_ONLY:
        yield "quantization", stories, replace(stories, quantization=kind)
    yield "dtype", stories, replace(stories, dtype="bfloat16")


def cut(texts: TextSet, limit: int) -> TextSet:
    """The first `limit` bytes of each text, or what is whole of them."""
    assert texts.texts is not None
    short = [text.encode()[:limit].decode(errors="ignore") for text in texts.texts]
    return TextSet.from_texts(f"{texts.name}, {limit} bytes", short, domain=texts.domain, document=texts.document)


def measured(pairs: list[Pair], texts: TextSet, store: Store, progress: Progress) -> Iterator[dict[str, object]]:
    """A row a pair, on these texts."""
    outcomes = score([*dict.fromkeys(ref for pair in pairs for ref in pair[1:])], texts, store, progress=progress)
    scored = {outcome.ref for outcome in outcomes if outcome.error is None}
    for outcome in outcomes:
        if outcome.error is not None:
            progress.note(str(outcome.error))
    kept = [pair for pair in pairs if {*pair[1:]} <= scored]
    setting_of = {(str(a), str(b)): setting for setting, a, b in kept}
    vectors = store.vectors(store.texts(texts.id))
    for found in calibrate(setting_of, vectors.texts, store, n_texts=N_TEXTS, progress=progress):
        yield {"setting": setting_of[found.a, found.b], **row(found, vectors.subset([found.a, found.b]))}


def row(found: Calibration, pair: Vectors) -> dict[str, object]:
    """What is told of a pair: KL in bits/byte, and what may predict the ratio, from the vectors on all texts."""
    estimates: dict[str, Estimate | KL] = {
        "estimate": found.estimate,
        "exact_forward": found.forward,
        "exact_backward": found.backward,
        "exact": found.symmetrised,
        "ratio": found.ratio,
        "estimate_all_texts": found.estimate_all,
        "drawn_exact": found.drawn,
        "drawn_ratio_a": found.from_a.ratio,
        "drawn_ratio_b": found.from_b.ratio,
        "nats_per_token": found.per_token.mean,
        "same_top": found.per_token.same_top,
        "bits_per_byte_a": pair.bits_per_byte(found.a),
        "bits_per_byte_b": pair.bits_per_byte(found.b),
        "bits_per_byte_difference": pair.bits_per_byte(found.b, found.a),
    }
    told: dict[str, object] = {
        "a": name(found.a), "b": name(found.b), "texts": pair.texts.name, "n_texts": found.n_texts,
        "mean_bytes": found.estimate.mean_bytes,
    }  # fmt: skip
    for column, value in estimates.items():
        told |= {column: value.value, f"{column}_standard_error": value.standard_error}
    difference = np.subtract(*pair.log_likelihood)
    by_length = np.corrcoef(difference, pair.texts.bytes)[0, 1] ** 2 if np.ptp(pair.texts.bytes) else 0.0
    told |= {"kurtosis": found.estimate_all.kurtosis, "explained_by_length": by_length}
    return told | {"in_range": found.estimate_all.in_range}


def name(ref: str) -> str:
    """Without the directory."""
    return "/".join(ref.split("/")[-2:]).removeprefix("models/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="What `klscale demo` left.")
    parser.add_argument("--shared", type=Path, help="Holds models/stories260K and texts.")
    arguments = parser.parse_args()
    table = calibration_study(arguments.demo, arguments.shared)
    table.to_csv(STUDY / "calibration.csv", index=False, float_format="%.6g")
