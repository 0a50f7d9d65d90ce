"""What `klscale compare` shows: KL of each pair, which model is better and by how much, and the ladder of variants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

from klscale.inputs.references import WEIGHTS_ONLY
from klscale.inputs.texts import TextSet
from klscale.science.drawn import DrawnKL
from klscale.science.estimates import Estimate
from klscale.science.reported import WHOLE_TEXTS, ReportedKL
from klscale.science.sampled_tokens import DepthKL
from klscale.show import cautions, next_tokens, sentences, sizes
from klscale.show import precision as looks
from klscale.show.cautions import Around, Measured
from klscale.show.columns import BITS, HEAD, Column, estimate, interval, number, percent, table, within
from klscale.show.columns import records as records_of
from klscale.show.pairs import PAIR, marked, print_estimators
from klscale.show.sizes import megabytes, size_column
from klscale.show.terminal import describe_texts, out, plain
from klscale.studies import scales
from klscale.studies.precision import SequentialComparison
from klscale.studies.scales import Setting
from klscale.vectors.sizes import Size
from klscale.vectors.vectors import Vectors

MANY = 8
"""Models beyond which not all pairs of shifts are listed."""


DECLARE = "say which models are two seeds of a family: klscale import FILE --attributes CSV (model, family, seed)"
SCORE = "score seeds, sizes or checkpoints on them; a suite file gives family and seed where names do not"
"""How texts come to have a scale."""


@dataclass(frozen=True)
class Compared:
    """Two models beside each other. `others` makes the records of the pairs with every third model; `precise` is the
    comparison to a wanted precision that the KL comes from, if any."""

    a: str
    b: str
    measured: Measured
    setting: str | None
    placed: str | None
    of_a: Estimate
    of_b: Estimate
    difference: Estimate
    texts: TextSet
    warnings: list[str]
    others: Callable[[], list[Beside]]
    sizes: tuple[Size | None, Size | None]
    by_depth: tuple[DepthKL, ...] = ()
    precise: SequentialComparison | None = None
    drawn: FromAuthor | None = None

    @property
    def verdict(self) -> str:
        """Which of the two is better on these texts, by how much, or that this cannot be told."""
        better, words = sentences.which_is_better(self.difference)  # of b, less that of a
        return words if better is None else f"{plain((self.b, self.a)[better])} {words}"


@dataclass(frozen=True)
class FromAuthor:
    """KL from the model that wrote the texts to another."""

    author: str
    other: str
    kl: DrawnKL


@dataclass(frozen=True)
class Beside:
    """The first model's pair with a third model, against its pair with the second."""

    model: str
    uses_clip: bool
    kl_difference: Estimate
    shift_cosine: Estimate


BESIDE = (
    Column("model", "The third model."),
    Column("uses_clip", "Whether both KLs are with the clip: common texts and clip for all models compared."),
    estimate("kl_difference", "KL(a, third model) less KL(a, b), with the paired standard error."),
    estimate("shift_cosine", "Cosine between the shifts from a to b and to the third model; 1: the same way.", ""),
)

BY_SPANS = (
    Column("spans_kl", "KL from spans of the texts; null: not known of both models.", BITS, lambda it: it.value),
    Column("spans_standard_error", "Its standard error over texts.", BITS, lambda it: it.standard_error),
    estimate(
        "drift_share",
        "1 - KL from spans / KL from whole texts, of the same texts without a clip; null where its standard error is "
        "above 0.5.",
        "share",
    ),
    Column("lost_cuts", "Share of the cuts between spans that the tokenizer of either model loses.", "share",
           lambda it: it.lost),
)  # fmt: skip
"""Of a `SpanKL`."""

