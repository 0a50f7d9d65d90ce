"""What `klscale validate` prints of the texts: how far KL depends on them, and what another text set says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.show.pictures.style import short_names, shortened
from klscale.show.tables import describe_texts, number, out, plain, say, table
from klscale.studies.validity import (
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


def of_what(found: TextSensitivity | TextSetComparison) -> str:
    """How many models and pairs were looked at."""
    looked_at = len(found.pairs) + found.n_identical
    drawn = "" if looked_at == found.n_available else f" of {found.n_available:,}, drawn at random"
    identical = f", {found.n_identical:,} of them without a KL" if found.n_identical else ""
    return f"{found.n_models:,} models, {looked_at:,} {'pair' if looked_at == 1 else 'pairs'}{drawn}{identical}"


def units(found: TextSensitivity) -> str:
    """How many texts, and what of them counts as independent."""
    if found.n_documents is None:
        return f"{found.n_texts:,} texts, taken as independent"
    return f"{found.n_texts:,} texts of {found.n_documents:,} documents, which stay whole"


def summary_of_texts(found: TextSensitivity) -> list[str]:
    """The answer in three sentences or fewer: how well KL is known, whether other texts would rank pairs as these do,
    whether domains disagree."""
    said = []
    alone = len(found.pairs) == 1
    if found.needed:
        relative = found.standard_error / found.kl
        worst, over = ("", "") if alone else (f"; worst pair {relative.max():.0%}", " (median pair)")
        said.append(
            f"{'This KL' if alone else 'A KL'} is known to {np.median(relative):.0%} (standard error{worst}); to 10% "
            f"with {found.needed[0].median:,} texts{over}."
        )
    elif found.pairs:
        documents = "" if found.n_documents is None else f" of {found.n_documents:,} documents"
        few = f"{found.n_texts:,} texts{documents} are too few to tell how well a KL is known"
        said.append(f"{few}: trust no standard error below.")
    if alone and found.halves is not None:
        said.append(f"Random halves of the texts differ by {_factor(found.halves.typical)} in KL (median split).")
    elif found.halves is not None and (whole := found.halves.spearman_whole) is not None:
        interval = "too few models for an interval"
        if whole.interval is not None:
            interval = "95 % over models: {:.2f} to {:.2f}".format(*whole.interval)
        said.append(
            f"Ranks of pairs on {found.n_texts:,} other such texts: Spearman {whole.value:.2f} with these ({interval})."
        )
    if found.domains is not None and (test := found.domains.test) is not None:
        if alone:
            said.append(f"Whether it is the same in all domains: p = {test.p_value:.2g}.")
        else:
            answer = f"{test.n_different:,} of {len(test.pairs):,} pairs"
            said.append(f"Domains are seen to disagree on {answer} (5 % for all together).")
    return said


def print_sensitivity(found: TextSensitivity) -> None:
    """How far KL depends on the texts, for a person; of a single pair without what needs more."""
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
    """How many texts of this kind a relative standard error takes."""
    alone = all(row.median == row.worst for row in needed)
    columns = ("texts",) if alone else ("median pair", "worst pair")
    out.print("\nTexts that KL needs, by the standard error found here", style="bold")
    shown = table("relative SE of KL", *columns, right=(0, 1, 2))
    for row in needed:
        shown.add_row(f"{row.relative_error:.0%}", *(f"{n:,}" for n in ((row.median, row.worst)[: len(columns)])))
    out.print(shown)
    if not alone:
        say(f"worst pair: {_both(needed[0].worst_pair)}", "dim")


def _both(pair: tuple[str, str]) -> str:
    """Two models by names that tell them apart."""
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
        ("log KL (Pearson)", halves.pearson, halves.pearson_whole),
        ("ranking (Spearman)", halves.spearman, halves.spearman_whole),
    ]
    shown = table("correlation over pairs", "of halves", "of whole sets", right=(1, 2))
    for name, half, whole in rows:
        shown.add_row(name, _with_interval(half), _with_interval(whole))
    out.print(shown)
    kind = "95 % over models"
    if halves.pearson.interval_kind != "models":
        kind = "what 95 % of the splits give, no interval: fewer than five models, a run as one"
    say(f"In brackets {kind}. Whole sets: 2 r / (1 + r). High where pairs differ much.", "dim")


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
    over = "" if len(found.pairs) == 1 else ", median over pairs"
    shown = table(
        "texts", "as predicted from SE", "among blocks", "typical difference", right=(0, 1, 2, 3),
        title=f"\nRelative error of KL from fewer texts{over}",
    )  # fmt: skip
    relative = float(np.median(found.standard_error / found.kl))
    shown.add_row(f"{found.n_texts:,}", f"{relative:.1%}", "", "")
    for n, deviation, predicted, typical in zip(
        growth.n_texts, growth.standard_deviation, growth.predicted, growth.typical, strict=True
    ):
        shown.add_row(f"{n:,}", f"{predicted:.1%}", _percent(deviation), _percent(typical))
    out.print(shown)
    if growth.slope is not None:
        slope, (low, high) = growth.slope, growth.slope.interval
        say(
            f"The typical difference falls with the texts to the power {number(slope)} "
            f"(95 % {low:.2f} to {high:.2f}, jackknife); normal errors: {growth.slope_normal:.2f}. {_tails(growth)}"
        )
    if growth.document_effect is not None:
        say(
            f"By documents, the variance of KL is {growth.document_effect:.2g} times that of as many independent texts"
            f"{over and ' (median over pairs)'}."
        )
    say(
        "among blocks: standard deviation over disjoint random blocks of texts; typical difference: the median one of "
        "two blocks, as the standard deviation that would give it if errors were normal",
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
    counts = ("texts", "documents") if clustered else ("texts",)
    compared = ("KL / KL of all",) if alone else ("KL / KL of all", "ranking as the rest")
    over = "" if alone else ", median over pairs"
    shown = table(
        "domain", *counts, "bytes", "KL ± SE, bits/byte", *compared, right=range(1, 7),
        title=f"\nWithin each domain{over}",
    )  # fmt: skip
    for row in found.domains:
        low, high = row.ratio_quartiles
        ratio = (f"{row.ratio:.2f}",) if alone else (f"{row.ratio:.2f} ({low:.2f} to {high:.2f})", _rank(row.agreement))
        texts = (f"{row.n_texts:,}", f"{row.n_documents:,}")[: len(counts)]
        shown.add_row(plain(shortened(row.name, 24)), *texts, f"{row.mean_bytes:.0f}", number(row.kl), *ratio)
    out.print(shown)
    most = () if alone else ("at most", "ranking as the whole")
    shown = table(
        "without", "KL changes by", "by chance", *most, right=range(1, 5),
        title=f"\nLeaving one domain out{over}",
    )  # fmt: skip
    for row in found.domains:
        more = () if alone else (f"{row.largest_change:+.0%}", _rank(row.ranking))
        shown.add_row(plain(shortened(row.name, 24)), f"{row.change:+.1%}", f"± {row.by_chance:.1%}", *more)
    out.print(shown)
    if not alone:
        row = max(found.domains, key=lambda row: abs(row.largest_change))
        name = plain(shortened(row.name, 24))
        say(f"most: {row.largest_change:+.0%} without {name}, for {_both(row.largest_pair)}", "dim")
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


def _rank(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


# -------------------------------------------------------------------------------------------------------- two text sets


def print_text_set_comparison(found: TextSetComparison, first: TextSet, second: TextSet) -> None:
    """The same models on two text sets, for a person."""
    for texts in (first, second):
        out.print(describe_texts(texts))
    say(f"{of_what(found)}. Values of two text sets are not expected to be equal.\n")
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
