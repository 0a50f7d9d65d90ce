"""What `klscale validate` shows of tails: the estimates of a pair and the texts that make most of its KL; the results
of a store with and without the clip and the tails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from klscale.science.clip import CLIP_LIMIT
from klscale.science.estimates import Estimate
from klscale.science.robust import TRIMMED, trimmed_consistency
from klscale.show import cautions
from klscale.show.cautions import BY_KEY, CAUTIONS, Around
from klscale.show.columns import BITS, ESTIMATE, TEXTS, Column, estimate, number, percent, record, table, unit, within
from klscale.show.names import short_names, shortened
from klscale.show.pairs import OF_PAIR
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.show.text_sets import of_what, summary_of_texts, units
from klscale.studies.tails import ALTERNATIVES, ESTIMATORS, FILTERED, PairTails, Tails, Text
from klscale.studies.validity import TextSensitivity
from klscale.vectors.vectors import Vectors

LABELS = {
    "headline": "reported value",
    "clipped": "with clip",
    "unclipped": "no clip",
    "trimmed": "trimmed 1 %",
    "huber": "Huber",
}
SHOWN_MODELS = 5
"""Number of models that are named as those that the clip moves most."""
NAME, DOMAIN, DOCUMENT, BEGINNING = 30, 10, 16, 22
"""Characters of a model's name, of labels, and of a text, so that a row has 100."""
ROBUST = (
    f"trimmed: without the {TRIMMED:.0%} of texts farthest from the median, divided by "
    f"{trimmed_consistency(1 - TRIMMED):.3f} (a Gaussian keeps that share of its variance). Huber: his Proposal 2, "
    "which gives extreme texts little weight. Both diagnose a KL. Neither replaces it, as KL is about the whole "
    "variance."
)

# ------------------------------------------------------------------------------------------------------------ columns


def _signed(found: Estimate) -> str:
    return "0" if found.value == 0 else number(found, sign=True)


def _interval(found: Estimate) -> str:
    low, high = found.interval
    return "" if math.isnan(low) or low == high else f"{low:.3g} to {high:.3g}"


def _label(known: str | None, longest: int) -> str:
    return "" if known is None else plain(shortened(known, longest))


def _beginning(text: Text) -> str:
    return "" if text.beginning is None else plain(" ".join(text.beginning.split())[:BEGINNING])


CLIP = (
    *TEXTS,
    unit(),
    Column("clip", "The clip; of a text set without one, the pooled 2 % quantile of these vectors.", "nats"),
    Column("clip_is_frozen", "Whether the text set has this clip."),
    Column(
        "clip_source",
        "The source of the clip.",
        value=lambda it: "text set" if it.clip_is_frozen else "pooled 2 % quantile of these vectors, not frozen",
    ),
    Column(
        "estimators", "By name, what each estimator does; `headline` is the reported value.", value=lambda _: ESTIMATORS
    ),
    Column("trimmed_share", "Share of texts that trimming leaves out.", "share", lambda _: TRIMMED),
    Column(
        "trimmed_consistency",
        "Share of a Gaussian's variance that is left; the trimmed variance is divided by it.",
        "share",
        lambda _: float(trimmed_consistency(1 - TRIMMED)),
    ),
)
TEXT = (
    Column("position", "Its number in the set, from 0.", title="text", cell=lambda it: str(it.position)),
    Column("bytes", "Its length.", "bytes"),
    Column("domain", "Its domain; null: none."),
    Column("document", "Its document; null: none."),
    Column("beginning", "Its first 60 characters; null in a set without texts."),
)
LABELS_OF_TEXT = (
    Column("", title="domain", cell=lambda it: _label(it.text.domain, DOMAIN), words=True),
    Column("", title="document", cell=lambda it: _label(it.text.document, DOCUMENT), words=True),
    Column("", title="begins", cell=lambda it: _beginning(it.text), words=True),
)
POSITION = Column("", title="text", cell=lambda it: str(it.text.position))
BYTES = Column("", title="bytes", cell=lambda it: str(it.text.bytes))
CARRIED = (
    POSITION,
    Column("text", "The text.", within=TEXT),
    Column("share", "Its share of the KL.", "share", title="share", cell=lambda it: f"{it.share:.1%}"),
    Column(
        "change_without",
        "Change of the KL without it.",
        BITS,
        title="change",
        cell=lambda it: f"{it.change_without:+.2g}",
    ),
    Column(
        "log_likelihood_a",
        "Log-likelihood under a, as it enters the KL.",
        "nats",
        title="log-likelihoods",
        cell=lambda it: f"{it.log_likelihood_a:.0f}, {it.log_likelihood_b:.0f}",
    ),
    Column("log_likelihood_b", "The same under b.", "nats"),
    BYTES,
    *LABELS_OF_TEXT,
)
CARRIED_DOCUMENT = (
    Column("document", "The document."),
    Column("share", "Its share of the KL.", "share"),
    Column("n_texts", "Its texts.", "texts"),
)
PAIR_TAILS = (
    *CLIP,
    Column("a", "One model."),
    Column("b", "The other model."),
    *within(OF_PAIR, lambda it: it.measured),
    Column("n_left_out", "Texts that trimming leaves out.", "texts"),
    Column("estimates", "By estimator, its KL.", BITS, within=ESTIMATE, many=True),
    Column(
        "differences_to_headline",
        "By estimator, its KL less the reported value, paired.",
        BITS,
        lambda it: it.differences,
        within=ESTIMATE,
        many=True,
    ),
    Column(
        "largest_texts", "The texts that carry most of the KL.", value=lambda it: it.largest, within=CARRIED, many=True
    ),
    Column(
        "share_of_largest_percent_of_texts",
        "Share of the KL of the largest 1 % of texts.",
        "share",
        lambda it: it.share_of_percent,
    ),
    Column("share_of_ten_largest_texts", "Share of the KL of the largest ten.", "share", lambda it: it.share_of_ten),
    Column("effective_texts", "N / kurtosis: texts of equal share with the same relative error.", "texts"),
    Column("largest_document", "The document that carries most; null without documents.", within=CARRIED_DOCUMENT),
    estimate("length_explains", "Share of the KL that a straight line in text length explains.", "share"),
    estimate("length_alone", "Share of the KL that one difference per byte alone would make.", "share"),
)
MOVED = (
    Column("pair", "The two models."),
    estimate("headline", "The reported value."),
    estimate("estimate", "By this estimator."),
    Column("rank_headline", "Rank among all pairs by the reported value, 1 the nearest."),
    Column("rank", "Rank by this estimator."),
)


