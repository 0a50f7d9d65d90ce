"""What `klscale validate` shows of the texts: how far KL depends on them, and what another text set says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from klscale.errors import counted
from klscale.inputs.texts import TextSet
from klscale.show.columns import BITS, HEAD, INTERVAL, Column, estimate, lines, number, record, table, unit, within
from klscale.show.names import short_names, shortened
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.correlations import Correlation
from klscale.studies.domains import Domain, Domains
from klscale.studies.text_set_agreement import TextSetComparison
from klscale.studies.validity import ErrorGrowth, SplitHalves, TextSensitivity, TextsNeeded

NAME = 24
"""Characters of the name of a domain."""

# ------------------------------------------------------------------------------------------------------------ columns


def _percent(value: float) -> str:
    return f"{value:.1%}" if value < 10 else "over 1,000%"


def _with_interval(found: Correlation | None) -> str:
    if found is None:
        return ""
    if found.interval is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})"


def _rank(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def _name(it: Domain) -> str:
    return plain(shortened(it.name, NAME))


CORRELATION = (
    Column("value", "The correlation over pairs of models."),
    *INTERVAL,
    Column("interval_kind", "`models`: over models; `splits`: the central 95 % of the splits; empty: none."),
)


def _correlation(key: str, meaning: str) -> Column:
    return Column(key, meaning, within=CORRELATION)


NEEDED = (
    Column("estimator", "The estimator that the KL is by.", title="by", words=True),
    Column(
        "relative_error",
        "Standard error over KL.",
        "share",
        title="relative SE of KL",
        cell=lambda it: f"{it.relative_error:.0%}",
    ),
    Column("median", "Texts that the median pair needs for it.", "texts", title="median pair"),
    Column("worst", "Texts that the worst pair needs.", "texts", title="worst pair"),
    Column("worst_pair", "The two models of that pair."),
)
HALVES = (
    Column("n_splits", "Random splits of the texts into halves.", "splits"),
    Column("typical", "Factor less 1 between the KLs of both halves, median over splits and pairs.", "share"),
    Column("quartiles", "Quartiles of it over pairs.", "share"),
    Column("largest", "Its largest value over pairs.", "share"),
    Column("largest_pair", "The two models of that pair."),
    _correlation("pearson", "Pearson correlation of log KL between halves."),
    _correlation("spearman", "Spearman correlation of KL between halves."),
    _correlation("pearson_whole", "The first, expected between two sets of as many texts as this one."),
    _correlation("spearman_whole", "The second, likewise."),
)
GROWTH = (
    Column("n_texts", "Sizes of the blocks.", "texts"),
    Column("standard_deviation", "Relative standard deviation of KL among disjoint random blocks.", "share"),
    Column("quartiles", "Quartiles of it over pairs.", "share"),
    Column("predicted", "What the standard error predicts for it.", "share"),
    Column(
        "typical", "Median difference of log KL between two blocks, by the factor of a normal distribution.", "share"
    ),
    estimate("slope", "Slope of ln(`typical`) on ln(texts); -1/2 for normal errors.", ""),
    Column("slope_normal", "That slope for normal errors at these sizes."),
    Column("document_effect", "Design effect of documents: variance of KL over that of independent texts."),
)


def _ratio(it: Domain) -> str:
    low, high = it.ratio_quartiles
    return f"{it.ratio:.2f} ({low:.2f} to {high:.2f})"


DOMAIN = (
    Column("name", "Name of the domain.", title="domain", cell=_name, words=True),
    Column("n_texts", "Its texts.", "texts", title="texts"),
    Column("n_documents", "Its documents.", "documents", title="documents"),
    Column("mean_bytes", "Mean length of its texts.", "bytes", title="bytes", cell=lambda it: f"{it.mean_bytes:.0f}"),
    estimate("kl", "Median over pairs of KL within it.", title="KL ± SE, bits/byte"),
    Column("ratio", "That KL over the KL of all texts, median over pairs.", title="KL / KL of all", cell=_ratio),
    Column("ratio_quartiles", "Quartiles of it over pairs."),
    Column(
        "agreement",
        "Rank correlation over pairs with KL on all other texts.",
        title="ranking as the rest",
        cell=lambda it: _rank(it.agreement),
    ),
    Column("change", "Relative change of KL without this domain, median over pairs.", "share"),
    Column("by_chance", "Standard deviation of that if as many random texts were left out.", "share"),
    Column("largest_change", "The largest change over pairs.", "share"),
    Column("largest_pair", "The two models of that pair."),
    Column("ranking", "Rank correlation over pairs of KL without this domain with KL on all texts."),
)
WITHOUT = (
    Column("", title="without", cell=_name, words=True),
    Column("", title="KL changes by", cell=lambda it: f"{it.change:+.1%}"),
    Column("", title="by chance", cell=lambda it: f"± {it.by_chance:.1%}"),
    Column("", title="at most", cell=lambda it: f"{it.largest_change:+.0%}"),
    Column("", title="ranking as the whole", cell=lambda it: _rank(it.ranking)),
)
"""Of a `Domain` that is left out."""
DOMAIN_TEST = (
    Column("pairs", "The pairs of models tested."),
    Column("p_values", "Of each pair alone.", "probability"),
    Column("adjusted", "Of each pair, for all pairs together.", "probability"),
    Column("p_value", "The smallest of the adjusted ones.", "probability"),
    Column("n_different", "Pairs whose adjusted p is at most 5 %.", "pairs"),
    Column("n_permutations", "Permutations of the labels.", "permutations"),
)
DOMAINS = (
    Column("domains", "Each domain.", within=DOMAIN, many=True),
    Column("small", "Domains with too few texts or documents."),
    Column("kl_of_pairs", "KL of each pair (rows) in each domain.", BITS, lambda it: it.kl),
    Column("standard_errors_of_pairs", "Its standard errors.", BITS, lambda it: it.standard_error),
    Column("between", "Share of the variance between the means of domains, median over pairs.", "share"),
    Column("between_by_chance", "That share with random labels.", "share"),
    Column("test", "Whether KL differs between domains; null where this cannot be tested.", within=DOMAIN_TEST),
)
PAIR = (
    Column("a", "One model."),
    Column("b", "The other model."),
    Column("kl", "KL divergence on the texts that all models have.", BITS),
    Column("standard_error", "Its standard error over texts.", BITS),
)
SENSITIVITY = (
    *HEAD,
    unit(),
    *within(
        (
            Column("n_texts", "Texts that all models have.", "texts"),
            Column("n_documents", "Their documents, where texts share them; else null.", "documents"),
            Column("n_models", "Models.", "models"),
            Column("pairs", "Each pair looked at.", value=lambda it: _pairs(it), within=PAIR, many=True),
            Column("n_available", "All pairs.", "pairs"),
            Column("n_identical", "Pairs with the same difference on every text: their KL is 0.", "pairs"),
            Column("needed", "Number of texts for a relative error.", within=NEEDED, many=True),
            Column("halves", "One half of the texts against the other.", within=HALVES),
            Column("growth", "The relative error of KL from fewer texts.", within=GROWTH),
            Column("domains", "KL by domain; null without domains.", within=DOMAINS),
            Column("notes", "What to know of the texts."),
        ),
        lambda it: it.found,
    ),
)
TWO_SETS_PAIR = (
    Column("a", "One model."),
    Column("b", "The other model."),
    Column("first", "On the first text set.", within=PAIR[2:]),
    Column("second", "On the second text set.", within=PAIR[2:]),
)
TWO_SETS = (
    unit(),
    Column("names", "Names of both text sets."),
    Column("n_texts", "Texts of each.", "texts"),
    Column("n_models", "Models on both.", "models"),
    Column("unmatched", "Models on one of them alone."),
    Column("pairs", "Each pair.", value=lambda it: _pairs_of_two(it), within=TWO_SETS_PAIR, many=True),
    Column("n_available", "Pairs that there are.", "pairs"),
    Column("n_identical", "Pairs without a KL.", "pairs"),
    Column("ratio", "KL on the second set over KL on the first, median over pairs."),
    Column(
        "ratio_interval_low", "Lower end of its 95 % interval over models.", "", lambda it: _end(it.ratio_interval, 0)
    ),
    Column("ratio_interval_high", "Upper end of it.", "", lambda it: _end(it.ratio_interval, 1)),
    Column("ratio_range", "Smallest and largest ratio over pairs."),
    Column("spread", "Robust standard deviation over pairs of the log ratio.", "share"),
    Column("spread_by_error", "What the standard errors alone give.", "share"),
    _correlation("pearson", "Pearson correlation of log KL; null below three pairs."),
    _correlation("spearman", "Spearman correlation of KL."),
    _correlation("kendall", "Kendall correlation of KL."),
    Column("procrustes", "Disparity of both maps: 0 is the same shape, 1 nothing in common."),
    Column("procrustes_by_chance", "Its mean over random matchings of the models."),
    Column("procrustes_p_value", "Share of random matchings that are as near.", "probability"),
    Column("nearest", "Models with the same nearest model on both sets.", "models"),
    Column(
        "nearest_interval_low",
        "Lower end of the 95 % interval of their share.",
        "share",
        lambda it: it.nearest_interval[0],
    ),
    Column("nearest_interval_high", "Upper end of it.", "share", lambda it: it.nearest_interval[1]),
    Column("nearest_by_chance", "That share by chance.", "share"),
    Column("notes", "What to know of both sets."),
)


def _end(ends: tuple[float, float] | None, place: int) -> float | None:
    return None if ends is None else ends[place]


def _pairs(found: TextSensitivity) -> list[SimpleNamespace]:
    rows = zip(found.pairs, found.kl, found.standard_error, strict=True)
    return [SimpleNamespace(a=a, b=b, kl=kl, standard_error=error) for (a, b), kl, error in rows]


def _pairs_of_two(found: TextSetComparison) -> list[SimpleNamespace]:
    def on(place: int, n: int) -> SimpleNamespace:
        return SimpleNamespace(kl=found.kl[n, place], standard_error=found.standard_error[n, place])

    return [SimpleNamespace(a=a, b=b, first=on(0, n), second=on(1, n)) for n, (a, b) in enumerate(found.pairs)]


def sensitivity_record(found: TextSensitivity, texts: TextSet) -> dict[str, Any]:
    """How far KL depends on the texts."""
    return record(SENSITIVITY, SimpleNamespace(texts=texts, found=found))


def comparison_record(found: TextSetComparison) -> dict[str, Any]:
    """The same models on two text sets."""
    return record(TWO_SETS, found)


# ---------------------------------------------------------------------------------------------- one text set, printed


def of_what(found: TextSensitivity | TextSetComparison) -> str:
    """How many models and pairs were looked at."""
    looked_at = len(found.pairs) + found.n_identical
    drawn = "" if looked_at == found.n_available else f" of {found.n_available:,}, drawn at random"
    identical = f", {found.n_identical:,} of them without a KL above 0" if found.n_identical else ""
    return f"{found.n_models:,} models, {counted(looked_at, 'pair')}{drawn}{identical}"


def units(found: TextSensitivity) -> str:
    """How many texts, and what of them counts as independent."""
    if found.n_documents is None:
        return f"{found.n_texts:,} texts, taken as independent"
    return f"{found.n_texts:,} texts of {found.n_documents:,} documents, which stay whole"


def summary_of_texts(found: TextSensitivity) -> list[str]:
    """The answer in three sentences or fewer: how well KL is known, whether other texts would rank pairs as these do,
    whether domains disagree."""
    made = []
    alone = len(found.pairs) == 1
    if found.needed:
        relative = found.standard_error / found.kl
        worst, over = ("", "") if alone else (f"; worst pair {relative.max():.0%}", " (median pair)")
        made.append(
            f"{'This KL' if alone else 'A KL'} is known to {np.median(relative):.0%} (standard error{worst}); to 10% "
            f"with {found.needed[0].median:,} texts{over}."
        )
    elif found.pairs:
        documents = "" if found.n_documents is None else f" of {found.n_documents:,} documents"
        few = f"{found.n_texts:,} texts{documents} are too few to tell how well a KL is known"
        made.append(f"{few}: trust no standard error below.")
    if alone and found.halves is not None:
        made.append(f"Random halves of the texts differ by {_factor(found.halves.typical)} in KL (median split).")
    elif found.halves is not None and (whole := found.halves.spearman_whole) is not None:
        interval = "too few models for an interval"
        if whole.interval is not None:
            interval = "95 % over models: {:.2f} to {:.2f}".format(*whole.interval)
        made.append(
            f"Ranks of pairs on {found.n_texts:,} other such texts: Spearman {whole.value:.2f} with these ({interval})."
        )
    if found.domains is not None and (test := found.domains.test) is not None:
        if alone:
            made.append(f"Whether it is the same in all domains: p = {test.p_value:.2g}.")
        else:
            answer = f"{test.n_different:,} of {len(test.pairs):,} pairs"
            made.append(f"KL differs between domains for {answer} (5 % for all together).")
    return made


def print_sensitivity(found: TextSensitivity) -> None:
    """Print how far KL depends on the texts; for a single pair, without the parts that need several."""
    if found.needed:
        print_texts_needed(found.needed)
    if found.halves is not None:
        _print_halves(found.halves, found)
    if found.growth is not None:
        _print_growth(found.growth, found)
    if found.domains is not None:
        _print_domains(found.domains, found)
    for note in found.notes:
        say(plain(note), "yellow")


def print_texts_needed(needed: Sequence[TextsNeeded]) -> None:
    """Print the number of texts of this kind for a relative standard error."""
    alone = all(row.median == row.worst for row in needed)
    columns = [replace(NEEDED[2], title="texts")] if alone else NEEDED[2:]
    out.print("\nTexts that KL needs, by the standard error found here", style="bold")
    out.print(table((*NEEDED[:2], *columns), needed))
    if not alone:
        worst = {row.estimator: row.worst_pair for row in needed}
        same = len(set(worst.values())) == 1
        for estimator, pair in [*worst.items()][: 1 if same else None]:
            say(f"worst pair{'' if same else f' by {estimator}'}: {_both(pair)}", "dim")


def _both(pair: tuple[str, str]) -> str:
    """Two models by short names that differ."""
    return " and ".join(map(plain, short_names(pair, 44)))


def _print_halves(halves: SplitHalves, found: TextSensitivity) -> None:
    out.print(f"\nOne half of the texts against the other, {halves.n_splits} random splits", style="bold")
    if len(found.pairs) == 1:
        say(f"KL differs by {_factor(halves.typical)} in the median split.")
        return
    say(
        f"KL differs by {_factor(halves.typical)} in the median pair (quartiles over pairs "
        f"{' to '.join(map(_factor, halves.quartiles))}), by {_factor(halves.largest)} in the worst "
        f"({_both(halves.largest_pair)})."
    )
    if halves.pearson is None:
        say("Fewer than three pairs that differ: no correlation.", "dim")
        return
    rows = [
        ("log KL (Pearson)", _with_interval(halves.pearson), _with_interval(halves.pearson_whole)),
        ("ranking (Spearman)", _with_interval(halves.spearman), _with_interval(halves.spearman_whole)),
    ]
    out.print(table(lines("correlation over pairs", "of halves", "of whole sets"), rows))
    kind = "95 % over models"
    if halves.pearson.interval_kind != "models":
        kind = "the central 95 % of the splits, no interval over models: fewer than five models, a run as one"
    say(f"In brackets {kind}. Whole sets: 2 r / (1 + r). High where pairs differ much.", "dim")


def _factor(change: float) -> str:
    """A change in percent, or as a factor where it is large."""
    if change > 999:
        return "more than a factor of 1,000"
    return f"{change:.0%}" if change < 2 else f"a factor of {1 + change:.3g}"


def _print_growth(growth: ErrorGrowth, found: TextSensitivity) -> None:
    over = "" if len(found.pairs) == 1 else ", median over pairs"
    relative = float(np.median(found.standard_error / found.kl))
    sizes = zip(growth.n_texts, growth.predicted, growth.standard_deviation, growth.typical, strict=True)
    rows = [
        (f"{n:,}", f"{predicted:.1%}", _percent(among), _percent(typical)) for n, predicted, among, typical in sizes
    ]
    columns = lines("texts", "as predicted from SE", "among blocks", "typical difference", words=False)
    title = f"\nRelative error of KL from fewer texts{over}"
    out.print(table(columns, [(f"{found.n_texts:,}", f"{relative:.1%}", "", ""), *rows], title))
    if growth.slope is not None:
        slope, (low, high) = growth.slope, growth.slope.interval
        say(
            f"The typical difference falls with the texts to the power {number(slope)} "
            f"(95 % {low:.2f} to {high:.2f}, jackknife); normal errors: {growth.slope_normal:.2f}. {_tails(growth)}"
        )
    if growth.document_effect is not None:
        say(
            f"Design effect of documents: the variance of KL is {growth.document_effect:.2g} times that of as many "
            f"independent texts{over and ' (median over pairs)'}."
        )
    say(
        "among blocks: standard deviation over disjoint random blocks of texts. Typical difference: the median "
        "difference "
        "between two blocks, over that of two normal values with a standard deviation of 1.",
        "dim",
    )


def _tails(growth: ErrorGrowth) -> str:
    """What the slope says of the tails."""
    if growth.slope is None or growth.slope.interval[1] < growth.slope_normal:
        return ""
    low, high = growth.slope.interval
    if low > growth.slope_normal:
        return "Heavy tails: few texts carry much of KL, and small text sets mostly miss them."
    return "No sign of heavy tails." if high < growth.slope_normal / 2 else "Too uncertain to tell heavy tails."


def _print_domains(found: Domains, whole: TextSensitivity) -> None:
    alone, clustered = len(whole.pairs) == 1, whole.n_documents is not None
    over = "" if alone else ", median over pairs"
    hidden = {"documents": not clustered, "ranking as the rest": alone, "at most": alone, "ranking as the whole": alone}
    columns = [column for column in DOMAIN if not hidden.get(column.title)]
    if alone:
        columns = [
            replace(column, cell=lambda it: f"{it.ratio:.2f}") if column.key == "ratio" else column
            for column in columns
        ]
    out.print(table(columns, found.domains, f"\nWithin each domain{over}"))
    without = [column for column in WITHOUT if not hidden.get(column.title)]
    out.print(table(without, found.domains, f"\nLeaving one domain out{over}"))
    if not alone:
        row = max(found.domains, key=lambda row: abs(row.largest_change))
        say(f"most: {row.largest_change:+.0%} without {_name(row)}, for {_both(row.largest_pair)}", "dim")
    if (test := found.test) is not None:
        what = "documents" if clustered else "texts"
        answer = f"Whether all domains have one KL: p = {test.p_value:.2g}"
        if not alone:
            answer = (
                f"KL differs between domains for {test.n_different:,} of {len(test.pairs):,} pairs tested, at 5 % for "
                f"all together (smallest p {test.p_value:.2g})"
            )
        say(f"{answer}; {test.n_permutations} studentised permutations of the labels of {what}.")
    if found.small:
        listed = plain(", ".join(found.small[:8])) + (", ..." if len(found.small) > 8 else "")
        say(f"Too few texts or documents to stand alone: {listed}.", "dim")
    over_pairs = "" if alone else "; in brackets: quartiles over pairs; ranking: Spearman over pairs"
    say(f"± SE over texts; by chance: the standard deviation if as many random texts were left out{over_pairs}", "dim")


# -------------------------------------------------------------------------------------------------------- two text sets


def print_text_set_comparison(found: TextSetComparison, first: TextSet, second: TextSet) -> None:
    """The same models on two text sets, for a person."""
    for texts in (first, second):
        out.print(describe_texts(texts))
    say(f"{of_what(found)}. Values of two text sets are not expected to be equal.\n")
    rows = [
        ("KL, second / first (median)", f"{found.ratio:.3g}", _ends(found.ratio_interval, ".3g")),
        ("  range", _ends(found.ratio_range, ".3g"), ""),
        ("  spread about the median", f"{found.spread:.0%}", ""),
        ("  expected from error over texts alone", f"{found.spread_by_error:.0%}", ""),
    ]
    named = (
        ("log KL (Pearson)", found.pearson),
        ("ranking (Spearman)", found.spearman),
        ("ranking (Kendall)", found.kendall),
    )
    rows += [(name, f"{one.value:.3f}", _ends(one.interval, ".3f")) for name, one in named if one is not None]
    out.print(table(lines("over pairs", " ", "95 % over models"), rows))
    low, high = found.nearest_interval
    say(
        f"\n{found.nearest:,} of {found.n_models:,} models have the same nearest model on both ({low:.0%} to "
        f"{high:.0%}, models taken as independent; by chance {found.nearest_by_chance:.0%})."
    )
    if found.procrustes is not None:
        say(
            f"Maps (two principal components, rotated and scaled onto each other) differ by {found.procrustes:.3f}, "
            f"where 0 is the same shape; random matchings: {found.procrustes_by_chance:.3f} in the mean, "
            f"p = {found.procrustes_p_value:.2g}."
        )
    for name, missing in zip(found.names, found.unmatched, strict=True):
        if missing:
            listed = plain(", ".join(missing[:5])) + (", ..." if len(missing) > 5 else "")
            say(f"Only on {plain(name)}: {listed}", "dim")
    for note in found.notes:
        say(plain(note), "yellow")


def _ends(ends: tuple[float, float] | None, digits: str) -> str:
    return "" if ends is None else f"{ends[0]:{digits}} to {ends[1]:{digits}}"
