"""What `klscale changes` shows: KL by domain, the texts and spans that changed most, and these texts in colours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from klscale.science.estimates import Estimate
from klscale.show import markup
from klscale.show.cautions import Around, Measured, print_footnotes
from klscale.show.columns import BITS, HEAD, Column, estimate, number, record, table, unit, within
from klscale.show.files import TABLES, save_table, whole
from klscale.show.names import short_names, shortened
from klscale.show.pairs import OF_PAIR, kl, marked, print_estimators
from klscale.show.sections import footnotes
from klscale.show.tails import TEXT
from klscale.show.terminal import describe_texts, out, plain, say
from klscale.studies.changes import ChangedDomain, Changes, ExactText, excerpt
from klscale.studies.verbs.changes import ModelChanges

WORDS, DOMAIN = 44, 16
"""Characters of an excerpt and of a domain in a row."""
STEPS = 8
"""Steps of colour."""
READING = (
    "nats: log-likelihood, variant less base; below 0, the variant predicts it worse. A single text or span has no "
    "standard error, and these were chosen for being extreme. Texts and bytes are counted from 0."
)


@dataclass(frozen=True)
class _Domain:
    """A domain, with what cautions need of its KL."""

    it: ChangedDomain
    measured: Measured


@dataclass(frozen=True)
class _Changes:
    """What changed, with what cautions need."""

    it: Changes
    measured: Measured
    by_domain: list[_Domain]


def _rows(found: ModelChanges) -> list[_Changes]:
    around = Around(found.vectors)

    def row(one: Changes) -> _Changes:
        whole_set = around.pair(one.base, one.variant, one.kl)
        domains = [
            _Domain(domain, Measured(domain.kl, domain.n_texts, whole_set.dtypes, whole_set.noise))
            for domain in one.domains
        ]
        return _Changes(one, whole_set, domains)

    return [row(one) for one in found.found]


def _loss(found: Estimate) -> str:
    return "" if math.isnan(found.standard_error) else number(found, sign=True)


def _said(words: str) -> str:
    return plain(shortened(" ".join(words.split()), WORDS, tail=0.3))


CHANGE = Column(
    "change", "Log-likelihood under the variant less that under the base.", "nats", title="nats",
    cell=lambda it: f"{it.change:+.2f}",
)  # fmt: skip
DOMAINS = (
    Column("domain", "The domain.", value=lambda it: it.it.domain, title="domain", words=True,
           cell=lambda it: plain(shortened(it.it.domain, DOMAIN)), importance=2),
    Column("n_texts", "Its texts that both models have.", "texts", lambda it: it.it.n_texts, "texts"),
    kl("kl", "KL on these.", lambda it: it.measured, title="KL ± SE, bits/byte", importance=2),
    Column("", title="by", cell=lambda it: it.it.kl.estimator, words=True),
    estimate("bits_per_byte_difference", "Difference in bits/byte, variant less base, paired: above 0, it is worse.",
             value=lambda it: it.it.difference, title="difference, bits/byte", cell=lambda it: _loss(it.it.difference)),
)  # fmt: skip
TEXTS = (
    Column("", title="text", cell=lambda it: str(it.text.position)),
    Column("text", "The text.", within=TEXT),
    CHANGE,
    Column("per_byte", "That in bits/byte, as a loss: above 0 is worse.", BITS, title="bits/byte",
           cell=lambda it: f"{it.per_byte:+.3f}"),
    Column("", title="bytes", cell=lambda it: f"{it.text.bytes:,}"),
    Column("", title="domain", cell=lambda it: plain(shortened(it.text.domain or "", DOMAIN)), words=True),
    Column("", title="begins", cell=lambda it: _said(it.text.beginning or ""), words=True),
)  # fmt: skip
SPANS = (
    Column("", title="text", cell=lambda it: str(it.text.position)),
    Column("text", "Its text.", within=TEXT),
    Column("start", "Its first byte in the text, from 0.", "bytes", title="byte", cell=lambda it: str(it.start)),
    Column("bytes", "Its length.", "bytes", title="bytes"),
    CHANGE,
    Column("share", "Its share of KL by spans.", "share", title="share", cell=lambda it: f"{it.share:.2%}"),
    Column("", title="domain", cell=lambda it: plain(shortened(it.text.domain or "", DOMAIN)), words=True,
           importance=0),
    Column("excerpt", "What it says.", title="says", cell=lambda it: _said(it.excerpt), words=True, importance=2),
)  # fmt: skip
TOKENS = (
    Column("", title="text", cell=lambda it: str(it.text.position)),
    Column("text", "Its text.", within=TEXT),
    Column("start", "Its first byte in the text, from 0.", "bytes", title="byte", cell=lambda it: str(it.start)),
    Column("kl", "KL(base‖variant) of the distributions that predict it, exact.", "nats", title="KL, nats",
           cell=lambda it: f"{it.kl:.2f}"),
    Column("says", "What it says.", title="token", cell=lambda it: plain(shortened(repr(it.says), WORDS)), words=True,
           importance=2),
)  # fmt: skip
OVERVIEW = (
    Column("", title="variant", cell=lambda it: plain(it[0]), words=True),
    Column("", title="KL ± SE, bits/byte", cell=lambda it: marked(it[1].measured)),
    Column("", title="difference, bits/byte", cell=lambda it: _loss(it[1].it.difference)),
    Column("", title="farthest domain", cell=lambda it: _farthest(it[1]), words=True),
)
"""Of the name of a variant and what changed, beside other variants; for terminal and page alone."""
OF_VARIANT = (
    Column("base", "The model that the other was made from.", value=lambda it: it.it.base),
    Column("variant", "The other model.", value=lambda it: it.it.variant),
    *within(OF_PAIR, lambda it: it.measured),
    estimate("bits_per_byte_difference", "Difference in bits/byte, variant less base, paired: above 0, it is worse.",
             value=lambda it: it.it.difference),
    Column("domains", "By domain, the largest KL first.", value=lambda it: it.by_domain, within=DOMAINS, many=True),
    Column("changed_texts", "The texts that changed most.", value=lambda it: it.it.changed_texts, within=TEXTS,
           many=True),
    Column("spans", "The spans that changed most.", value=lambda it: it.it.spans, within=SPANS, many=True),
    Column("share_of_spans", "Share of KL by spans of these; null without spans.", "share",
           lambda it: it.it.share_of_spans),
    Column("tokens", "With --exact, the tokens of these texts whose prediction changed most.",
           value=lambda it: it.it.tokens(), within=TOKENS, many=True),
)  # fmt: skip
CHANGES = (
    *HEAD,
    unit(),
    Column("variants", "Each variant.", value=lambda it: it.rows, within=OF_VARIANT, many=True),
)


def _farthest(row: _Changes) -> str:
    """The domain with the largest KL, with that; empty where there is but one."""
    if len(row.by_domain) < 2:
        return ""
    first = row.by_domain[0]
    return f"{plain(shortened(first.it.domain, DOMAIN))}, {marked(first.measured)}"


def _overview(rows: list[_Changes]) -> list[tuple[str, _Changes]]:
    """The variants with short names, the nearest first; none where there is but one."""
    ordered = sorted(rows, key=lambda row: row.it.kl.value)
    names = short_names([row.it.variant for row in ordered])
    return [*zip(names, ordered, strict=True)] if len(rows) > 1 else []


def _in_short(row: _Changes) -> str:
    it = row.it
    return (
        f"KL {marked(row.measured)} bits/byte, by {it.kl.estimator}. Bits per byte: "
        f"{_loss(it.difference) or number(it.difference)}."
    )


def changes_record(found: ModelChanges) -> dict[str, Any]:
    """What changed, for a machine."""
    return record(CHANGES, SimpleNamespace(texts=found.vectors.texts, rows=_rows(found)))


def print_changes(found: ModelChanges) -> None:
    """The variants beside each other; for each KL, by domain, then the texts and spans that changed most."""
    out.print(describe_texts(found.vectors.texts))
    rows = _rows(found)
    if beside := _overview(rows):
        out.print(table(OVERVIEW, beside, f"\nFrom {plain(rows[0].it.base)}, nearest first"))
    for row in rows:
        it = row.it
        say(f"\n{plain(it.base)} to {plain(it.variant)}: {_in_short(row)}")
        if len(it.domains) > 1:
            out.print(table(DOMAINS, row.by_domain, "\nBy domain"))
        out.print(table(TEXTS, it.changed_texts, "\nThe texts that changed most"))
        if it.all_spans is None:
            say("No spans are known of both models: they were imported, or have a tokenizer without offsets.", "dim")
        else:
            out.print(table(SPANS, it.spans, "\nThe spans that changed most"))
            n_spans = len(it.all_spans.text)
            say(f"These {len(it.spans)} of {n_spans:,} spans carry {it.share_of_spans:.0%} of KL by spans.")
        if it.exact:
            out.print(table(TOKENS, it.tokens(), "\nThe tokens of these texts whose prediction changed most"))
        say(READING, "dim")
        print_estimators([row.measured])
        print_footnotes(it.texts, [row.measured, *(domain.measured for domain in row.by_domain)])


def save_changes(found: ModelChanges, file: Path) -> None:
    """Every span of every variant as a table, or the texts that changed most as a page in colours."""
    if file.suffix in TABLES:
        save_table(file, [row for one in found.found for row in _span_rows(one)])
    else:
        page = page_of(found).encode(errors="replace")
        whole(file, lambda temporary: temporary.write_bytes(page))


def _span_rows(found: Changes) -> Iterator[dict[str, Any]]:
    spans = found.all_spans
    for s in range(0 if spans is None else len(spans.text)):
        assert spans is not None
        text, start, stop = int(spans.text[s]), int(spans.start[s]), int(spans.stop[s])
        yield {
            "base": found.base,
            "variant": found.variant,
            "text": text,
            "start": start,
            "bytes": stop - start,
            "domain": None if found.texts.domain is None else found.texts.domain[text],
            "change": float(spans.change[s]),
            "share": float(spans.share[s]),
            "excerpt": excerpt(found.texts, text, start, stop),
        }


# ------------------------------------------------------------------------------------------------------------ the page

STYLE = """
:root { color-scheme: light dark; --worse: #c0392b; --better: #2471a3; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
caption { text-align: left; font-weight: 600; }
th, td { padding: 0.15rem 0.9rem 0.15rem 0; text-align: left; font-weight: normal; }
thead th { border-bottom: 1px solid; } .number { text-align: right; } .scroll { overflow-x: auto; }
.text { white-space: pre-wrap; border-left: 3px solid color-mix(in srgb, currentColor 25%, transparent);
  padding-left: 1rem; } .quiet { opacity: 0.75; }
""" + "\n".join(
    f".{way}{step} {{ background: color-mix(in srgb, var(--{name}) {round(70 * step / STEPS)}%, transparent); }}"
    for way, name in (("w", "worse"), ("b", "better"))
    for step in range(1, STEPS + 1)
)


def page_of(found: ModelChanges) -> str:
    """The texts that changed most, each span in the colour of its change: one page without scripts or requests."""
    rows = _rows(found)
    title = f"What changed from {found.vectors.names[0]}"
    beside = _overview(rows)
    parts = [markup.table(OVERVIEW, beside, "Nearest first", head="variant")] if beside else []
    parts += [part for row in rows for part in _sections(row)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{markup.escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body>'
        f"<h1>{markup.escape(title)}</h1><p>{markup.escape(_texts_of(found))}</p>{''.join(parts)}</body></html>\n"
    )


def _texts_of(found: ModelChanges) -> str:
    texts = found.vectors.texts
    return f"{texts.name} ({texts.id}), {len(texts):,} texts."


def _sections(row: _Changes) -> Iterator[str]:
    it = row.it
    yield f"<h2>{markup.name(it.variant)}</h2>"
    yield f"<p>{markup.escape(_in_short(row))}</p>"
    if len(it.domains) > 1:
        yield markup.table(DOMAINS, row.by_domain, "By domain", head="domain")
    if it.spans:
        yield markup.table(SPANS, it.spans, "The spans that changed most")
    yield footnotes([row.measured, *(domain.measured for domain in row.by_domain)])
    yield f'<p class="quiet">{markup.escape(READING)}</p>'
    if it.all_spans is None or it.texts.texts is None:
        return
    limit = float(np.quantile(np.abs(it.all_spans.change), 0.99)) if len(it.all_spans.change) else 0.0
    each = np.concatenate([np.zeros(0), *(read.kl for read in it.exact.values())])
    exact_limit = float(np.quantile(each, 0.99)) if len(each) else 0.0
    yield (
        f'<p>Each span in colour: <span class="w{STEPS}">predicted worse</span>, '
        f'<span class="b{STEPS}">predicted better</span> by the variant, in full colour from {limit:.3g} nats on. '
        "Point at a span to see its change.</p>"
    )
    for changed in it.changed_texts:
        domain = f", {changed.text.domain}" if changed.text.domain else ""
        yield f"<h3>Text {changed.text.position}{markup.escape(domain)}: {changed.change:+.2f} nats</h3>"
        yield f'<p class="text">{_coloured(it, changed.text.position, limit)}</p>'
        if (read := it.exact.get(changed.text.position)) is not None:
            yield f"<p>Exact KL of next tokens, in full colour from {exact_limit:.3g} nats on:</p>"
            yield f'<p class="text">{_coloured_tokens(it, changed.text.position, read, exact_limit)}</p>'


def _coloured(it: Changes, text: int, limit: float) -> str:
    """A text as HTML, each of its spans in the colour of its change."""
    assert it.all_spans is not None
    found, done = list[str](), 0
    for s in np.flatnonzero(it.all_spans.text == text):
        start, stop, change = int(it.all_spans.start[s]), int(it.all_spans.stop[s]), float(it.all_spans.change[s])
        found.append(_escaped(excerpt(it.texts, text, done, start)))
        step = min(STEPS, math.ceil(STEPS * abs(change) / limit)) if limit > 0 else 0
        look = f' class="{"w" if change < 0 else "b"}{step}"' if step else ""
        found.append(f'<span{look} title="{change:+.3f} nats">{_escaped(excerpt(it.texts, text, start, stop))}</span>')
        done = stop
    return "".join([*found, _escaped(excerpt(it.texts, text, done, int(it.texts.bytes[text])))])


def _coloured_tokens(it: Changes, text: int, read: ExactText, limit: float) -> str:
    """A text as HTML, each of its tokens in the colour of its KL."""
    assert it.texts.texts is not None
    found, done, data = list[str](), 0, it.texts.texts[text].encode()

    def whole_character(place: int) -> int:
        """The first byte from here on that begins a character: what a token cuts goes to the token before."""
        while place < len(data) and data[place] & 0xC0 == 0x80:
            place += 1
        return place

    for begin, end, nats in zip(read.start.tolist(), read.stop.tolist(), read.kl.tolist(), strict=True):
        start, stop = whole_character(begin), whole_character(end)
        if stop <= max(start, done):
            continue
        found.append(_escaped(excerpt(it.texts, text, done, start)))
        step = min(STEPS, math.ceil(STEPS * nats / limit)) if limit > 0 else 0
        look = f' class="w{step}"' if step > 0 else ""
        found.append(f'<span{look} title="{nats:.3f} nats">{_escaped(excerpt(it.texts, text, start, stop))}</span>')
        done = stop
    return "".join(found)


def _escaped(words: str) -> str:
    """A text as HTML with its line ends."""
    return "\n".join(map(markup.escape, words.split("\n")))