def _elsewhere(it: Any) -> str:
    return "" if it.n_other_place is None else f"{it.n_other_place:,} of {it.n_pairs:,}"


AGREEMENT = (
    Column("estimator", "The estimator.", title="KL", cell=lambda it: LABELS[it.estimator], words=True),
    Column("n_pairs", "Pairs compared.", "pairs"),
    estimate("ratio", "Its KL over the reported value, median over pairs.", "", title="ratio ± SE"),
    Column(
        "quartiles",
        "Quartiles of that ratio over pairs.",
        title="quartiles of ratio",
        cell=lambda it: "{:.3g} to {:.3g}".format(*it.quartiles),
    ),
    estimate("spearman", "Rank correlation over pairs with the reported values.", "", title="Spearman ± SE"),
    Column(
        "discordant",
        "Share of discordant pairs of pairs: the other one is nearer.",
        "share",
        lambda it: it.swapped,
        "discordant",
        lambda it: f"{it.swapped:.2%}",
    ),
    Column(
        "n_other_place",
        "Pairs nearest to another setting of the scale; null without a scale.",
        "pairs",
        title="elsewhere",
        cell=_elsewhere,
    ),
    Column("most_moved", "Pairs whose rank changes most.", within=MOVED, many=True),
)
SETTING = (
    Column("setting", "The setting of the scale."),
    Column("n_pairs", "Its pairs.", "pairs"),
    Column("medians", "By estimator, the median KL.", BITS, within=ESTIMATE, many=True),
    Column(
        "differences", "By estimator, that less the median reported value, paired.", BITS, within=ESTIMATE, many=True
    ),
)