BY_SAMPLED_TOKENS = (
    estimate("kl_forward", "KL(a‖b) of next tokens, by sampled tokens.", value=lambda it: it.forward),
    estimate("kl_backward", "KL(b‖a) of next tokens, by sampled tokens.", value=lambda it: it.backward),
    estimate(
        "total_variation",
        "Total variation of next tokens, mean over positions; 1 less it: acceptance rate of speculative decoding.",
        "",
    ),
    estimate("same_top", "Share of positions at which both have the same most probable token.", "share"),
    Column("effective_share", "Effective sample size of the draws, as a share of them.", "share",
           lambda it: it.effective),
    Column("largest_weight", "Largest probability of a drawn token over that of drawing it."),
    Column("outside", "Mean probability of drawn tokens that either vocabulary lacks; they are left out.",
           "probability"),
)  # fmt: skip
"""Of a `SampledKL`."""

DRAWN = (
    Column("author", "The model that wrote the texts; null: neither did."),
    Column("", title="KL from", cell=lambda it: plain(it.author), words=True),
    Column("", title="to", cell=lambda it: plain(it.other), words=True),
    estimate(
        "drawn_kl",
        "KL from the author to the other model on the part of the texts that it wrote.",
        value=lambda it: it.kl.estimate,
        title="KL ± SE, bits/byte",
        cell=lambda it: number(it.kl.estimate),
    ),
    Column(
        "drawn_by", "What that is by: `sampled tokens` or `log-ratios`.", value=lambda it: it.kl.by, title="by",
        words=True,
    ),
    Column("", title="95 % interval", cell=lambda it: interval(it.kl.estimate)),
    estimate(
        "drawn_log_ratios",
        "The same by log-ratios of the two models, their mean over texts.",
        value=lambda it: it.kl.log_ratios,
        title="by log-ratios",
        cell=lambda it: number(it.kl.log_ratios),
    ),
    Column("", title="texts", cell=lambda it: f"{it.kl.log_ratios.n_texts:,}"),
)  # fmt: skip
"""Of a `FromAuthor`."""

COMPARED = (
    *PAIR,
    *within(BY_SPANS, lambda it: it.measured.kl.spans),
    *within(BY_SAMPLED_TOKENS, lambda it: it.measured.kl.sampled_tokens),
    *within([replace(column, title="") for column in DRAWN if column.key], lambda it: it.drawn),
    Column("setting", "The setting of the scale that this pair is of; null: none."),
    Column("placed", "Where the KL lies on the scale of these texts, in words; null: there is none."),
    Column(
        "by_depth",
        "KL by depth of context, where one of the two reads a quantized cache, or is asked for an attention.",
        within=next_tokens.BY_DEPTH,
        many=True,
    ),
    estimate("bits_per_byte_a", "How well a predicts the texts; less is better.", value=lambda it: it.of_a),
    estimate("bits_per_byte_b", "The same of b.", value=lambda it: it.of_b),
    estimate(
        "bits_per_byte_difference",
        "Difference in bits/byte, b less a, paired: above 0, a is better.",
        value=lambda it: it.difference,
    ),
    size_column("size_a", "How large a is;", lambda it: it.sizes[0]),
    size_column("size_b", "How large b is;", lambda it: it.sizes[1]),
    *HEAD,
    Column("warnings", "The cautions as sentences, with figures, and those of the texts."),
    Column(
        "beside",
        "Where a is the first model: its pairs with every other model, against this pair.",
        value=lambda it: it.others(),
        within=BESIDE,
        many=True,
    ),
)


