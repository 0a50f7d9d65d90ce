"""What is printed of tails: of a pair its estimates and the texts that carry it; of a store each conclusion with and
without the clip and the tails."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from klscale.inputs.texts import TextSet
from klscale.science.clip import CLIP_LIMIT
from klscale.science.estimates import Estimate, format_estimate
from klscale.science.kl import HEAVY_TAILS
from klscale.science.robust import TRIMMED, trimmed_consistency
from klscale.show.cautions import CAUTIONS, HEAVY, OUT_OF_RANGE, UNCLIPPED
from klscale.show.pictures.style import short_names, shortened
from klscale.show.tables import describe_texts, number, out, plain, print_notes, say, table
from klscale.show.validity_tables import of_what, summary_of_texts, units
from klscale.studies.tails import ALTERNATIVES, ESTIMATORS, FILTERED, PairTails, Tails, Text
from klscale.studies.validity import TextSensitivity

LABELS = {
    "headline": "headline",
    "clipped": "with clip",
    "unclipped": "no clip",
    "trimmed": "trimmed 1 %",
    "huber": "Huber",
}
SHOWN_MODELS = 5
"""Models that are named of those that the clip moves most."""
NAME, DOMAIN, DOCUMENT, BEGINNING = 30, 10, 16, 22
"""Characters of a model's name, of labels, and of a text that fit a row of 100 columns."""
ROBUST = (
    f"trimmed: without the {TRIMMED:.0%} of texts farthest from the median, divided by "
    f"{trimmed_consistency(1 - TRIMMED):.3f}, what is left of a Gaussian's variance; Huber: his Proposal 2, the bulk "
    "alone. They diagnose a KL, which is about the whole variance, and are no better one."
)


def _clip_record(found: PairTails | Tails) -> dict[str, Any]:
    return {
        "texts": found.texts.name,
        "text_set": found.texts.id,
        "unit": "bits/byte",
        "clip": found.clip,
        "clip_is_frozen": found.clip_is_frozen,
        "clip_source": "text set" if found.clip_is_frozen else "pooled 2 % quantile of these vectors, not frozen",
        "estimators": ESTIMATORS,
        "trimmed_share": TRIMMED,
        "trimmed_consistency": float(trimmed_consistency(1 - TRIMMED)),
    }


def pair_tails_record(found: PairTails) -> dict[str, Any]:
    """A pair's estimates, and the texts that carry its KL, for a machine."""
    return _clip_record(found) | {
        "a": found.a,
        "b": found.b,
        "n_texts": found.kl.n_texts,
        "n_documents": found.kl.n_documents,
        "n_left_out": found.n_left_out,
        "clipped": found.kl.clipped,
        "uses_clip": found.kl.uses_clip,
        "in_range": found.kl.in_range,
        "kurtosis": found.kl.kurtosis,
        "estimates": {name: asdict(estimate) for name, estimate in found.estimates.items()},
        "differences_to_headline": {name: asdict(estimate) for name, estimate in found.differences.items()},
        "largest_texts": [asdict(row) for row in found.largest],
        "share_of_largest_percent_of_texts": found.share_of_percent,
        "share_of_ten_largest_texts": found.share_of_ten,
        "effective_texts": found.effective_texts,
        "largest_document": None if found.largest_document is None else asdict(found.largest_document),
        "length_explains": asdict(found.length_explains),
        "length_alone": asdict(found.length_alone),
    }


def tails_record(found: Tails) -> dict[str, Any]:
    """Everything that was found of a store, for a machine; of each pair its estimates."""
    pairs = found.pairs
    return _clip_record(found) | {
        "n_pairs": found.n_pairs,
        "n_available": found.n_available,
        "n_texts": int(pairs.n_texts.min()),
        "agreement": [asdict(row) for row in found.agreement],
        "settings": [asdict(row) for row in found.settings],
        "moved_by_clip": dict(found.moved_by_clip),
        "models_that_the_clip_does_not_serve": found.n_unserved,
        "runs": [asdict(run) for run in found.runs],
        "leverage": [asdict(row) for row in found.leverage],
        "leverage_of_largest_percent_of_texts": found.leverage_of_percent,
        "length_explains": None if found.length_explains is None else asdict(found.length_explains),
        "length_alone": None if found.length_alone is None else asdict(found.length_alone),
        "pairs": [
            {
                "a": a,
                "b": b,
                "uses_clip": bool(pairs.uses_clip[n]),
                "in_range": bool(found.in_range[n]),
                "kurtosis": float(pairs.kurtosis[n]),
                **{
                    name: {
                        "kl": float(pairs.value[e, n]),
                        "standard_error": float(pairs.standard_error[e, n]),
                        "difference": float(pairs.difference[e, n]),
                        "difference_standard_error": float(pairs.difference_standard_error[e, n]),
                    }
                    for e, name in enumerate(ESTIMATORS)
                },
            }
            for n, (a, b) in enumerate(pairs.pairs)
        ],
    }