def _run_columns(frozen: bool) -> tuple[Column, ...]:
    """The columns of runs; a run that could not be clipped is marked where there is a `frozen` clip."""
    mark = BY_KEY["unclipped"].mark

    def steps(it: Any) -> str:
        return f"{len(it.steps)}" + (f" {mark}" if frozen and not it.uses_clip else "")

    return (
        Column("run", "Name of the run.", title="run", cell=lambda it: plain(shortened(it.run, NAME)), words=True),
        Column("n_texts", "Texts.", "texts"),
        Column("n_dropped", "Texts left out.", "texts"),
        Column("steps", "Steps from and to.", "steps", title="steps", cell=steps),
        Column("uses_clip", "Whether KLs are with the clip."),
        Column("all_texts", "KL of each step.", BITS, within=ESTIMATE, many=True),
        Column("filtered", "The same without those texts.", BITS, within=ESTIMATE, many=True),
        Column("difference", "The second less the first, paired.", BITS, within=ESTIMATE, many=True),
        estimate("median", "Median over steps.", title="median KL ± SE"),
        estimate("median_filtered", "Median over steps without those texts.", title="filtered ± SE"),
        estimate(
            "median_difference",
            "The second less the first, paired.",
            title="difference ± SE",
            cell=lambda it: _signed(it.median_difference),
        ),
        Column(
            "mean_bytes",
            "Mean length of all texts.",
            "bytes",
            title="B, filtered",
            cell=lambda it: f"{it.mean_bytes:.1f}, {it.mean_bytes_kept:.1f}",
        ),
        Column("mean_bytes_kept", "Mean length of those kept.", "bytes"),
    )


SQUARED_NORM = (
    POSITION,
    Column("text", "The text.", within=TEXT),
    Column(
        "share",
        "Its share of the squared norm, the KL of all pairs together.",
        "share",
        title="share",
        cell=lambda it: f"{it.share:.2%}",
    ),
    Column("model", "The model with the largest part of that share."),
    BYTES,
    *LABELS_OF_TEXT,
)
LENGTH = (
    estimate("median", "Median share over pairs.", "share"),
    estimate("largest", "The largest share.", "share"),
    Column("pair", "The two models of that pair."),
)
BY_ESTIMATOR = (
    Column("kl", "KL by this estimator.", BITS),
    Column("standard_error", "Its standard error over texts.", BITS),
    Column("difference", "That less the reported value.", BITS),
    Column("difference_standard_error", "Its paired standard error.", BITS),
)
PAIR = (
    Column("a", "One model."),
    Column("b", "The other model."),
    Column("uses_clip", "Whether the reported value is with the clip."),
    Column("in_range", "Whether it is a KL."),
    Column("kurtosis", "Kurtosis of the log-likelihood difference."),
    Column("cautions", "Keys of the cautions that hold.", value=lambda it: cautions.keys(it.measured)),
    *(Column(name, f"{what[0].upper()}{what[1:]}.", within=BY_ESTIMATOR) for name, what in ESTIMATORS.items()),
)
TAILS = (
    *CLIP,
    Column("n_pairs", "Pairs compared.", "pairs"),
    Column("n_available", "All pairs.", "pairs"),
    Column("n_texts", "Fewest texts of a pair.", "texts", lambda it: int(it.found.pairs.n_texts.min())),
    Column("agreement", "The order of pairs by each estimator.", within=AGREEMENT, many=True),
    Column("settings", "The scale by each estimator.", within=SETTING, many=True),
    Column("moved_by_clip", "By model, the share of its values that the clip moves.", "share"),
    Column(
        "models_that_the_clip_does_not_serve",
        "Number of models where it moves more than 5 % of the values.",
        "models",
        lambda it: it.n_unserved,
    ),
    Column("runs", "Runs without the texts that change most.", within=_run_columns(False), many=True),
    Column(
        "share_of_squared_norm",
        "The texts that carry most of the KL of all pairs.",
        value=lambda it: it.leverage,
        within=SQUARED_NORM,
        many=True,
    ),
    Column(
        "share_of_squared_norm_of_largest_percent",
        "Share of the largest 1 % of texts.",
        "share",
        lambda it: it.leverage_of_percent,
    ),
    Column("length_explains", "Share of a KL that a line in text length explains; null: none.", within=LENGTH),
    Column("length_alone", "Share that one difference per byte alone would make; null: none.", within=LENGTH),
    Column("pairs", "Each pair.", value=lambda it: it.listed, within=PAIR, many=True),
)


class _Source:
    """A result with more beside it."""

    def __init__(self, found: Any, **more: Any) -> None:
        self.found = found
        self.__dict__ |= more

    def __getattr__(self, name: str) -> Any:
        return getattr(self.found, name)


def pair_tails_record(found: PairTails, vectors: Vectors) -> dict[str, Any]:
    """A pair's estimates, and the texts that carry its KL."""
    return record(PAIR_TAILS, _Source(found, measured=Around(vectors).pair(found.a, found.b, found.kl)))


