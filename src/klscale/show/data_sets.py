"""A store as a data set that the Hugging Face hub shows: its files, and a card."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from klscale.progress import SILENT, Progress
from klscale.show.columns import Column
from klscale.show.files import whole
from klscale.show.markdown import escaped
from klscale.show.terminal import out, plain
from klscale.store.publish import Part, publish
from klscale.store.store import Store, now

LISTED = 200
"""Models that the card names."""
CARD = "README.md"
PART = (
    Column("name", "Name of the part: `datasets.load_dataset(DIR, NAME)`."),
    Column("text_set", "Id of its text set.", value=lambda it: it.texts.id),
    Column("models", "Models with a vector in it; 0: it holds the texts.", "models", lambda it: len(it.models)),
    Column("columns", "The columns of its tables."),
    Column("files", "Its files, in the directory."),
)
"""Of a `Part`."""
MEANING = {
    "model": "the model, as `klscale` reads it",
    "key": "stands for the exact weights, dtype and convention of a vector",
    "text": "place of the text in the text set, from 0; in the set itself, the text",
    "log_likelihood": "log-likelihood of the text in nats",
    "n_tokens": "tokens of the text; 0: not known",
    "layer_log_likelihood": "the same after the embedding and each block, through the logit lens, in nats",
    "span_log_likelihood": "log-likelihood of each span of about 32 bytes, in nats",
    "given_bytes": "bytes of the text before its first scored token",
    "draws": "stands for the token ids that were drawn for the text; 0: none",
    "sampled_log_probability": "log-probability of each drawn id, in nats",
    "top_token": "the most probable token id at each position",
    "bytes": "length of the text in bytes of UTF-8",
}


def write_data_set(
    store: Store, text_sets: Sequence[str], directory: Path, models: Sequence[str] = (), progress: Progress = SILENT
) -> list[Part]:
    """The parts of a data set that was written to a new directory: `datasets.load_dataset` reads it, and klscale reads
    it as a store. Its card is written last. Raises as `publish` does."""
    parts = publish(store, text_sets, directory, models, progress)
    text = card(parts)
    whole(directory / CARD, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))
    return parts


def card(parts: Sequence[Part]) -> str:
    """The card of a data set: what the hub reads of it, and what a reader needs to know."""
    head: dict[str, Any] = {
        "pretty_name": f"Log-likelihoods of {len(_models(parts)):,} language models",
        "tags": ["klscale", "log-likelihood", "kl-divergence", "language-models"],
        "configs": [
            {"config_name": part.name, "data_files": [*part.files]} | ({"default": True} if n == 0 else {})
            for n, part in enumerate(sorted(parts, key=lambda part: not part.vectors))
        ],
    }
    license = "license: unknown  # to fill in: what others may do with these numbers, and with the texts\n"
    described = [
        f"- {escaped(part.name)}: "
        + (f"{len(part.models):,} models on " if part.vectors else f"{_what(part)}: ")
        + f"{escaped(part.texts.name)} ({part.texts.id}), {len(part.texts):,} texts, "
        + f"mean {part.texts.mean_bytes:.1f} bytes"
        for part in parts
    ]
    columns = dict.fromkeys(name for part in parts for name in part.columns)
    meanings = [f"- `{name}`: {MEANING[name]}" for name in columns if name in MEANING]
    models = _models(parts)
    named = [f"- {escaped(model)}" for model in models[:LISTED]]
    more = [f"- and {len(models) - LISTED:,} more"] if len(models) > LISTED else []
    example = next(part.name for part in parts if part.vectors)
    return "\n".join([
        "---", license + yaml.safe_dump(head, sort_keys=False).rstrip(), "---", "",
        f"# Log-likelihoods of {len(models):,} language models", "",
        "One row is a text under a model. Half the variance over texts of the difference of two models, by the mean",
        "length of a text in bytes and ln 2, estimates their KL divergence in bits per byte (arXiv 2502.16173).", "",
        *described, "", "## How to read it", "", "```python", "import datasets", "",
        f'rows = datasets.load_dataset("OWNER/NAME", "{example}", split="train")', "```", "",
        "```console", "$ klscale kl --store hf://datasets/OWNER/NAME", "```", "",
        "## Columns", "", *meanings, "", "## Models", "", *named, *more, "",
        f"Written by klscale {version('klscale')}, {now()[:10]}.",
        "How a vector was made is in the Parquet metadata under `klscale`.", "",
    ])  # fmt: skip


def _models(parts: Sequence[Part]) -> list[str]:
    return sorted({model for part in parts for model in part.models})


def _what(part: Part) -> str:
    return "lengths of the texts" if part.texts.external else "the texts"


def print_data_set(parts: Sequence[Part], directory: Path) -> None:
    """A line for each part, and what to do before it is published."""
    for part in parts:
        what = f"{len(part.models):,} models" if part.vectors else f"{_what(part)}, {len(part.texts):,}"
        out.print(f"{plain(part.name)}: {what}; files: {len(part.files):,}", soft_wrap=True)
    out.print(f"Before you publish {plain(directory)}: fill in the license in {CARD}.", style="yellow")
    if texts := [part for part in parts if not part.vectors and not part.texts.external]:
        out.print(f"The texts themselves are published too ({len(texts):,} text sets, in texts/).", style="yellow")
    if local := [model for model in _models(parts) if model.startswith(("/", "./", "~", "../"))]:
        out.print(f"{len(local):,} models are named by a path of this machine: {plain(local[0])}.", style="yellow")