def rows(
    vectors: Vectors,
    pairs: Mapping[tuple[str, str], ReportedKL],
    measured: Sequence[Setting],
    precise: SequentialComparison | None = None,
    drawn: Mapping[tuple[str, str], DrawnKL] = {},
) -> list[Compared]:
    """Each pair of models beside each other, with its KL; `measured` is the scale of the store. `precise` is the
    comparison to a wanted precision that the KLs come from, if any; `drawn` the KLs from the author of the texts."""
    around, alike = Around(vectors), cache(vectors.on_common_texts)

    def row(a: str, b: str, kl: ReportedKL) -> Compared:
        found = around.pair(a, b, kl)
        return Compared(
            a,
            b,
            found,
            setting := scales.setting_between(vectors, a, b),
            scales.place(found.kl, vectors.texts, measured, (a, b), setting),
            vectors.bits_per_byte(a),
            vectors.bits_per_byte(b),
            vectors.bits_per_byte(b, a),
            vectors.texts,
            cautions.warnings(found, vectors.texts),
            lambda: beside(alike(), a, b),
            (vectors.size(a), vectors.size(b)),
            next_tokens.by_depth(vectors, a, b),
            precise,
            next((FromAuthor(*way, drawn[way]) for way in ((a, b), (b, a)) if way in drawn), None),
        )

    return [row(a, b, kl) for (a, b), kl in pairs.items()]


