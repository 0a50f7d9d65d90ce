"""What `klscale texts` shows: the text sets that there are, one of them, and those that it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from klscale.inputs.texts import NAMED, TextSet
from klscale.show.columns import TEXTS, Column, lines, table
from klscale.show.scoring import print_lost_cuts
from klscale.show.stores import LISTED
from klscale.show.terminal import describe_texts, out, plain
from klscale.show.text_sets import NEEDED, print_texts_needed
from klscale.studies.validity import TextsNeeded

if TYPE_CHECKING:
    from klscale.studies.verbs.draw import DrawnTexts


@dataclass(frozen=True, eq=False)
class KnownTexts:
    """A text set; the share of its cuts that the tokenizer of each scored model loses; and how many texts a wanted
    error needs, where models are scored."""

    texts: TextSet
    lost_cuts: Mapping[str, float]
    texts_needed: Sequence[TextsNeeded]

    @property
    def domains(self) -> dict[str, int]:
        """Texts of each domain; empty where domains are not known."""
        return dict(sorted(Counter(self.texts.domain or ()).items()))

    @property
    def n_documents(self) -> int | None:
        """Documents; None where they are not known."""
        return len(set(self.texts.document)) if self.texts.document else None


N_TEXTS = Column("n_texts", "Its texts.", "texts", lambda it: len(it.texts))
MEAN_BYTES = Column("mean_bytes", "Mean length of a text.", "bytes", lambda it: it.texts.mean_bytes)
NAME = Column("name", "Name of the text set.", value=lambda it: it.texts.name)
ID = Column("id", "Its id, which changes with any text.", value=lambda it: it.texts.id)
CLIP = Column("clip", "Lower limit of log-likelihoods that is frozen for these texts; null: none.", "nats",
              lambda it: it.texts.clip)  # fmt: skip
TEXT_SETS = (
    Column("named", "By name, what the named sets are.", value=lambda _: NAMED),
    Column("store", "Each text set of the store.", value=lambda heads: [SimpleNamespace(**head) for head in heads],
           within=tuple(column for column in LISTED if column.key != "models"), many=True),
)  # fmt: skip
"""Of the heads of the text sets of a store."""
KNOWN_TEXTS = (
    NAME,
    ID,
    N_TEXTS,
    MEAN_BYTES,
    Column("min_bytes", "Length of the shortest text.", "bytes", lambda it: it.texts.bytes.min()),
    Column("median_bytes", "Median length.", "bytes", lambda it: int(np.median(it.texts.bytes))),
    Column("max_bytes", "Length of the longest text.", "bytes", lambda it: it.texts.bytes.max()),
    CLIP,
    Column("external", "Whether log-likelihoods alone are known, and not the texts.",
           value=lambda it: it.texts.external),
    Column("domains", "By domain, its texts; empty where domains are not known.", "texts"),
    Column("n_documents", "Documents; null where they are not known.", "documents"),
    Column("lost_cuts", "By model, share of the cuts between spans that its tokenizer loses.", "share"),
    Column("texts_needed", "How many texts a relative error needs.", within=NEEDED, many=True),
)  # fmt: skip
"""Of a `KnownTexts`."""
BUILT = (Column("file", "The file that was written."), ID, N_TEXTS, MEAN_BYTES)
DRAWN = (
    NAME,
    ID,
    N_TEXTS,
    MEAN_BYTES,
    Column("drawn", "From which model, and how: what the store keeps of it.", value=lambda it: it.texts.drawn),
)
"""Of a `DrawnTexts`."""
CLIPPED = (
    *TEXTS,
    CLIP,
)


def _origin(head: Mapping[str, Any]) -> str:
    if head["external"]:
        return "log-likelihoods only"
    drawn = head["drawn"]
    return "" if drawn is None else f"written by {plain(drawn.get('author'))}, seed {plain(drawn.get('seed'))}"


HEADS = (
    Column("", title="name", cell=lambda it: plain(it["name"]), words=True, importance=2),
    Column("", title="id", cell=lambda it: it["id"], words=True, importance=2),
    Column("", title="texts", cell=lambda it: f"{it['n_texts']:,}"),
    Column("", title="mean bytes", cell=lambda it: f"{it['mean_bytes']:.1f}"),
    Column("", title="clip, nats", cell=lambda it: "" if it["clip"] is None else f"{it['clip']:.1f}"),
    Column("", title=" ", cell=_origin, words=True),
)
"""Of the head of a text set, for the terminal alone."""


def print_text_sets(heads: Sequence[Mapping[str, Any]]) -> None:
    """The text sets of a store as a table, then the named ones."""
    if heads:
        out.print(table(HEADS, heads))
    for name, what in NAMED.items():
        out.print(f"{name}: {what}")


def print_known_texts(it: KnownTexts) -> None:
    """Lengths, documents, domains, lost cuts, and the number of texts for a wanted error."""
    texts, n_documents, domains = it.texts, it.n_documents, it.domains
    low, middle, high = (int(end) for end in np.quantile(texts.bytes, [0.0, 0.5, 1.0]))
    out.print(describe_texts(texts))
    out.print(f"bytes: {low:,} to {high:,}, median {middle:,}; {int(texts.bytes.sum()):,} in all")
    if n_documents is not None:
        shared = "; standard errors are clustered by document" if n_documents < len(texts) else ""
        out.print(f"documents: {n_documents:,}{shared}")
    if texts.name.startswith("pocket-python-"):
        out.print("Made from this Python installation: another Python version makes another set, with another id.")
    if domains:
        out.print(table(lines("domain", "texts"), [(plain(name), f"{count:,}") for name, count in domains.items()]))
    print_lost_cuts(it.lost_cuts)
    if it.texts_needed:
        print_texts_needed(it.texts_needed)
    else:
        out.print("How many texts a KL needs: klscale compare REF REF --precision 10%  scores as many.", style="dim")


def print_drawn(found: DrawnTexts) -> None:
    """What was drawn and what was left out, and the command that goes on from there."""
    texts = found.texts
    out.print(describe_texts(texts))
    out.print(
        f"{found.n_drawn:,} drawn; left out: {found.changed:,} that are read again as other tokens, "
        f"{found.ended:,} that ended at once."
    )
    author = plain((texts.drawn or {}).get("author", "REF"))
    where = f"--texts {plain(texts.name)} --store {plain(found.store.location)}"
    out.print(f"Next: klscale compare {author} REF {where}", soft_wrap=True)
