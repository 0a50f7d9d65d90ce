"""A card: Markdown and YAML for a model page, and the numbers behind it in a file beside it.

The card is made from the numbers as they are kept, so that `card_checks` can compare each value and each line of it
with what its numbers give.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from klscale.errors import InputError, ScoringError
from klscale.inputs.references import ModelRef, parse_all
from klscale.inputs.texts import TextSet
from klscale.limits import CARD_BYTES
from klscale.science.estimates import Estimate
from klscale.show import sizes
from klscale.show.cautions import Around, Measured, footnotes, of_documents, print_footnotes
from klscale.show.columns import ESTIMATE, HEAD, Column, estimate, number, percent, record, table, within
from klscale.show.files import require_ending, whole
from klscale.show.markdown import escaped, markdown_table
from klscale.show.pairs import KL_COLUMNS, WHAT_IT_IS
from klscale.show.sizes import size_column
from klscale.show.terminal import for_json, out, plain
from klscale.store.card_numbers import Numbers, numbers_from_parquet, numbers_to_parquet
from klscale.store.store import Store
from klscale.studies.calibration import QUANTILES
from klscale.studies.cards import N_TEXTS, Variant, gather, variants_of
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.score import score
from klscale.sweep.jobs import Outcome
from klscale.vectors.sizes import Size

BEGIN, END = "<!-- klscale card -->", "<!-- end of the klscale card -->"
"""Lines around the part of a page that is a card."""
VERSION = 1
"""Changes with whatever a card says or how it says it: an older card would differ from what is made of its numbers."""
TOKENS = "nats/token"
QUANTILE_NAMES = {share: "median" if share == 0.5 else f"{100 * share:g} %" for share in QUANTILES}


@dataclass(frozen=True)
class _Row:
    """A variant, with what cautions need to know of its KL."""

    it: Variant
    measured: Measured


def _optional(found: Estimate | None, write: Callable[[Estimate], str] = number) -> str:
    return "" if found is None or math.isnan(found.value) else write(found)


def _quantile(place: int) -> Column:
    def cell(row: _Row) -> str:
        return "" if row.it.exact is None else number(row.it.exact.quantiles[place])

    return Column("", title=QUANTILE_NAMES[QUANTILES[place]], cell=cell,
                  importance=int(QUANTILES[place] not in (0.9, 0.95)))  # fmt: skip


_SHOWN_KL = ("kl", "standard_error", "estimator", "interval_low", "interval_high", "n_texts", "cautions")
EXACT = (
    estimate("forward", "Exact KL from the base to this model on these texts."),
    estimate("mean", "Mean over single tokens.", TOKENS),
    Column("quantiles", "Quantiles over tokens, at `quantiles_of_tokens`.", TOKENS, within=ESTIMATE, many=True),
    Column("maximum", "The largest.", TOKENS),
    estimate("same_top", "Share of positions where both models have the same most probable token.", "share"),
    Column("n_tokens", "Tokens.", "tokens"),
)  # fmt: skip
"""Of a `NextTokenFigures`."""
MODEL = Column("model", "The model.", value=lambda row: row.it.name, title="model", words=True, importance=2)
DISTANCE = (
    MODEL,
    *within([
            replace(column, importance=0) if column.key == "interval_low" else column
            for column in KL_COLUMNS if column.key in _SHOWN_KL
        ], lambda row: row.measured),
    estimate("bits_per_byte", "How well it predicts the texts; less is better.", value=lambda row: row.it.bits_per_byte,
             title="bits/byte ± SE"),
    estimate("bits_per_byte_difference", "That less the base's, paired: above 0, the base is better.",
             value=lambda row: row.it.difference, title="less the base",
             cell=lambda row: number(row.it.difference, sign=True)),
    size_column("size", "How large it is;", lambda row: row.it.size),
)  # fmt: skip
"""Of a `_Row`: how far it is, and how good."""
NEXT_TOKENS = (
    replace(MODEL, key=""),
    Column("exact", "Exact KL of next tokens from the base to this model; null: not measured.",
           value=lambda row: row.it.exact, within=EXACT),
    Column("", title="KL(base‖model), bits/byte", cell=lambda row: _optional(row.it.exact and row.it.exact.forward),
           importance=0),
    Column("", title="mean, nats/token", cell=lambda row: _optional(row.it.mean_nats)),
    *map(_quantile, range(len(QUANTILES))),
    Column("", title="largest", cell=lambda row: "" if row.it.exact is None else f"{row.it.exact.maximum:.3g}",
           importance=0),
    Column("", title="same top token", cell=lambda row: _optional(row.it.same_top, percent), importance=2),
)  # fmt: skip
"""Of a `_Row`: single next tokens."""
MEASURED = (
    Column("model", "The model.", value=lambda about: about["ref"]),
    Column("identity", "Hub commit, or hash of the model's files.", value=lambda about: about.get("identity")),
    Column("content", "Hash of what is in these files; null: not known.", value=lambda about: about.get("content")),
    Column("checksum", "Hash of its log-likelihoods.", value=lambda about: about["checksum"]),
    Column("source", "What computed them.", value=lambda about: about.get("source")),
    Column("dtype", "Dtype of the computation.", value=lambda about: about.get("dtype")),
    Column("convention", "How a text was scored.", value=lambda about: about["convention"]),
    Column("versions", "Versions of the packages.", value=lambda about: about.get("versions")),
)
"""Of a vector's metadata: what exactly was measured."""
CARD = (
    Column("base", "The model that the others are compared with."),
    *HEAD,
    Column("n_texts", "Texts of the set.", "texts", lambda it: len(it.texts)),
    estimate("base_bits_per_byte", "How well the base predicts the texts."),
    size_column("base_size", "How large the base is;", lambda it: it.base_size),
    Column("quantiles_of_tokens", "Which quantiles of single tokens are given.", "share", lambda _: QUANTILES),
    Column("variants", "Each other model.", value=lambda it: it.rows, within=(*DISTANCE, *NEXT_TOKENS), many=True),
    Column("measured", "What exactly was measured, the base first.", within=MEASURED, many=True),
)
"""Of a `Card`."""