# ---------------------------------------------------------------------------------------------------- for a person


def print_summary(sensitivity: TextSensitivity, found: PairTails | Tails) -> None:
    """The answer in five sentences or fewer, and what to be wary of; the tables that follow hold the rest."""
    out.print(describe_texts(found.texts))
    say(f"{of_what(sensitivity)}; {units(sensitivity)}.\n")
    of_tails = _summary_of_pair(found) if isinstance(found, PairTails) else _summary_of_all(found)
    for sentence in [*summary_of_texts(sensitivity), *of_tails]:
        say(f"- {sentence}")
    for caution in _cautions(found):
        say(caution, "yellow")
    print_notes(found.texts)


def _cautions(found: PairTails | Tails) -> list[str]:
    if isinstance(found, PairTails):
        kl = found.kl
        heavy = kl.heavy_tails and bool(found.largest)
        marked = (OUT_OF_RANGE, not kl.in_range), (UNCLIPPED, kl.left_unclipped), (HEAVY, heavy)
        return [caution for caution, there in marked if there]
    counted = {1: ~found.in_range, 4: found.pairs.kurtosis > HEAVY_TAILS}
    counts = {bit: int(marked[: found.n_pairs].sum()) for bit, marked in counted.items()}
    return [f"{n:,} of {found.n_pairs:,} pairs: {CAUTIONS[bit]}" for bit, n in counts.items() if n]


def _summary_of_pair(found: PairTails) -> list[str]:
    """What the tails and the length of the texts make of this KL."""
    if not found.largest:
        return ["The two models differ by the same on every text: their KL is 0."]
    kl, without = found.kl, found.estimates
    robust = f"; without the {found.n_left_out:,} most extreme texts {number(without['trimmed'])}"
    clipped = "" if found.kl.uses_clip else f"; with the clip {number(without['clipped'])}"
    return [
        f"KL is {number(kl)} bits/byte{robust if found.n_left_out else ''}{clipped}. Ten of {kl.n_texts:,} texts carry "
        f"{found.share_of_ten:.0%} of it.",
        *(
            []
            if math.isnan(found.length_explains.value)
            else [f"Text length explains {_share(found.length_explains)}."]
        ),
    ]


def _summary_of_all(found: Tails) -> list[str]:
    """What the tails, the clip and the length of the texts make of all these KLs."""
    of = {row.estimator: row for row in found.agreement}
    same = _as_the_headline(found)
    ways = {"trimmed": f"without {TRIMMED:.0%} of the texts"}
    ways |= {"unclipped": "without the clip"} if found.clip_is_frozen else {"clipped": "with a clip"}
    said = [f"{of[name].swapped:.1%} {way}" for name, way in ways.items() if name not in same]
    sentences = [f"Comparisons of two pairs that turn round: {', '.join(said)}."] if said and found.n_pairs > 1 else []
    if (length := found.length_explains) is not None:
        most = f"{100 * length.largest.value:.2g} % at most"
        sentences.append(f"Text length explains {_percent(length.median)} of a KL (median pair), {most}.")
    return sentences


def print_pair_tails(found: PairTails) -> None:
    """Each estimate of a pair's KL, the texts that carry it, and what their length explains."""
    kl = found.kl
    a, b = (plain(name) for name in short_names([found.a, found.b]))
    _print_clip(found)
    shown = table(
        "", "KL ± SE, bits/byte", "95 % interval", "less the headline ± SE", "95 % interval",
        right=(1, 2, 3, 4), title=f"\nKL of {a} and {b}",
    )  # fmt: skip
    same = [name for name, difference in found.differences.items() if difference.value == 0]
    for name, estimate in found.estimates.items():
        if name in same:
            continue
        difference = found.differences.get(name)
        against = ("", "") if difference is None else (_signed(difference), _interval(difference))
        shown.add_row(LABELS[name], number(estimate), _interval(estimate), *against)
    out.print(shown)
    say(_footnote(same, ROBUST), "dim")
    if found.n_left_out and math.isnan(found.differences["trimmed"].interval[0]):
        say(
            f"The trimmed value leaves out {found.n_left_out} texts, too few for an interval of the difference; its "
            "standard error is a lower bound.",
            "dim",
        )
    if not found.largest:
        out.print("\nThe two models differ by the same on every text: no text carries more of a KL of 0.")
        return
    shown = table(
        "text", "share", "change", "log-likelihoods", "bytes", *_label_columns(found.texts),
        right=(0, 1, 2, 3, 4), title="\nThe texts that carry it",
    )  # fmt: skip
    for row in found.largest:
        shown.add_row(
            str(row.text.position),
            f"{row.share:.1%}",
            f"{row.change_without:+.2g}",
            f"{row.log_likelihood_a:.0f}, {row.log_likelihood_b:.0f}",
            str(row.text.bytes),
            *_labels(row.text),
        )
    out.print(shown)
    say(
        "share: of the headline KL; change: of that KL without the text, bits/byte; log-likelihoods: of both models, "
        "nats, as they enter the headline; texts are counted from 0.",
        "dim",
    )
    out.print()
    say(
        f"The ten largest of {kl.n_texts:,} texts carry {found.share_of_ten:.1%} of the KL, the largest "
        f"{_largest(kl.n_texts)} {found.share_of_percent:.1%}. As many texts of equal share as "
        f"{found.effective_texts:,.0f} would know it equally well (N / kurtosis, kurtosis {kl.kurtosis:.1f})."
    )
    if (document := found.largest_document) is not None:
        say(
            f"The largest of its documents, {plain(document.document)}, carries {document.share:.1%} of it with "
            f"{document.n_texts} of the texts."
        )
    if math.isnan(found.length_explains.value):
        say("Text length explains nothing: all texts are of one length.")
    else:
        say(
            f"Text length: a straight line in it explains {_share(found.length_explains)} of the KL; one difference "
            f"per byte alone would make {_share(found.length_alone)} of it."
        )


