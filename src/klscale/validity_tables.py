"""What `klscale validate` prints of the texts: how far KL depends on them, and what another text set says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from klscale.tables import describe_texts, number, out, plain, print_notes, table
from klscale.texts import TextSet
from klscale.validity import (
    Correlation,
    Domains,
    ErrorGrowth,
    SplitHalves,
    TextSensitivity,
    TextSetComparison,
    TextsNeeded,
)


def sensitivity_record(found: TextSensitivity, texts: TextSet) -> dict[str, Any]:
    """How far KL depends on the texts, for a machine."""
    record = {
        "texts": texts.name,
        "text_set": texts.id,
        "clip": texts.clip,
        "unit": "bits/byte",
        **_plain_values(asdict(found)),
    }
    record["pairs"] = [
        {"a": a, "b": b, "kl": float(kl), "standard_error": float(error)}
        for (a, b), kl, error in zip(found.pairs, found.kl, found.standard_error, strict=True)
    ]
    for name in ("kl", "standard_error"):
        del record[name]
    return record


def comparison_record(found: TextSetComparison) -> dict[str, Any]:
    """The same models on two text sets, for a machine."""
    record = {"unit": "bits/byte", **_plain_values(asdict(found))}
    record["pairs"] = [
        {"a": a, "b": b, "kl": kl.tolist(), "standard_error": error.tolist()}
        for (a, b), kl, error in zip(found.pairs, found.kl, found.standard_error, strict=True)
    ]
    for name in ("kl", "standard_error"):
        del record[name]
    return record


def _plain_values(value: Any) -> Any:
    """Arrays as lists."""
    if isinstance(value, dict):
        return {key: _plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# ---------------------------------------------------------------------------------------------- one text set, printed


def print_sensitivity(found: TextSensitivity, texts: TextSet) -> None:
    """How far KL depends on the texts, for a person."""
    out.print(describe_texts(texts))
    out.print(f"{_of_what(found)}{_units(found)}.")
    if found.needed:
        print_texts_needed(found.needed)
    if found.halves is not None:
        _print_halves(found.halves)
    if found.growth is not None:
        _print_growth(found.growth, found)
    if found.domains is not None:
        _print_domains(found.domains, found)
    out.print()
    print_notes(texts, *((True, plain(note)) for note in found.notes))


def _of_what(found: TextSensitivity | TextSetComparison) -> str:
    looked_at = len(found.pairs) + found.n_identical
    drawn = "" if looked_at == found.n_available else f" of {found.n_available:,}, drawn at random"
    identical = f", of which {found.n_identical:,} agree on every text" if found.n_identical else ""
    return f"{found.n_models:,} models, {looked_at:,} {'pair' if looked_at == 1 else 'pairs'}{drawn}{identical}"


def _units(found: TextSensitivity) -> str:
    if found.n_documents is None:
        return f"; {found.n_texts:,} texts, taken as independent"
    return f"; {found.n_texts:,} texts of {found.n_documents:,} documents, which stay whole"


def print_texts_needed(needed: Sequence[TextsNeeded]) -> None:
    """How many texts of this kind a relative standard error takes."""
    out.print("\nTexts that KL needs, by the standard error found here", style="bold")
    shown = table("relative SE of KL", "median pair", "worst pair", right=(0, 1, 2))
    for row in needed:
        shown.add_row(f"{row.relative_error:.0%}", f"{row.median:,}", f"{row.worst:,}")
    out.print(shown)
    a, b = needed[0].worst_pair
    out.print(f"worst pair: {plain(a)} and {plain(b)}", style="dim", soft_wrap=True)


def _print_halves(halves: SplitHalves) -> None:
    out.print(f"\nOne half of the texts against the other, {halves.n_splits} random splits", style="bold")
    a, b = halves.largest_pair
    out.print(
        f"KL differs by {_factor(halves.typical)} in the median pair (quartiles over pairs "
        f"{' to '.join(map(_factor, halves.quartiles))}), by {_factor(halves.largest)} in the worst "
        f"({plain(a)} and {plain(b)}).",
        soft_wrap=True,
    )
    rows = [
        ("log KL (Pearson)", halves.pearson, halves.pearson_whole),
        ("ranking (Spearman)", halves.spearman, halves.spearman_whole),
    ]
    if halves.pearson is None:
        out.print("Fewer than three pairs that differ: no correlation.", style="dim")
        return
    shown = table("correlation over pairs", "of halves", "of whole sets", right=(1, 2))
    for name, half, whole in rows:
        shown.add_row(name, _with_interval(half), _with_interval(whole))
    out.print(shown)
    kind = "over models" if halves.pearson.interval_kind == "models" else "over splits: under five models, a run as one"
    out.print(f"In brackets 95 % {kind}. Whole sets: 2 r / (1 + r). High where pairs differ much.", style="dim")


def _factor(change: float) -> str:
    """A change in percent, or as a factor where it is large."""
    if change > 999:
        return "more than a factor of 1,000"
    return f"{change:.0%}" if change < 2 else f"a factor of {1 + change:.3g}"


def _percent(value: float) -> str:
    return f"{value:.1%}" if value < 10 else "over 1,000%"


def _with_interval(found: Correlation | None) -> str:
    if found is None:
        return ""
    if found.interval is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.interval[0]:.3f} to {found.interval[1]:.3f})"


def _print_growth(growth: ErrorGrowth, found: TextSensitivity) -> None:
    shown = table(
        "texts", "error among blocks", "quartiles over pairs", "as predicted from SE", "typical difference",
        right=(0, 1, 2, 3, 4), title="\nRelative error of KL from fewer texts, median over pairs",
    )  # fmt: skip
    relative = float(np.median(found.standard_error / found.kl))
    shown.add_row(f"{found.n_texts:,}", "", "", f"{relative:.1%}", "")
    for n, deviation, (low, high), predicted, typical in zip(
        growth.n_texts, growth.standard_deviation, growth.quartiles, growth.predicted, growth.typical, strict=True
    ):
        spread = f"{low:.1%} to {high:.1%}"
        shown.add_row(f"{n:,}", f"{deviation:.1%}", spread, f"{predicted:.1%}", _percent(typical))
    out.print(shown)
    if growth.slope is not None:
        slope, (low, high) = growth.slope, growth.slope.interval
        out.print(
            f"The typical difference falls with the texts to the power {number(slope)} "
            f"(95 % {low:.2f} to {high:.2f}, jackknife); normal errors: {growth.slope_normal:.2f}. {_tails(growth)}"
        )
    if growth.document_effect is not None:
        out.print(
            f"By documents, the variance of KL is {growth.document_effect:.2g} times that of as many independent texts "
            "(median over pairs)."
        )
    out.print(
        "Error: standard deviation among disjoint random blocks; it must fall as 1/√n. Typical difference: the median "
        "one of two blocks, as the standard deviation that would give it if errors were normal.",
        style="dim",
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
    documents = whole.n_documents is not None
    shown = table(
        "domain", "texts", *(("documents",) if documents else ()), "bytes", "KL ± SE, bits/byte", "KL / KL of all",
        "ranking as the rest", right=(1, 2, 3, 4, 5, 6), title="\nWithin each domain, median over pairs",
    )  # fmt: skip
    for row in found.domains:
        low, high = row.ratio_quartiles
        shown.add_row(
            plain(row.name), f"{row.n_texts:,}", *((f"{row.n_documents:,}",) if documents else ()),
            f"{row.mean_bytes:.0f}", number(row.kl), f"{row.ratio:.2f} ({low:.2f} to {high:.2f})",
            _rank(row.agreement),
        )  # fmt: skip
    out.print(shown)
    shown = table(
        "without", "KL changes by", "by chance", "at most", "ranking as the whole",
        right=(1, 2, 3, 4), title="\nLeaving one domain out, median over pairs",
    )  # fmt: skip
    for row in found.domains:
        shown.add_row(
            plain(row.name), f"{row.change:+.1%}", f"± {row.by_chance:.1%}", f"{row.largest_change:+.0%}",
            _rank(row.ranking),
        )  # fmt: skip
    out.print(shown)
    most = max(found.domains, key=lambda row: abs(row.largest_change))
    a, b = most.largest_pair
    out.print(
        f"most: {most.largest_change:+.0%} without {plain(most.name)}, for {plain(a)} and {plain(b)}",
        style="dim",
        soft_wrap=True,
    )
    out.print(
        f"Between the means of domains lies {found.between:.1%} of the variance ({found.between_by_chance:.1%} with "
        "random labels; medians over pairs)."
    )
    if found.test is not None:
        test = found.test
        out.print(
            f"KL differs between domains for {test.n_different:,} of {len(test.pairs):,} pairs tested at 5 % of all "
            f"together (smallest p {test.p_value:.2g}): studentised permutation of the labels of "
            f"{'documents' if documents else 'texts'}, {test.n_permutations} times, corrected by the largest statistic "
            "(Westfall and Young)."
        )
    if found.small:
        listed = plain(", ".join(found.small[:8])) + (", ..." if len(found.small) > 8 else "")
        out.print(f"Too few texts or documents to stand alone: {listed}.", style="dim")
    out.print(
        "± SE over texts (bootstrap); quartiles over pairs in brackets; ranking: Spearman over pairs; by chance: the "
        "standard deviation if as many random texts were left out.",
        style="dim",
    )


def _rank(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


# -------------------------------------------------------------------------------------------------------- two text sets


def print_text_set_comparison(found: TextSetComparison, first: TextSet, second: TextSet) -> None:
    """The same models on two text sets, for a person."""
    for texts in (first, second):
        out.print(describe_texts(texts))
    out.print(f"{_of_what(found)}. Values of two text sets are not expected to be equal.\n")
    shown = table("over pairs", "", "95 % over models" if found.ratio_interval else "", right=(1, 2))
    low, high = found.ratio_range
    interval = "{:.3g} to {:.3g}".format(*found.ratio_interval) if found.ratio_interval else ""
    shown.add_row("KL, second / first (median)", f"{found.ratio:.3g}", interval)
    shown.add_row("  range", f"{low:.3g} to {high:.3g}", "")
    shown.add_row("  spread about the median", f"{found.spread:.0%}", "")
    shown.add_row("  expected from error over texts alone", f"{found.spread_by_error:.0%}", "")
    for name, correlation in (
        ("log KL (Pearson)", found.pearson),
        ("ranking (Spearman)", found.spearman),
        ("ranking (Kendall)", found.kendall),
    ):
        if correlation is not None:
            ends = "" if correlation.interval is None else "{:.3f} to {:.3f}".format(*correlation.interval)
            shown.add_row(name, f"{correlation.value:.3f}", ends)
    out.print(shown)
    low, high = found.nearest_interval
    out.print(
        f"\n{found.nearest:,} of {found.n_models:,} models have the same nearest model on both ({low:.0%} to "
        f"{high:.0%}, models taken as independent; by chance {found.nearest_by_chance:.0%})."
    )
    if found.procrustes is not None:
        out.print(
            f"Maps (two principal components, rotated and scaled onto each other) differ by {found.procrustes:.3f}, "
            f"where 0 is the same shape; random matchings: {found.procrustes_by_chance:.3f} in the mean, "
            f"p = {found.procrustes_p_value:.2g}."
        )
    for name, missing in zip(found.names, found.unmatched, strict=True):
        if missing:
            listed = plain(", ".join(missing[:5])) + (", ..." if len(missing) > 5 else "")
            out.print(f"Only on {plain(name)}: {listed}", style="dim", soft_wrap=True)
    for note in found.notes:
        out.print(plain(note), style="yellow")