def tails_record(found: Tails, vectors: Vectors) -> dict[str, Any]:
    """All results of a store, with the estimates of each pair."""
    pairs, around = found.pairs, Around(vectors)

    def listed(n: int, a: str, b: str) -> SimpleNamespace:
        by = {
            name: SimpleNamespace(
                kl=pairs.value[e, n],
                standard_error=pairs.standard_error[e, n],
                difference=pairs.difference[e, n],
                difference_standard_error=pairs.difference_standard_error[e, n],
            )
            for e, name in enumerate(ESTIMATORS)
        }
        measured = around.pair(a, b, vectors.kl()[a, b])
        return SimpleNamespace(
            a=a,
            b=b,
            uses_clip=pairs.uses_clip[n],
            in_range=found.in_range[n],
            kurtosis=pairs.kurtosis[n],
            measured=measured,
            **by,
        )

    return record(TAILS, _Source(found, listed=[listed(n, *pair) for n, pair in enumerate(pairs.pairs)]))


# ---------------------------------------------------------------------------------------------------- for a person


def print_summary(sensitivity: TextSensitivity, found: PairTails | Tails, vectors: Vectors) -> None:
    """The answer in at most five sentences, then cautions; tables with the rest follow."""
    out.print(describe_texts(found.texts))
    say(f"{of_what(sensitivity)}; {units(sensitivity)}.\n")
    of_tails = _summary_of_pair(found) if isinstance(found, PairTails) else _summary_of_all(found)
    for sentence in [*summary_of_texts(sensitivity), *of_tails]:
        say(f"- {sentence}")
    around = Around(vectors)
    if isinstance(found, PairTails):
        cautions.print_footnotes(found.texts, [around.pair(found.a, found.b, found.kl)])
        return
    names = found.pairs.pairs[: found.n_pairs]
    i, j = (np.array([vectors.position(pair[side]) for pair in names], dtype=np.int64) for side in (0, 1))
    measured = around.pairs(i, j, by_whole_texts=True)
    for caution in CAUTIONS:
        if count := int(caution.holds(measured).sum()):
            say(f"{caution.mark} {count:,} of {found.n_pairs:,} pairs: {caution.footnote}", "yellow")
    cautions.print_footnotes(found.texts, ())


def _summary_of_pair(found: PairTails) -> list[str]:
    """The effect of the tails and of text length on this KL, in sentences."""
    if not found.largest:
        return ["The two models differ by the same amount on every text: their KL is 0."]
    kl, without = found.kl, found.estimates
    robust = f"; without the {found.n_left_out:,} most extreme texts {number(without['trimmed'])}"
    clipped = "" if found.kl.uses_clip else f"; with the clip {number(without['clipped'])}"
    ten = f" Ten of {kl.n_texts:,} texts carry {found.share_of_ten:.0%} of it." if kl.n_texts > 10 else ""
    return [
        f"KL is {number(kl)} bits/byte{robust if found.n_left_out else ''}{clipped}.{ten}",
        *(
            []
            if math.isnan(found.length_explains.value)
            else [f"Text length explains {_share(found.length_explains)}."]
        ),
    ]


def _summary_of_all(found: Tails) -> list[str]:
    """The effect of the tails, the clip and text length on all these KLs, in sentences."""
    of = {row.estimator: row for row in found.agreement}
    same = _as_the_headline(found)
    ways = {"trimmed": f"without {TRIMMED:.0%} of the texts"}
    ways |= {"unclipped": "without the clip"} if found.clip_is_frozen else {"clipped": "with a clip"}
    shares = [f"{of[name].swapped:.1%} {way}" for name, way in ways.items() if name not in same]
    sentences = [f"Discordant pairs of pairs: {', '.join(shares)}."] if shares and found.n_pairs > 1 else []
    if (length := found.length_explains) is not None:
        most = f"{_two_digits(100 * length.largest.value)} % at most"
        sentences.append(f"Text length explains {percent(length.median)} of a KL (median pair), {most}.")
    return sentences


