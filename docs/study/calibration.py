"""How far the estimate of KL is from exact KL, over pairs of small models of every kind: a row a pair.

    klscale demo && python docs/make_study.py --demo klscale-demo

Measured once, and kept in DEMO/calibration-store: the models that `klscale demo` trained, on the pocket texts; and a
model of stories with its quantized variants on public-domain texts, where these are at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from klscale.inputs.references import WEIGHTS_ONLY, ModelRef
from klscale.inputs.texts import TextSet, load_texts
from klscale.progress import Progress
from klscale.science.arrays import Floats, Integers
from klscale.science.clip import common_texts
from klscale.science.estimates import Estimate
from klscale.science.kl import KL, LOG_2, bits_per_byte, kl
from klscale.show.pictures.style import DOUBLE, FAINT, GREY, MARKERS, headline, looks, new_figure, plain_ticks, styled
from klscale.sources.source import NextTokens
from klscale.sources.transformers.engine import Engine, Packed
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import LoadedModel, load
from klscale.sources.transformers.next_token import compare_next_tokens
from klscale.sources.transformers.readout import find_readout
from klscale.sources.transformers.tokens import tokenize
from klscale.store.store import Store
from klscale.studies.calibration import Calibration, Sums, calibrate, calibration, ratio
from klscale.sweep.score import score
from klscale.vectors.vectors import Vectors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

N_TEXTS = 200
N_STORIES = 500
"""Of the public-domain texts, which are in random order."""
BEGINNINGS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of each text, to see what the length of texts does."""
RUNS = ("130k-seed1", "460k-seed1", "llama-130k-seed1")
"""Whose last checkpoints are read at their layers."""

Pair = tuple[str, ModelRef, ModelRef]
"""Setting and models."""


class Told(Progress):
    """Lines on the terminal, for work that takes an hour."""

    def now(self, what: str) -> None:
        print(what, flush=True)

    def note(self, message: str) -> None:
        print(message, flush=True)