def records(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """The JSON of each pair."""
    precise = any(row.precise for row in compared)
    return records_of((*COMPARED, *looks.PRECISION) if precise else COMPARED, compared)


def beside(vectors: Vectors, a: str, b: str) -> list[Beside]:
    """A pair of the first model against its pairs with every third model; none for other pairs. `vectors` are on common
    texts and clip."""
    if a != vectors.names[0]:
        return []
    clipped = vectors.texts.clip is not None
    return [
        Beside(other, clipped, vectors.kl_difference((a, other), (a, b)), vectors.shift_cosine(a, b, other))
        for other in vectors.names
        if other not in (a, b)
    ]


# ---------------------------------------------------------------------------------------------------- for a person


def print_comparison(vectors: Vectors, compared: Sequence[Compared]) -> None:
    """KL of each pair; bits per byte of each model; the ladder of variants; what that amounts to, and cautions."""
    measured = [row.measured for row in compared]
    out.print(describe_texts(vectors.texts))
    out.print(table(COMPARED, compared, "\nKL"))
    print_estimators(measured)
    # Cautions of the KLs are said below; here those of the column beside them.
    cautions.print_footnotes(None, [it.by_whole_texts for it in measured if not it.kl.is_published])
    _print_drawn(vectors.texts, [row.drawn for row in compared if row.drawn is not None])
    _print_levels(vectors)
    if has_ladder(vectors, [(row.a, row.b) for row in compared]):
        print_ladder(vectors)
    next_tokens.print_variants(vectors, {(row.a, row.b): row.measured.kl for row in compared})
    out.print()
    alone = sorted({ref.quantization for ref in vectors.models if ref.quantization in WEIGHTS_ONLY})
    if alone:
        out.print(f"{', '.join(alone)}: weights alone; a kernel or quantized activations add to the KL.\n")
    for row in compared:
        out.print(f"{plain(row.a)} and {plain(row.b)}: {row.verdict}.")
        if row.setting:
            out.print(f"  {plain(sentences.of_setting(row.setting))}.")
        if row.placed:
            out.print(f"  Their KL is {plain(row.placed)}.")
        if (detail := _detail(row.measured.kl)) is not None:
            out.print(f"  {detail}")
        for caution in row.measured.cautions:
            out.print(f"  {caution.mark} {caution.sentence(row.measured)}", style="yellow")
    for warning in cautions.of_documents(vectors.texts):
        out.print(f"Note: {warning}.", style="yellow")
    if all(row.placed is None and row.measured.kl.value != 0 and row.setting != "seed" for row in compared):
        out.print("These texts have no scale: published values hold for pile-10k only. To have one:", style="dim")
        out.print(f"  {DECLARE if vectors.texts.external else SCORE}", style="dim")
    if compared[0].precise is not None:
        looks.print_precision(compared[0].precise)


def _print_drawn(texts: TextSet, drawn: Sequence[FromAuthor]) -> None:
    """KL from the author of the texts."""
    if not drawn or texts.drawn is None:
        return
    out.print(table(DRAWN, drawn, "\nFrom the model that wrote the texts"))
    changed = int(texts.drawn.get("changed", 0)) / max(1, int(texts.drawn.get("n_drawn", 0)))
    out.print(
        "Exact in expectation, of what was drawn alone, on texts that are read as the tokens drawn"
        f" ({changed:.1%} were not).",
        style="dim",
    )


def _detail(kl: ReportedKL) -> str | None:
    """How much of the KL by whole texts is drift, and how many cuts the tokenizers lose; by sampled tokens, both
    directions."""
    said = []
    if (sampled := kl.sampled_tokens) is not None:
        said.append(
            f"KL from the first to the second {number(sampled.forward)}, back {number(sampled.backward)} bits/byte; "
            f"total variation {number(sampled.total_variation)}."
        )
    if kl.spans is not None:
        share = kl.spans.drift_share
        if not math.isnan(share.value):
            said.append(f"Drift is {percent(share)} of whole texts.")
        if kl.spans.lost:
            said.append(f"{kl.spans.lost:.1%} of the cuts are lost to tokens that straddle them.")
    return " ".join(said) or None


def _print_levels(vectors: Vectors) -> None:
    """Bits per byte of each model, and by how much it exceeds the first."""
    first = vectors.names[0]

    def against(name: str) -> str:
        return "" if name == first else number(vectors.bits_per_byte(name, first), sign=True)

    columns = (
        Column("", title="model", cell=plain, words=True),
        Column("", title="bits/byte ± SE", cell=lambda name: number(vectors.bits_per_byte(name))),
        Column("", title=f"less {plain(first)}", cell=against),
    )
    out.print(table(columns, vectors.names, "\nHow good each model is"))


def has_ladder(vectors: Vectors, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether two models or more are compared with the first alone, or all models are its variants."""
    variants = all(ref.name == vectors.models[0].name for ref in vectors.models)
    return len(vectors) > 2 and (variants or all(pair[0] == vectors.names[0] for pair in pairs))


def print_ladder(vectors: Vectors) -> None:
    """The models from the nearest to the first to the farthest, each step with its paired standard error, and whether
    they differ from the first in the same way; on common texts and clip."""
    clip, vectors = vectors.texts.clip, vectors.on_common_texts()
    first, around = vectors.names[0], Around(vectors)
    rungs = {name: around.pair(first, name) for name in vectors.names[1:]}
    order = sorted(rungs, key=lambda name: rungs[name].kl.value)
    above, (difference, estimator) = dict(zip(order[1:], order, strict=False)), vectors.paired_difference()

    def step(name: str) -> str:
        return number(difference((first, name), (first, above[name]))) if name in above else ""

    columns = (
        Column("", title="model", cell=plain, words=True),
        *(sizes.printed_columns(vectors.size) if any(map(vectors.size, order)) else ()),
        Column("", title=f"KL ± SE, {BITS}", cell=lambda name: marked(rungs[name])),
        Column("", title=f"more than the one above, by {estimator}", cell=step),
    )
    out.print(table(columns, order, f"\nFrom {plain(first)}"))
    cautions.print_footnotes(None, rungs.values())
    if any(map(vectors.size, order)):
        own = vectors.size(first)
        itself = "" if own is None else f" {plain(first)}: {own.bits_per_weight:.2f} bits, {megabytes(own.file_bytes)}."
        out.print(f"{sizes.COUNTED}{itself}", style="dim")
    if vectors.texts.clip != clip and estimator == WHOLE_TEXTS:
        out.print("Not clipped here: the clip would move more than 5 % of a vector.", style="yellow")
    if len(order) > MANY:
        return
    shifts = (
        Column("", title="model", cell=lambda pair: plain(pair[0]), words=True),
        Column("", title="model", cell=lambda pair: plain(pair[1]), words=True),
        Column("", title="cosine", cell=lambda pair: number(vectors.shift_cosine(first, *pair))),
    )
    title = f"\nDo they shift {plain(first)} the same way? (1: yes)"
    out.print(table(shifts, list(combinations(order, 2)), title))