def print_pair_tails(found: PairTails) -> None:
    """Each estimate of a pair's KL, the texts that make most of it, and the share that their length explains."""
    kl = found.kl
    a, b = (plain(name) for name in short_names([found.a, found.b]))
    _print_clip(found)
    same = [name for name, difference in found.differences.items() if difference.value == 0]

    def difference(name: str, cell: Callable[[Estimate], str]) -> str:
        return cell(found.differences[name]) if name in found.differences else ""

    columns = (
        Column("", title=" ", cell=lambda name: LABELS[name], words=True),
        Column("", title="KL ± SE, bits/byte", cell=lambda name: number(found.estimates[name])),
        Column("", title="95 % interval", cell=lambda name: _interval(found.estimates[name])),
        Column("", title="difference ± SE", cell=lambda name: difference(name, _signed)),
        Column("", title="95 % interval", cell=lambda name: difference(name, _interval)),
    )
    out.print(table(columns, [name for name in found.estimates if name not in same], f"\nKL of {a} and {b}"))
    say(_footnote(same, ROBUST), "dim")
    if found.n_left_out and math.isnan(found.differences["trimmed"].interval[0]):
        say(
            f"The trimmed value leaves out {found.n_left_out} texts, too few for an interval of the difference. Its "
            "standard error is a lower bound.",
            "dim",
        )
    if not found.largest:
        out.print("\nThe two models differ by the same amount on every text: no text has a share of a KL of 0.")
        return
    out.print(table(CARRIED, found.largest, "\nThe texts with the largest share of it"))
    say(
        "share: of the KL; change: of the KL without the text, bits/byte; log-likelihoods: of both models, nats, as "
        "they enter the KL; texts are counted from 0.",
        "dim",
    )
    out.print()
    say(
        f"The ten largest of {kl.n_texts:,} texts carry {found.share_of_ten:.1%} of the KL, the largest "
        f"{_largest(kl.n_texts)} {found.share_of_percent:.1%}. {found.effective_texts:,.0f} texts of equal share "
        f"would give the same relative standard error (N / kurtosis, kurtosis {kl.kurtosis:.1f})."
    )
    if (document := found.largest_document) is not None:
        say(
            f"The largest of its documents, {plain(document.document)}, carries {document.share:.1%} of it with "
            f"{document.n_texts} of the texts."
        )
    if math.isnan(found.length_explains.value):
        say("Text length explains nothing: all texts have one length.")
    else:
        say(
            f"Text length: a straight line in it explains {_share(found.length_explains)} of the KL; one difference "
            f"per byte alone would make {_share(found.length_alone)} of it."
        )


def print_tails(found: Tails) -> None:
    """All results with and without the clip and the tails."""
    _print_clip(found)
    drawn = f" of {found.n_available:,}, drawn at random" if found.n_pairs < found.n_available else ""
    out.print(f"{found.n_pairs:,} pairs of models{drawn}; {int(found.in_range[: found.n_pairs].sum()):,} in range.")
    _print_agreement(found)
    _print_moved(found)
    _print_settings(found)
    _print_clip_of_models(found)
    _print_runs(found)
    _print_squared_norm(found)
    _print_length(found)


def _print_clip(found: PairTails | Tails) -> None:
    if not found.clip_is_frozen:
        out.print()
        say(
            "The text set has no clip, and reported values are unclipped. 'with clip' uses the pooled 2 % quantile of "
            f"these models, {found.clip:.1f} nats.",
            "dim",
        )


def _footnote(same: list[str], text: str) -> str:
    """The text, after the estimators that equal the reported value and are not shown."""
    return (f"{', '.join(LABELS[name] for name in same)}: the same as the reported value. " if same else "") + text


def _print_agreement(found: Tails) -> None:
    same = _as_the_headline(found)
    if len(same) == len(ALTERNATIVES):
        out.print("\nNo clip and no tail changes any KL: every estimate is the reported value.")
        return
    rows = [row for row in found.agreement if row.estimator not in same]
    out.print(table(AGREEMENT, rows, "\nThe order of pairs, against the reported values"))
    elsewhere = (
        "; elsewhere: pairs nearest to another setting, with pair and scale by this estimator" if found.settings else ""
    )
    text = (
        "ratio: to the reported value, median over pairs; Spearman: rank correlation over pairs; discordant: pairs of "
        f"pairs in the opposite order{elsewhere}. ± is over texts. {ROBUST}"
    )
    say(_footnote(same, text), "dim")


def _as_the_headline(found: Tails) -> list[str]:
    """Estimators that give the reported value of every pair."""
    differ = (found.pairs.difference != 0).any(axis=1)
    return [name for name, other in zip(ESTIMATORS, differ, strict=True) if not other and name != "headline"]


def _print_moved(found: Tails) -> None:
    """The pair whose rank changes most, over all estimators."""
    moved = [(row.estimator, one) for row in found.agreement for one in row.most_moved[:1]]
    if not moved:
        return
    estimator, one = max(moved, key=lambda item: abs(item[1].rank - item[1].rank_headline))
    a, b = (plain(name) for name in short_names(one.pair))
    say(
        f"Most moved: {a} and {b}, from rank {one.rank_headline:,} ({one.headline}) to {one.rank:,} ({one.estimate}), "
        f"{LABELS[estimator]}."
    )


