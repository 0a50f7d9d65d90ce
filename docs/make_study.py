"""Makes the tables and pictures of docs/validity.md, docs/whole-texts.md and docs/footguns.md, from what `klscale demo`
left in a directory and the example in this repository; a real model too where `--shared` has one. `make study` does it.

    klscale demo && python docs/make_study.py klscale-demo

Tables stand in the documents between `<!-- begin NAME -->` and `<!-- end NAME -->`; what cannot be made here is left as
it stands, and that is said.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from study import calibration, footguns

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import load_texts
from klscale.science.estimates import Estimate, format_estimate
from klscale.science.kl import KL, RANGE_LIMIT
from klscale.show import pictures
from klscale.store.store import Store
from klscale.studies import noise, tails, validity
from klscale.studies.correlations import Correlation
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import Vectors

DOCS = Path(__file__).resolve().parent
EXAMPLE = DOCS.parent / "examples" / "pile-trained-14.csv"


LAST = ("pocket-40k-seed1", "pocket-130k-seed1", "pocket-460k-seed1")
"""Runs of the demo, a size each."""


def main(demo: Path, shared: Path | None = None) -> None:
    store = Store(demo / "store")
    example, pocket = read_log_likelihoods(EXAMPLE, id_column="text_id"), store.vectors(store.resolve_texts(None))
    sets = {"14 models trained on the Pile": example, "`klscale demo`": pocket}
    study = cache(lambda: study_of_calibration(demo, shared))
    made: dict[str, Callable[[], str]] = {
        "texts": lambda: text_table(sets),
        "tails": lambda: tail_table(sets),
        "settings": lambda: setting_table(pocket),
        "noise": lambda: noise_table(demo, shared),
        "conventions": lambda: convention_table(shared),
        "learned": lambda: learned_table(demo),
        "chat": lambda: chat_table(demo),
        "real-models": lambda: real_models_table("smollm2"),
        "real-models-gemma": lambda: real_models_table("gemma3"),
        "calibration": lambda: calibration_table(study()),
        "range": lambda: range_table(study()),
    }
    for name, make in made.items():
        print(f"{name} ...", flush=True)
        try:
            insert(name, make())
        except FileNotFoundError as missing:
            print(f"  left as it is: {missing}")


def insert(name: str, text: str) -> None:
    """Put a table into the documents, where it has its place."""
    place = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", flags=re.S)
    for document in (DOCS / "validity.md", DOCS / "whole-texts.md", DOCS / "footguns.md"):
        written = document.read_text(encoding="utf-8")
        changed = place.sub(lambda found: f"{found[1]}{text}\n{found[2]}", written)
        if changed != written:
            document.write_text(changed, encoding="utf-8")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def real_models_table(model: str) -> str:
    """Of study/real-models.csv, which study/real_models.py makes: a row a pair of this model, over its text sets."""
    measured = pd.read_csv(DOCS / "study" / "real-models.csv").query("model == @model")

    def span(values: pd.Series, places: int) -> str:
        return f"{values.median():.{places}f} ({values.min():.{places}f} to {values.max():.{places}f})"

    rows = []
    for (a, b), of_pair in measured.groupby(["a", "b"], sort=False):
        low, high = of_pair["exact"].min(), of_pair["exact"].max()
        rows.append(
            [f"{a}, {b}", f"{low:.2g} to {high:.2g}"]
            + [span(of_pair[name], 2) for name in ("sampled_tokens", "many_draws")]
            + [span(of_pair[name], 1) for name in ("spans", "whole_texts")]
        )
    columns = ["sampled tokens / exact", "64 draws / exact", "spans / exact", "whole texts / exact"]
    return table(["pair", "exact KL, bits/byte", *columns], rows)


def number(found: Estimate | KL) -> str:
    return format_estimate(found.value, found.standard_error)


def percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def text_table(sets: dict[str, Vectors]) -> str:
    """How far KL depends on the texts, a column a set of models; and a picture of the first."""
    found = {name: validity.text_sensitivity(vectors) for name, vectors in sets.items()}
    name, first = next(iter(found.items()))
    figure = pictures.text_set_sensitivity(first, sets[name].texts)
    pictures.save(figure, DOCS / "pictures" / "texts-pile-trained-14.png")

    def correlation(one: Correlation | None) -> str:
        if one is None or one.interval is None:
            return ""
        return f"{one.value:.3f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"

    def halves(read: Callable[[validity.SplitHalves], object]) -> list[object]:
        return ["" if one.halves is None else read(one.halves) for one in found.values()]

    def growth(one: validity.TextSensitivity) -> str:
        slope = one.growth and one.growth.slope
        return "" if slope is None else number(slope)

    needed = {row.relative_error: n for n, row in enumerate(next(iter(found.values())).needed)}
    rows: list[Sequence[object]] = [
        ("models, pairs looked at", *(f"{one.n_models}, {len(one.pairs):,}" for one in found.values())),
        ("texts, of documents", *(f"{one.n_texts:,}, {one.n_documents}" for one in found.values())),
        *(
            (f"texts for a relative error of {p:.0%}: median pair, worst", *(
                f"{one.needed[n].median:,}, {one.needed[n].worst:,}" for one in found.values()
            ))
            for p, n in needed.items()
        ),
        ("KL on one half differs from that on the other, median pair, worst", *halves(
            lambda h: f"{h.typical:.0%}, {h.largest:.0%}")),
        ("ranking of pairs, halves (Spearman, 95 % over models)", *halves(lambda h: correlation(h.spearman))),
        ("the same, of whole sets", *halves(lambda h: correlation(h.spearman_whole))),
        ("power of the number of texts by which two parts differ (−0.5: no heavy tails)", *map(growth, found.values())),
    ]  # fmt: skip
    return table(("", *found), rows)


def tail_table(sets: dict[str, Vectors]) -> str:
    """The other estimates and the reported value, over all pairs."""
    words = {
        "clipped": "with a clip at the pooled 2 % quantile",
        "trimmed": "trimmed, 1 %",
        "huber": "Huber, Proposal 2",
    }
    rows = []
    for name, vectors in sets.items():
        found = tails.examine_tails(vectors)
        for one in found.agreement:
            if one.estimator not in words:
                continue
            elsewhere = "" if one.n_other_place is None else f"{one.n_other_place:,} of {one.n_pairs:,}"
            rows.append(
                (name, words[one.estimator], number(one.ratio), number(one.spearman), percent(one.swapped), elsewhere)
            )
        if name.startswith("14"):
            pair = tails.examine_pair(vectors, "EleutherAI/pythia-410m", "EleutherAI/pythia-1.4b")
            pictures.save(pictures.text_contributions(pair), DOCS / "pictures" / "texts-that-carry-a-kl.png")
    return table(("models", "estimate", "over the reported value, median", "Spearman", "discordant", "elsewhere"), rows)


def setting_table(vectors: Vectors) -> str:
    """The scale under each estimate."""
    found = tails.examine_tails(vectors).settings
    names = ("headline", "clipped", "trimmed", "huber")
    rows = [(one.setting, *(number(one.medians[name]) for name in names)) for one in found]
    return table(("setting", "reported value", "with a clip", "trimmed, 1 %", "Huber"), rows)


def noise_table(demo: Path, shared: Path | None) -> str:
    """KL between runs of a model."""
    refs = [(demo / "models" / run / "checkpoint-800", load_texts("pocket")) for run in LAST]
    stories = here(shared, "models/stories260K")
    refs.append((stories, load_texts(here(shared, "texts/public-domain-short-3k.jsonl"))))
    columns: dict[str, dict[str, str]] = {}
    for path, texts in refs:
        store = Store(demo / "noise-store")
        (one,) = noise.noise_study([ModelRef(str(path))], texts, store)
        name = path.name if path == stories else path.parent.name
        columns[name] = {
            f"{reading.reading} | {reading.against}": number(reading.kl) for reading in one.readings if reading.kl
        }
        if one.half_precision is not None:
            columns[name]["sums in half precision | as they are"] = number(one.half_precision)
    rows = dict.fromkeys(row for column in columns.values() for row in column)
    return table(("run", "against", *columns), [(row, *(c.get(row, "") for c in columns.values())) for row in rows])


def here(shared: Path | None, name: str) -> Path:
    if shared is None or not (shared / name).exists():
        raise FileNotFoundError(f"{name} is not at hand (--shared).")
    return shared / name


def convention_table(shared: Path | None) -> str:
    here(shared, "models/stories260K")
    assert shared is not None
    rows = [(name, number(kl)) for name, kl in footguns.conventions(shared).items()]
    return table(("stories260K against itself", "KL, bits/byte"), rows)


def learned_table(demo: Path) -> str:
    found = footguns.seen(demo / "models", load_texts("pocket"))
    rows = [(name, number(kl), number(gain)) for name, (kl, gain) in found.items()]
    return table(("a model and its fine-tune", "KL, bits/byte", "gain, bits/byte"), rows)


def chat_table(demo: Path) -> str:
    rows = [(name, number(kl)) for name, kl in footguns.chat(demo / "models", load_texts("pocket")).items()]
    return table(("a model and its fine-tune", "KL, bits/byte"), rows)


def study_of_calibration(demo: Path, shared: Path | None) -> pd.DataFrame:
    """Pairs of every kind with estimated and exact KL, kept beside the picture of it."""
    here(shared, "models/stories260K")
    frame = calibration.calibration_study(demo, shared)
    frame.to_csv(DOCS / "study" / "calibration.csv", index=False, float_format="%.6g")
    pictures.save(calibration.calibration_picture(frame), DOCS / "pictures" / "calibration.png")
    return frame


def drawn_from_each(frame: pd.DataFrame) -> pd.DataFrame:
    """The estimate on texts drawn from either model of a pair: its size in nats per text, and over exact KL."""
    parts = [
        pd.DataFrame({
            "setting": frame["setting"], "texts": frame["texts"], "ratio": frame[f"drawn_ratio_{model}"],
            "nats": frame[f"drawn_estimate_{model}"] * frame["mean_bytes"] * np.log(2),
        })
        for model in "ab"
    ]  # fmt: skip
    return pd.concat(parts).dropna()


def calibration_table(frame: pd.DataFrame) -> str:
    """The estimate over exact KL in each setting: of whole texts and of parts, and on texts drawn from the models."""
    whole = frame[~frame["texts"].str.contains(", documentation|, source")]
    drawn = drawn_from_each(whole)
    rows = []
    for (texts, setting), part in whole.groupby(["texts", "setting"], sort=False):
        ratio = part["ratio"]
        some = drawn[(drawn["texts"] == texts) & (drawn["setting"] == setting)]
        asymmetry = np.exp(np.abs(np.log(part["exact_forward"] / part["exact_backward"])))
        rows.append((
            f"{setting} ({'stories260K' if texts.startswith('public') else 'pocket'})", len(part),
            two_digits(part["exact"].median()), spread(ratio),
            *(median(part[name]) for name in ("ratio_halves", "ratio_tokens")), median(some["ratio"]),
            median(asymmetry),
        ))  # fmt: skip
    columns = (
        "setting", "pairs", "exact KL, bits/byte", "estimate / exact (range)", "halves", "tokens", "drawn texts",
        "larger / smaller direction",
    )  # fmt: skip
    return table(columns, rows)


def two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def spread(ratio: pd.Series) -> str:
    if len(ratio) == 1:
        return two_digits(ratio.iloc[0])
    return f"{two_digits(ratio.median())} ({two_digits(ratio.min())} to {two_digits(ratio.max())})"


def median(values: pd.Series) -> str:
    return f"{values.median():.2f}" if values.notna().any() else ""


def range_table(frame: pd.DataFrame) -> str:
    """How far the estimate is exact KL on texts drawn from the models, by its size."""
    drawn = drawn_from_each(frame[~frame["texts"].str.contains(", documentation|, source")])
    edges, rows = (0, 10, 50, RANGE_LIMIT, 200, np.inf), []
    for low, high in pairwise(edges):
        part = drawn.loc[(drawn["nats"] > low) & (drawn["nats"] <= high), "ratio"]
        within = (f"{(np.maximum(part, 1 / part) <= factor).mean():.0%}" for factor in (1.5, 2))
        name = f"above {low:g}" if np.isinf(high) else f"{low:g} to {high:g}"
        rows.append((name, len(part), spread(part), *within))
    return table(("nats per text", "pairs", "estimate / exact (range)", "within 1.5", "within 2"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="What `klscale demo` left.")
    parser.add_argument("--shared", type=Path, help="Holds models/stories260K and texts/.")
    arguments = parser.parse_args()
    main(arguments.demo, arguments.shared)