def print_tails(found: Tails) -> None:
    """Every conclusion with and without the clip and the tails."""
    _print_clip(found)
    drawn = f" of {found.n_available:,}, drawn at random" if found.n_pairs < found.n_available else ""
    out.print(f"{found.n_pairs:,} pairs of models{drawn}; {int(found.in_range[: found.n_pairs].sum()):,} in range.")
    _print_agreement(found)
    _print_moved(found)
    _print_settings(found)
    _print_clip_of_models(found)
    _print_runs(found)
    _print_leverage(found)
    _print_length(found)


def _print_clip(found: PairTails | Tails) -> None:
    if not found.clip_is_frozen:
        out.print()
        say(
            "The text set has no clip, and the headline is unclipped; 'with clip' is with the pooled 2 % quantile of "
            f"these models, {found.clip:.1f} nats.",
            "dim",
        )


def _footnote(same: list[str], text: str) -> str:
    """With the estimators that are not shown, as they are the headline."""
    return (f"{', '.join(LABELS[name] for name in same)}: the same as the headline. " if same else "") + text


def _print_agreement(found: Tails) -> None:
    shown = table(
        "KL", "ratio ± SE", "quartiles of ratio", "Spearman ± SE", "swapped", "elsewhere",
        right=(1, 2, 3, 4, 5), title="\nThe order of pairs, against the headline",
    )  # fmt: skip
    for row in found.agreement:
        if row.estimator in _as_the_headline(found):
            continue
        low, high = row.quartiles
        elsewhere = "" if row.n_other_place is None else f"{row.n_other_place:,} of {row.n_pairs:,}"
        shown.add_row(
            LABELS[row.estimator],
            number(row.ratio),
            f"{low:.3g} to {high:.3g}",
            number(row.spearman),
            f"{row.swapped:.2%}",
            elsewhere,
        )
    same = _as_the_headline(found)
    if len(same) == len(ALTERNATIVES):
        out.print("\nNo clip and no tail changes any KL: every estimate is the headline.")
        return
    out.print(shown)
    elsewhere = (
        "; elsewhere: pairs nearest to another setting of the scale, each scale by its own estimate"
        if found.settings
        else ""
    )
    text = (
        "ratio: to the headline, median over pairs; Spearman: rank correlation over pairs; swapped: pairs of pairs in "
        f"the other order{elsewhere}. ± over texts. {ROBUST}"
    )
    say(_footnote(same, text), "dim")


def _as_the_headline(found: Tails) -> list[str]:
    """Estimators that are the headline itself for every pair."""
    differ = (found.pairs.difference != 0).any(axis=1)
    return [name for name, other in zip(ESTIMATORS, differ, strict=True) if not other and name != "headline"]


def _print_moved(found: Tails) -> None:
    """The pair whose rank changes most, whatever the estimator."""
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
    columns = [f"{LABELS[name]} ± SE" for name in names]
    shown = table("setting", *columns, right=range(1, len(columns) + 1), title="\nThe scale: medians, bits/byte")
    for row in found.settings:
        shown.add_row(plain(row.setting), *(number(row.medians[name]) for name in names))
    out.print(shown)
    out.print("± is the standard error over texts; --json has the paired differences.", style="dim")


