"""Why int8 can seem as far from its model as 4 bits: a clip of one side only, or 8-bit activations?

    klscale demo && python benchmarks/quantization.py klscale-demo
    python benchmarks/quantization.py klscale-demo MODEL TEXTS.jsonl      # the demo's models, and your own

Each model is scored with its weights in int8, nf4 and fp4, and by the int8 kernel, which quantizes activations too.
KL to the model itself is then computed in three ways: without a clip; with both vectors clipped at the pooled 2 %
quantile (joint); with only the model clipped (one-sided). It writes the picture to docs/pictures.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, load_texts
from klscale.science.estimates import Estimate, format_estimate
from klscale.science.kl import KL, kl, shift_cosine
from klscale.show.pictures import COLOURS, save
from klscale.store.store import Store
from klscale.sweep.score import score

KINDS = ("int8", "int8-kernel", "nf4", "fp4")
WAYS = ("no clip", "joint", "one-sided")
PICTURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "quantization-clip.png"


def measure(base: ModelRef, texts: TextSet, store: Store, quantile: float = 0.02) -> dict[str, Any]:
    """KL from a model to its variants in bits per byte, each way; and the effect of the clip alone on the model."""
    refs = [base, *(replace(base, quantization=kind) for kind in KINDS)]
    outcomes = score(refs, texts, store, device="cpu")
    for outcome in outcomes:
        if outcome.error:
            raise outcome.error
    L = store.vectors(texts, [o.entry for o in outcomes if o.entry], refs).log_likelihood
    clip = float(np.quantile(L, quantile))
    own, clipped = L[0], np.maximum(L, clip)

    def apart(a: Any, b: Any) -> KL:
        return kl(a, b, texts.bytes, documents=texts.document)

    return {
        "model": base.name,
        "texts": texts.name,
        "n_texts": len(texts),
        "clip": clip,
        "clip alone": apart(clipped[0], own),
        "set": texts,
        "shifts": dict(zip(WAYS, (L[1:] - own, clipped[1:] - clipped[0], L[1:] - clipped[0]), strict=True)),
        **{
            kind: dict(zip(WAYS, (apart(own, row), apart(clipped[0], limited), apart(clipped[0], row)), strict=True))
            for kind, row, limited in zip(KINDS, L[1:], clipped[1:], strict=True)
        },
    }


def cosines(studies: list[dict[str, Any]], way: str) -> dict[str, list[Estimate]]:
    """Cosines between the shifts from one model to its quantized kinds, and between the shifts of different models to
    one kind on the same texts: whether quantizations shift a model in the same direction."""

    def cosine(texts: TextSet, first: Any, second: Any) -> Estimate:
        nothing = np.zeros(len(texts))
        return shift_cosine(nothing, first, second, documents=texts.document)

    return {
        "kinds of one model": [
            cosine(study["set"], *pair) for study in studies for pair in combinations(study["shifts"][way], 2)
        ],
        "models, one kind": [
            cosine(a["set"], *pair)
            for a, b in combinations(studies, 2)
            if a["set"].id == b["set"].id
            for pair in zip(a["shifts"][way], b["shifts"][way], strict=True)
        ],
    }


def draw(studies: list[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(7.2, 1.2 + 0.38 * len(studies)), layout="constrained")
    panels = figure.subplots(1, len(KINDS), sharex=True, sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        for offset, (way, colour, marker) in enumerate(zip(WAYS, COLOURS, "os^", strict=False)):
            value = np.array([study[kind][way].value for study in studies])
            ends = np.array([study[kind][way].interval for study in studies]).T
            place = np.arange(len(studies)) + (offset - 1) * 0.2
            axes.errorbar(value, place, xerr=np.abs(ends - value), fmt=marker, color=colour, markersize=4,
                          elinewidth=0.8, label=way if kind == KINDS[0] else None)  # fmt: skip
        axes.set_title({"int8": "int8, weights", "int8-kernel": "int8, kernel", "nf4": "nf4, weights",
                        "fp4": "fp4, weights"}[kind], fontsize=8)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    names = [Path(study["model"]).parent.name if "checkpoint" in study["model"] else Path(study["model"]).name
             for study in studies]  # fmt: skip
    panels[0].set_yticks(range(len(studies)), names, fontsize=7)
    panels[0].invert_yaxis()
    figure.supxlabel("KL to the model itself, bits/byte (95 % interval)", fontsize=8)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    save(figure, PICTURE)


def main() -> None:
    demo, *other = sys.argv[1:] or ["klscale-demo"]
    store = Store(Path(demo) / "store")
    texts = store.resolve_texts(None)
    last: dict[str, ModelRef] = {}
    for entry in store.entries(texts.id):
        ref, step = entry.ref, entry.metadata["attributes"].get("step")
        if step and not ref.quantization:
            run = str(Path(ref.name).parent)
            last[run] = max(last.get(run, ref), ref, key=lambda r: int(r.name.rsplit("-", 1)[-1]))
    studies = [measure(ref, texts, store) for ref in last.values()]
    if other:
        model, file = other
        studies.append(measure(ModelRef(model), load_texts(file), Store(Path(demo) / "quantization")))
    for study in studies:
        print(f"\n{study['model']}: {study['n_texts']:,} texts of {study['texts']}, clip {study['clip']:.1f} nats; "
              f"the clip alone: {study['clip alone']}")  # fmt: skip
        for kind in KINDS:
            values = [format_estimate(study[kind][way].value, study[kind][way].standard_error) for way in WAYS]
            print(f"  {kind:12s}" + "".join(f"{way}: {text:24s}" for way, text in zip(WAYS, values, strict=True)))
    print("\nmedian over the models, bits/byte")
    for kind in KINDS:
        middle = [float(np.median([study[kind][way].value for study in studies])) for way in WAYS]
        print(f"  {kind:12s}" + "".join(f"{way}: {value:<12.3g}" for way, value in zip(WAYS, middle, strict=True)))
    ratio = [study["int8-kernel"]["no clip"].value / study["int8"]["no clip"].value for study in studies]
    print(f"\nint8 kernel / int8 weights: {min(ratio):.1f} to {max(ratio):.1f} times")
    print("\ncosine between shifts: median (lowest to highest); median standard error over texts")
    for way in WAYS:
        for between, found in cosines(studies, way).items():
            value = [estimate.value for estimate in found]
            error = float(np.median([estimate.standard_error for estimate in found]))
            spread = f"{np.median(value):.2f} ({min(value):.2f} to {max(value):.2f}); {error:.2f}"
            print(f"  {way:10s} {between:20s} {len(found):4d} pairs  {spread}")
    draw(studies)
    print(json.dumps({"picture": str(PICTURE)}))


if __name__ == "__main__":
    main()