@dataclass(frozen=True, eq=False)
class Card:
    """The figures of a model page: those of `variants` beside the first model of `numbers`. `file` is the card and
    `numbers_file` the numbers behind it, where they were written. `outcomes` has the status of each model."""

    numbers: Numbers
    variants: tuple[Variant, ...]
    outcomes: tuple[Outcome, ...] = ()
    file: Path | None = None
    numbers_file: Path | None = None

    @property
    def base(self) -> str:
        """The model that the others are compared with."""
        return self.numbers.names[0]

    @property
    def texts(self) -> TextSet:
        """The texts, without their words where it was read from a file."""
        return self.numbers.texts

    @property
    def base_bits_per_byte(self) -> Estimate:
        """Bits per byte of the base."""
        return self.numbers.vectors.bits_per_byte(self.base)

    @property
    def base_size(self) -> Size | None:
        """Size of the base; None where it was not recorded."""
        return self.numbers.vectors.size(self.base)

    @property
    def measured(self) -> tuple[Mapping[str, Any], ...]:
        """The metadata of each vector, the base first."""
        return self.numbers.metadata

    @property
    def rows(self) -> list[_Row]:
        """The variants with what cautions need."""
        around = Around(self.numbers.vectors)
        return [_Row(one, around.pair(self.base, one.name, one.kl)) for one in self.variants]

    def __str__(self) -> str:
        lines = [f"{one.name}: KL from {self.base} {one.kl}, {one.difference} more" for one in self.variants]
        return "\n".join([*lines, *(str(file) for file in (self.file, self.numbers_file) if file)])


# --------------------------------------------------------------------------------------------------------- the verbs