def _print_settings(found: Tails) -> None:
    if not found.settings:
        return
    names = ["headline"] + [name for name in ALTERNATIVES if any(row.differences[name].value for row in found.settings)]

    def median(name: str) -> Column:
        return Column("", title=f"{LABELS[name]} ± SE", cell=lambda row: number(row.medians[name]))

    columns = (Column("", title="setting", cell=lambda row: plain(row.setting), words=True), *map(median, names))
    out.print(table(columns, found.settings, "\nThe scale: medians, bits/byte"))
    out.print("± is the standard error over texts; --json has the paired differences.", style="dim")


def _print_clip_of_models(found: Tails) -> None:
    moved = sorted(found.moved_by_clip.items(), key=lambda item: -item[1])
    fractions = np.array([fraction for _, fraction in moved])
    consequence = ""
    if found.n_unserved:
        consequence = "; their KLs are unclipped" if found.clip_is_frozen else ""
    out.print()
    say(
        f"The clip moves {np.median(fractions):.1%} of the values of the median model, {fractions.max():.1%} at most. "
        f"It moves more than {CLIP_LIMIT:.0%} of the values of {found.n_unserved:,} of {len(moved):,} "
        f"models{consequence}."
    )
    listed = [(name, fraction) for name, fraction in moved[:SHOWN_MODELS] if fraction > 0]
    names = short_names([name for name, _ in listed], NAME)
    if listed:
        pairs = zip(names, listed, strict=True)
        say("Most: " + "; ".join(f"{plain(name)} {fraction:.1%}" for name, (_, fraction) in pairs) + ".")


def _print_runs(found: Tails) -> None:
    if not found.runs:
        return
    short = dict(zip([run.run for run in found.runs], short_names([run.run for run in found.runs], NAME), strict=True))
    runs = [_Source(run, run=short[run.run]) for run in found.runs]
    title = f"\nRuns without the {FILTERED:.0%} of texts that change most: KL of neighbours, bits/byte"
    out.print(table(_run_columns(found.clip_is_frozen), runs, title))
    say(
        "steps: from one checkpoint past warm-up to the next; B: mean bytes of a text, of all and of those kept. The "
        "filter is the published one (Kishino et al., arXiv 2505.15353). By design it leaves out the texts that change "
        "most.",
        "dim",
    )
    if found.clip_is_frozen and not all(run.uses_clip for run in found.runs):
        out.print(BY_KEY["unclipped"].note, style="yellow")


def _print_squared_norm(found: Tails) -> None:
    if not found.leverage:
        return
    out.print(table(SQUARED_NORM, found.leverage, "\nThe texts with the largest share of the KL of all pairs"))
    n = found.n_common
    say(
        f"share: of the sum of KL over all pairs, with the text set's clip, as in maps; equal shares would be "
        f"{1 / n:.2%}. Of {n:,} texts the largest {_largest(n)} {'carry' if n > 100 else 'carries'} "
        f"{found.leverage_of_percent:.1%}.",
        "dim",
    )
    model, times = Counter(row.model for row in found.leverage).most_common(1)[0]
    name = plain(short_names([model])[0])
    say(f"On {times} of these {len(found.leverage)} texts {name} has the largest part.", "dim")


def _largest(n_texts: int) -> str:
    """The number of texts in the largest 1 %, at least one, in words."""
    return "one" if n_texts <= 100 else f"{-(-n_texts // 100):,}"


def _print_length(found: Tails) -> None:
    out.print()
    if found.length_explains is None:
        one = len(set(found.texts.bytes.tolist())) == 1
        say(f"Text length explains nothing: {'all texts have one length' if one else 'there is no KL'}.")
        return
    row = found.length_explains
    a, b = (plain(name) for name in short_names(row.pair))
    say(
        f"A straight line in the length of the texts explains {percent(row.median)} of a KL (median over pairs). "
        f"The largest share is that of {a} and {b}: {_share(row.largest)}."
    )


def _share(estimate: Estimate) -> str:
    value, low, high = (_two_digits(100 * share) for share in (estimate.value, *estimate.interval))
    return f"{value} % (95 %: {low} to {high} %)"


def _two_digits(value: float) -> str:
    """A number with two digits that tell; 100 as such, not as 1e+02."""
    return f"{float(f'{value:.2g}'):g}"