def calibration_study(demo: Path, shared: Path | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """A row a pair of models and text set, and for each domain of the pocket texts. `demo` is what `klscale demo` left;
    `shared` holds models/stories260K and texts/public-domain-short-3k.jsonl, or their part is left out, aloud."""
    progress = progress or Told()
    store = Store(demo / "calibration-store")
    pocket = load_texts("pocket")
    pairs = list(pocket_pairs(demo / "models"))
    rows = list(measured(pairs, pocket, store, progress, by_domain=True))
    rows += layer_rows([demo / "models" / f"pocket-{run}" / "checkpoint-800" for run in RUNS], pocket)
    stories = shared and shared / "models" / "stories260K"
    if stories and stories.is_dir():
        assert shared is not None
        texts = first(load_texts(shared / "texts" / "public-domain-short-3k.jsonl"), N_STORIES)
        pairs = list(story_pairs(ModelRef(str(stories))))
        rows += measured(pairs, texts, store, progress)
        rows += layer_rows([stories], texts)
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


def first(texts: TextSet, n: int) -> TextSet:
    assert texts.texts is not None
    assert texts.domain is not None
    return TextSet.from_texts(f"{texts.name}, first {n}", texts.texts[:n], domain=texts.domain[:n])


def measured(
    pairs: list[Pair], texts: TextSet, store: Store, progress: Progress, by_domain: bool = False
) -> Iterator[dict[str, object]]:
    """A row a pair, on these texts, and on those of each domain where asked for."""
    outcomes = score([*dict.fromkeys(ref for pair in pairs for ref in pair[1:])], texts, store, progress=progress)
    for outcome in outcomes:
        if outcome.error is not None:
            progress.note(str(outcome.error))
    scored = {outcome.ref for outcome in outcomes if outcome.error is None}
    setting_of = {(str(a), str(b)): setting for setting, a, b in pairs if {a, b} <= scored}
    vectors = store.vectors(store.texts(texts.id))
    domains = sorted(set(texts.domain or ())) if by_domain else []
    for found in calibrate(setting_of, vectors.texts, store, n_texts=N_TEXTS, progress=progress):
        setting, pair = setting_of[found.a, found.b], vectors.subset([found.a, found.b])
        a, b = engine(found.a), engine(found.b)
        there = compare_next_tokens(a, b, tokenize(a.loaded.tokenizer, texts), found.sums.text)
        parts = flat(of_parts(there, found.sums.text, texts))
        yield {"setting": setting, "texts": texts.name, **row(found, pair), **parts}
        for domain in domains:
            there = np.array(texts.domain) == domain
            part = replace(pair, log_likelihood=np.where(there, pair.log_likelihood, np.nan))
            some = calibration(part, only(found.sums, there[found.sums.text]), found.seed)
            yield {"setting": setting, "texts": f"{texts.name}, {domain}", **row(some, part)}


def only(sums: Sums, kept: NDArray[np.bool_]) -> Sums:
    """The sums of some of the texts (n,); the quantiles of tokens stay as they are."""
    whole = ("quantiles", "resampled_quantiles", "maximum", "left_out", "n_available")
    by_text = [entry.name for entry in fields(Sums) if entry.name not in whole]
    return replace(sums, **{entry: getattr(sums, entry)[..., kept] for entry in by_text})


def row(found: Calibration, pair: Vectors) -> dict[str, object]:
    """What is told of a pair: KL in bits/byte, and what may predict the ratio, from the vectors on all texts."""
    estimates: dict[str, Estimate | KL] = {
        "estimate": found.estimate,
        "exact_forward": found.forward,
        "exact_backward": found.backward,
        "exact": found.symmetrised,
        "ratio": found.ratio,
        "estimate_all_texts": found.estimate_all,
        "drawn_estimate_a": found.from_a.estimate,
        "drawn_exact_a": found.from_a.exact,
        "drawn_ratio_a": found.from_a.ratio,
        "drawn_estimate_b": found.from_b.estimate,
        "drawn_exact_b": found.from_b.exact,
        "drawn_ratio_b": found.from_b.ratio,
        "nats_per_token": found.per_token.mean,
        "same_top": found.per_token.same_top,
    }
    told = {"a": name(found.a), "b": name(found.b), "n_texts": found.n_texts, **flat(estimates)}
    return told | of_vectors(pair.log_likelihood, pair.texts)


def of_vectors(rows: Floats, texts: TextSet) -> dict[str, object]:
    """What two log-likelihood vectors (2, N) tell by themselves of a pair."""
    there = common_texts(rows)
    rows, size, documents = rows[:, there], texts.bytes[there], texts.documents_of(there)
    found = kl(*rows, size, documents=documents)
    difference = rows[1] - rows[0]
    told: dict[str, Estimate | KL] = {
        f"bits_per_byte_{which}": bits_per_byte(values, size, documents=documents)
        for which, values in (("a", rows[0]), ("b", rows[1]), ("difference", difference))
    }
    by_length = np.corrcoef(difference, size)[0, 1] ** 2 if np.ptp(size) else 0.0
    return flat(told) | {
        "mean_bytes": found.mean_bytes, "nats_per_text": found.nats_per_text, "kurtosis": found.kurtosis,
        "explained_by_length": by_length, "in_range": found.in_range,
    }  # fmt: skip


def flat(estimates: Mapping[str, Estimate | KL]) -> dict[str, object]:
    """Values, each with its standard error, as columns."""
    return {f"{column}{ending}": getattr(value, part) for column, value in estimates.items()
            for ending, part in (("", "value"), ("_standard_error", "standard_error"))}  # fmt: skip


# ----------------------------------------------------------------------------------------------------- parts of texts


@lru_cache(maxsize=3)
def engine(ref: str) -> Engine:
    return Engine(load(resolve(ModelRef.parse(ref))))


def of_parts(there: NextTokens, chosen: Integers, texts: TextSet) -> dict[str, Estimate]:
    """The ratio of variance / 2 to exact KL, on the `chosen` texts (n,), for other variances than that over texts.

    `ratio_tokens`: of the log-ratio of single tokens; `ratio_halves`: of the log-ratio of a text's first half less that
    of its second, where what a whole text favours one model by cancels; `ratio_0.25` and so on: of the beginnings.
    """
    which, documents = np.searchsorted(chosen, there.text), texts.documents_of(chosen)
    length = np.bincount(which)
    place = np.arange(len(which)) - np.repeat(np.cumsum(length) - length, length)
    share = (place + 0.5) / length[which]
    nats, log_ratio = (there.forward + there.backward) / 2, np.subtract(*there.log_likelihood)
    whole = np.bincount(which, nats)
    parts = {"ratio_halves": ratio(np.bincount(which, np.where(share < 0.5, log_ratio, -log_ratio)), whole, documents)}
    for end in BEGINNINGS:
        some = share < end
        beginnings = (np.bincount(which[some], values[some], len(whole)) for values in (log_ratio, nats))
        parts[f"ratio_{end:g}"] = ratio(*beginnings, documents)
    squares = np.bincount(which, (log_ratio - log_ratio.mean()) ** 2 / 2)
    of_tokens = bits_per_byte(-squares * LOG_2, whole, documents=documents)
    return {"ratio_tokens": of_tokens, **parts}


# -------------------------------------------------------------------------------------------------------------- layers


class Layer(Engine):
    """A layer of a model as a model: what it would say next, read there through the logit lens."""

    def __init__(self, loaded: LoadedModel, layer: int) -> None:
        super().__init__(loaded)
        self.layer = layer

    def next_token_logits(self, packed: Packed) -> Callable[[slice], Tensor]:
        assert self.head is not None
        readout = find_readout(self.model, lambda: self._hidden_states(packed.inputs[-1:]), self.loaded.ref)
        seen: dict[int, Tensor] = {}
        with readout.watching(seen.__setitem__):
            self._hidden_states(packed.inputs)
        head, hidden = self.head, readout(seen[self.layer].flatten(0, 1)[packed.before])
        return lambda part: head.logits(hidden[part], 0, len(head.weight))


def layer_rows(models: Sequence[Path], texts: TextSet) -> Iterator[dict[str, object]]:
    """A row for each two layers of a model that follow one another, on the texts alone: none is drawn from a layer."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(texts))[:N_TEXTS])
    size, documents = texts.bytes[chosen], texts.documents_of(chosen)
    same = TextSet(texts.name, size, document=None if documents is None else tuple(documents), id=texts.id)
    for path in models:
        loaded = load(resolve(ModelRef(str(path))))
        tokens = tokenize(loaded.tokenizer, texts)
        for layer in range(loaded.model.config.num_hidden_layers):
            there = compare_next_tokens(Layer(loaded, layer), Layer(loaded, layer + 1), tokens, chosen)
            which = np.searchsorted(chosen, there.text)
            forward, backward, a, b = (
                np.bincount(which, values) for values in (there.forward, there.backward, *there.log_likelihood)
            )
            both = (forward + backward) / 2
            exact = {
                f"exact{of}": bits_per_byte(-nats, size, documents=documents)
                for of, nats in (("_forward", forward), ("_backward", backward), ("", both))
            }
            estimates = {"estimate": kl(a, b, size, documents=documents), **exact}
            estimates |= {"ratio": ratio(a - b, both, documents), **of_parts(there, chosen, texts)}
            yield {
                "setting": "layer", "texts": texts.name, "a": f"{name(str(path))}#{layer}",
                "b": f"{name(str(path))}#{layer + 1}", "n_texts": len(chosen), **flat(estimates),
                **of_vectors(np.stack([a, b]), same),
            }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- picture


@styled
def calibration_picture(table: pd.DataFrame) -> Figure:
    """Estimate with its standard error against exact KL of every pair: on the text set, on texts drawn from the first
    model, and on the text set from the halves of texts (see `of_parts`). Hollow where the estimate is out of range by
    the rule. On the line they are equal, within the band to a factor of 2."""
    table = table[~table["texts"].str.contains("documentation|source")]  # which are parts of others
    halves = table["ratio_halves"] * table["exact"], table["ratio_halves_standard_error"] * table["exact"]
    panels = {
        "on the text set": (table["exact"], table["estimate"], table["estimate_standard_error"]),
        "on texts drawn from one model": (
            table["drawn_exact_a"], table["drawn_estimate_a"], table["drawn_estimate_a_standard_error"]
        ),
        "on the text set, from halves of texts": (table["exact"], *halves),
    }  # fmt: skip
    figure = new_figure(DOUBLE, 3.0)
    headline(figure, "A mark is a pair of models, hollow where out of range; grey: within a factor of 2")
    look = looks(table["setting"])
    ends = np.array([table["exact"].min() / 3, table["exact"].max() * 2])
    for axes, (title, panel) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        axes.fill_between(ends, ends / 2, ends * 2, color=FAINT, linewidth=0, zorder=0)
        axes.plot(ends, ends, color=GREY, linewidth=0.6, zorder=1)
        for setting, (colour, symbol) in look.items():
            for inside in (True, False):
                which = (table["setting"] == setting) & (table["in_range"] == inside)
                exact, estimate, error = (values[which] for values in panel)
                axes.errorbar(
                    exact, estimate, np.minimum(error, 0.9 * estimate), fmt=MARKERS[symbol], color=colour, markersize=3,
                    markerfacecolor=colour if inside else "white", markeredgewidth=0.7, elinewidth=0.5,
                )  # fmt: skip
        axes.set(xscale="log", yscale="log", title=title, xlabel="exact KL, bits/byte", xlim=ends)
        plain_ticks(axes.xaxis, 5)
    figure.axes[0].set_ylabel("estimate ± SE, bits/byte")
    plain_ticks(figure.axes[0].yaxis)
    handles = [
        Line2D([], [], color=colour, marker=MARKERS[symbol], linestyle="none", label=setting)
        for setting, (colour, symbol) in look.items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=5)
    return figure


def name(ref: str) -> str:
    """Without the directory."""
    return "/".join(ref.split("/")[-2:]).removeprefix("models/")