def card(
    base: str | ModelRef,
    variants: Sequence[str | ModelRef],
    file: str | os.PathLike[str] = "klscale-card.md",
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    n_texts: int = N_TEXTS,
    options: Options = Options(),
) -> Card:
    """The card of some models for a model page, written to `file` (.md), with the numbers behind it beside it
    (.parquet): KL in bits per byte from `base` to each of the `variants` with standard errors, bits per byte, size, and
    exact KL of next tokens in nats with quantiles, on `n_texts` random texts (0: without). Models that the store lacks
    are scored.

    Raises InputError for a file that is there and no card, for fewer than two models, and for texts or options that
    cannot be used; ScoringError where the base or every variant could not be scored.

        card = klscale.card("gpt2", ["gpt2+nf4", "gpt2+int8"], "card.md", "my-texts.jsonl")
        print(klscale.check_card("card.md"))
    """
    place = Path(file)
    beside = place.with_suffix(".parquet")
    require_ending(place, (".md",))
    _require_no_other(place, beside)
    made = measured_card([base, *variants], n_texts, options.at(texts, store))
    data = numbers_to_parquet(made.numbers)
    kept = numbers_from_parquet(data)  # what a check will read
    made = replace(made, numbers=kept, variants=variants_of(kept))
    whole(beside, lambda temporary: temporary.write_bytes(data))
    text = text_of(made, beside.name, hashlib.sha256(data).hexdigest())
    CARD_BYTES.require(len(text.encode()), str(place))
    whole(place, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return replace(made, file=place, numbers_file=beside)


def _require_no_other(file: Path, beside: Path) -> None:
    """Raise InputError where writing a card would overwrite anything but a card and its numbers."""
    if not file.exists():
        if beside.exists():
            what = f"{beside} is there, without a card."
            raise InputError(what, "It would be overwritten.", "Give another name with --out.")
        return
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size <= CARD_BYTES.value else ""
    except (OSError, ValueError):
        text = ""
    before, found, rest = text.partition(BEGIN)
    if not found or rest.partition(END)[2].strip() or not re.fullmatch(r"---\n.*\n---\s*", before, re.DOTALL):
        what = f"{file} is there, and more than a card."
        raise InputError(what, "It would be overwritten.", "Give another name with --out, and paste the card there.")


def measured_card(models: Sequence[str | ModelRef], n_texts: int, options: Options) -> Card:
    """The figures of a card, of the models scored now where the store lacks them; no file is written."""
    refs = parse_all(models)
    if len(refs) < 2:
        raise InputError("A card needs a base and a variant of it.", remedy="klscale card BASE VARIANT...")
    if n_texts < 0 or n_texts == 1:
        raise InputError(f"{n_texts} text is too few.", "A standard error needs two.", "0 leaves exact KL out.")
    scored = score(refs, options=options)
    found = [(outcome.ref, outcome.entry) for outcome in scored.outcomes if outcome.entry is not None]
    if len(found) < 2 or scored.outcomes[0].entry is None:
        raise ScoringError(scored.outcomes)
    how = options.scoring("device", "batch_tokens", "rescore", "progress")
    numbers = gather(scored.texts, scored.store, found, n_texts=n_texts, **how)
    return Card(numbers, variants_of(numbers), scored.outcomes)


# ------------------------------------------------------------------------------------------------------------- writing


def text_of(made: Card, numbers_file: str, digest: str) -> str:
    """The card: YAML in front, as the hub reads it, then Markdown."""
    front = yaml.safe_dump(front_matter(made, numbers_file, digest), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n{BEGIN}\n{body_of(made, numbers_file)}{END}\n"


def front_matter(made: Card, numbers_file: str, digest: str) -> dict[str, Any]:
    """The YAML as data: what the hub calls a model index, and under `klscale` what was measured and where the numbers
    are."""
    texts = made.texts
    dataset = {"type": "klscale", "name": texts.name, "args": {"text_set": texts.id, "n_texts": len(texts)}}
    task = {"type": "text-generation"}
    found: dict[str, Any] = {
        "model-index": [
            {
                "name": row.it.name,
                "results": [{"task": task, "dataset": dataset, "metrics": list(_metrics(made.base, row))}],
            }
            for row in made.rows
        ],
        "klscale": {
            "card": VERSION,
            "base": made.base,
            "numbers": numbers_file,
            "sha256": digest,
            "texts": record(HEAD, made),
            "measured": [record(MEASURED, about) for about in made.measured],
        },
    }
    copied: dict[str, Any] = for_json(found)  # without shared parts, which YAML would write as references
    return copied


def _metrics(base: str, row: _Row) -> Iterator[dict[str, Any]]:
    """Each figure as the hub has metrics."""
    it, exact = row.it, row.it.exact

    def metric(kind: str, name: str, of: Estimate, **more: Any) -> dict[str, Any]:
        args = {"standard_error": of.standard_error, "unit": of.unit, "n_texts": of.n_texts, **more}
        return {"type": kind, "name": name, "value": float(of.value), "args": args}

    kl = row.measured.kl
    reported = Estimate(kl.value, kl.standard_error, kl.interval, kl.n_texts)
    held = [caution.key for caution in row.measured.cautions]
    yield metric("kl", f"KL to {base}", reported, estimator=kl.estimator, cautions=held)
    if exact is not None:
        yield metric("forward", f"KL from {base}, exact, next tokens", exact.forward)
        yield metric("mean", f"KL from {base}, single tokens, mean", exact.mean, n_tokens=exact.n_tokens)
        for share, found in zip(QUANTILES, exact.quantiles, strict=True):
            yield metric(f"quantile_{100 * share:g}", f"KL from {base}, single tokens, {QUANTILE_NAMES[share]}", found)
        yield metric("same_top", f"same most probable token as {base}", exact.same_top)
    yield metric("bits_per_byte", "bits per byte", it.bits_per_byte)
    yield metric("bits_per_byte_difference", f"bits per byte less those of {base}", it.difference)
    if it.size is not None:
        args = {"unit": "bits", "file_bytes": it.size.file_bytes, "n_weights": it.size.n_weights}
        name = "bits per weight in files"
        yield {"type": "bits_per_weight", "name": name, "value": it.size.bits_per_weight, "args": args}


def body_of(made: Card, numbers_file: str) -> str:
    """The Markdown between the two marks: two tables, what they mean, cautions, and how to check them."""
    rows, base = made.rows, escaped(made.base)
    size = "" if made.base_size is None else (
        f", {made.base_size.bits_per_weight:.2f} bits/weight, {sizes.megabytes(made.base_size.file_bytes)}"
    )  # fmt: skip
    lines = [
        f"## Distance to {base}",
        "",
        *markdown_table(table(_shown(rows), rows)),
        "",
        f"{base}: {number(made.base_bits_per_byte)} bits/byte{size}. KL "
        + "; ".join(
            f"by {by}: {WHAT_IT_IS[by]}" for by in WHAT_IT_IS if by in {row.measured.kl.estimator for row in rows}
        )
        + f". ± is the standard error over texts. {sizes.COUNTED if any(row.it.size for row in rows) else ''}".rstrip(),
    ]
    if some := [row for row in rows if row.it.mean_nats]:
        lines += ["", f"KL of single next tokens, from {base}:", "", *markdown_table(table(NEXT_TOKENS, some)), ""]
        exact = next((row.it.exact for row in some if row.it.exact), None)
        if exact is not None:
            lines.append(
                f"Exact, over the whole vocabulary, on {exact.mean.n_texts:,} texts drawn at random with "
                f"{exact.n_tokens:,} tokens; quantiles are over tokens, in nats."
            )
        if any(row.it.exact is None for row in some):
            lines.append("Rows without quantiles: from sampled tokens, exact in expectation.")
    lines += ["", *(f"- {escaped(line)}" for line in footnotes(row.measured for row in rows))]
    lines += [f"- {escaped(warning)}" for warning in of_documents(made.texts)]
    texts, versions = made.texts, made.measured[0].get("versions") or {}
    known = ", ".join(f"{escaped(name)} {escaped(one)}" for name, one in versions.items())
    dtypes = ", ".join(sorted({escaped(about["dtype"]) for about in made.measured if about.get("dtype")})) or "n/a"
    lines += [
        "",
        f"Texts: {escaped(texts.name)} ({texts.id}), {len(texts):,} texts. Computed in {dtypes}, with {known}.",
        f"All numbers: [{escaped(numbers_file)}]({quote(numbers_file)}). Check: `klscale check-card`.",
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _shown(rows: Sequence[_Row]) -> tuple[Column, ...]:
    """The columns of the first table; sizes where one is known."""
    known = any(row.it.size for row in rows)
    return (*DISTANCE, *(sizes.printed_columns(lambda row: row.it.size) if known else ()))


# ------------------------------------------------------------------------------------------------------- for a person


def card_record(made: Card) -> dict[str, Any]:
    """The figures of a card for a machine."""
    return record(CARD, made)


def print_card(made: Card) -> None:
    """The tables of a card, and where it is."""
    rows = made.rows
    out.print(f"{plain(made.texts.name)} ({made.texts.id}): {len(made.texts):,} texts")
    out.print(table(_shown(rows), rows, f"\nFrom {plain(made.base)}"))
    if some := [row for row in rows if row.it.mean_nats]:
        out.print(table(NEXT_TOKENS, some, "\nKL of single next tokens, nats/token"))
    print_footnotes(made.texts, [row.measured for row in rows])
    if made.file is not None:
        out.print(f"\nWrote {plain(made.file)} and its numbers, {plain(made.numbers_file)}.")
        out.print(f"To check it: klscale check-card {plain(made.file)}", soft_wrap=True)