def _print_clip_of_models(found: Tails) -> None:
    moved = sorted(found.moved_by_clip.items(), key=lambda item: -item[1])
    fractions = np.array([fraction for _, fraction in moved])
    consequence = ""
    if found.n_unserved:
        consequence = ", whose headline is unclipped" if found.clip_is_frozen else ", which it would not serve"
    out.print()
    say(
        f"The clip moves {np.median(fractions):.1%} of the values of the median model, {fractions.max():.1%} at most. "
        f"It moves more than {CLIP_LIMIT:.0%} in {found.n_unserved:,} of {len(moved):,} models{consequence}."
    )
    listed = [(name, fraction) for name, fraction in moved[:SHOWN_MODELS] if fraction > 0]
    names = short_names([name for name, _ in listed], NAME)
    if listed:
        pairs = zip(names, listed, strict=True)
        say("Most: " + "; ".join(f"{plain(name)} {fraction:.1%}" for name, (_, fraction) in pairs) + ".")


def _print_runs(found: Tails) -> None:
    if not found.runs:
        return
    shown = table(
        "run", "steps", "median KL ± SE", "filtered ± SE", "difference ± SE", "B, filtered", right=range(1, 6),
        title=f"\nRuns without the {FILTERED:.0%} of texts that change most: KL of neighbours, bits/byte",
    )  # fmt: skip
    for run, name in zip(found.runs, short_names([run.run for run in found.runs], NAME), strict=True):
        size = f"{run.mean_bytes:.1f}, {run.mean_bytes_kept:.1f}"
        steps = f"{len(run.steps)}" + (" u" if found.clip_is_frozen and not run.uses_clip else "")
        shown.add_row(
            plain(name), steps, number(run.median), number(run.median_filtered), _signed(run.median_difference), size
        )
    out.print(shown)
    say(
        "steps: from one checkpoint past warm-up to the next; B: mean bytes of a text, of all and of those kept. The "
        "filter is the published one (Kishino et al., arXiv 2505.15353); it leaves out what moves most by design.",
        "dim",
    )
    if found.clip_is_frozen and not all(run.uses_clip for run in found.runs):
        out.print("u not clipped: the clip would move more than 5 % of a checkpoint's values", style="yellow")


def _print_leverage(found: Tails) -> None:
    if not found.leverage:
        return
    shown = table(
        "text", "share", "bytes", *_label_columns(found.texts), right=(0, 1, 2),
        title="\nThe texts that carry the KL of all pairs",
    )  # fmt: skip
    for row in found.leverage:
        shown.add_row(
            str(row.text.position),
            f"{row.share:.2%}",
            str(row.text.bytes),
            *_labels(row.text),
        )
    out.print(shown)
    n = found.n_common
    say(
        f"share: of the sum of KL over all pairs, with the text set's clip, as in maps; of one text among equals "
        f"{1 / n:.2%}. Of {n:,} texts the largest {_largest(n)} {'carry' if n > 100 else 'carries'} "
        f"{found.leverage_of_percent:.1%}.",
        "dim",
    )
    model, times = Counter(row.model for row in found.leverage).most_common(1)[0]
    name = plain(short_names([model])[0])
    say(f"On {times} of these {len(found.leverage)} texts {name} stands out most.", "dim")


def _largest(n_texts: int) -> str:
    """How many texts the largest 1 % are: one at least."""
    return "one" if n_texts <= 100 else f"{-(-n_texts // 100):,}"


def _print_length(found: Tails) -> None:
    out.print()
    if found.length_explains is None:
        one = len(set(found.texts.bytes.tolist())) == 1
        say(f"Text length explains nothing: {'all texts are of one length' if one else 'there is no KL'}.")
        return
    row = found.length_explains
    a, b = (plain(name) for name in short_names(row.pair))
    say(
        f"A straight line in the length of the texts explains {_percent(row.median)} of a KL in the median; most, "
        f"{_share(row.largest)}, of {a} and {b}."
    )


def _percent(share: Estimate) -> str:
    return f"{format_estimate(100 * share.value, 100 * share.standard_error)} %"


def _share(estimate: Estimate) -> str:
    low, high = estimate.interval
    return f"{100 * estimate.value:.2g} % (95 %: {100 * low:.2g} to {100 * high:.2g} %)"


def _signed(estimate: Estimate) -> str:
    return "0" if estimate.value == 0 else format_estimate(estimate.value, estimate.standard_error, sign=True)


def _interval(estimate: Estimate) -> str:
    low, high = estimate.interval
    return "" if math.isnan(low) or low == high else f"{low:.3g} to {high:.3g}"


def _label_columns(texts: TextSet) -> list[str]:
    known = {"domain": texts.domain, "document": texts.document, "begins": texts.texts}
    return [column for column, values in known.items() if values is not None]


def _labels(text: Text) -> list[str]:
    """What `_label_columns` hold of a text."""
    known = (text.domain, DOMAIN), (text.document, DOCUMENT)
    shown = [shortened(label, longest) for label, longest in known if label is not None]
    if text.beginning is not None:
        beginning = " ".join(text.beginning.split())
        shown.append(beginning[:BEGINNING])
    return [plain(one) for one in shown]
