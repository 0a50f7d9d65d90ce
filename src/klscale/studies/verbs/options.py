"""The options that the verbs share. What is said of each here is its help on the command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from klscale.errors import InputError
from klscale.progress import SILENT, Progress

if TYPE_CHECKING:
    from klscale.inputs.texts import TextSet
    from klscale.store.store import Store

STORE = "./klscale-store"
"""The store where none is named."""


@dataclass(frozen=True)
class Options:
    """Where models are kept, and how they are scored: one object for all verbs.

    Arguments `texts` and `store` of a verb go before those given here. `texts` is a text set, or a name, id
    or file that stands for one; `store` a store or its location, by default KLSCALE_STORE or `./klscale-store`.
    The store keeps its clip of a text set that it knows.

        options = klscale.Options(store="klscale-store", device="cuda", long_texts="window")
        klscale.compare(["gpt2", "gpt2+nf4"], options=options)
    """

    texts: TextSet | str | None = field(
        default=None, metadata={"help": "Text set: a name, an id, or a file. Default: the store's own."}
    )
    store: Store | str | os.PathLike[str] | None = field(
        default=None, metadata={"help": "Directory or URL of the store."}
    )
    device: str | None = field(
        default=None, metadata={"help": "Device: cpu, cuda, cuda:1, mps. Default: the fastest there is."}
    )
    batch_tokens: int | None = field(
        default=None, metadata={"help": "Tokens in a batch, padding included. Default: found from free memory."}
    )
    long_texts: str = field(default="error", metadata={"help": "Texts longer than a model's window."})
    sampled_tokens: int | None = field(
        default=None,
        metadata={"help": "Texts whose sampled tokens are kept, for KL of one tokenizer. 0: none. Default: 2,000."},
    )
    rescore: bool = field(default=False, metadata={"help": "Score even what the store has."})
    keep_downloads: bool = field(
        default=True,
        metadata={
            "help": "Keep what is fetched from the hub. Else it is dropped once scored; what was cached before stays."
        },
    )
    progress: Progress = field(
        default=SILENT, metadata={"help": "Shows how far work is, and what deserves a note. Default: silent."}
    )

    def at(self, texts: TextSet | str | None, store: Store | str | os.PathLike[str] | None) -> Self:
        """These options with other texts and another store, where they are given."""
        return replace(self, texts=self.texts if texts is None else texts, store=self.store if store is None else store)

    def opened(self) -> Store:
        """The store. Raises InputError for a location that cannot be one."""
        from klscale.store.store import Store

        where = self.store if self.store is not None else os.environ.get("KLSCALE_STORE", STORE)
        return where if isinstance(where, Store) else Store(where)

    def chosen(self, store: Store) -> TextSet:
        """The text set, as this store has it where it knows it: with its clip. Raises InputError where there is none,
        or where several could be meant."""
        if self.texts is None or isinstance(self.texts, str):
            return store.resolve_texts(self.texts, progress=self.progress)
        known = self.texts.id in {head["id"] for head in store.text_sets()}
        return store.keep_texts(self.texts) if known else self.texts

    def stored(self, store: Store, remedy: str = "klscale score REF...  or  klscale import FILE") -> TextSet:
        """The text set, of a store that is not empty. Raises InputError for one that is, where no text set is named."""
        if self.texts is None and store.is_empty:
            raise InputError(f"{store.location} is empty.", remedy=remedy)
        return self.chosen(store)

    def scoring(self, *names: str) -> dict[str, Any]:
        """Those of these names (default: all that scoring takes), as keywords."""
        how = ("device", "batch_tokens", "long_texts", "sampled_tokens", "rescore", "keep_downloads", "progress")
        taken = names or how
        return {name: getattr(self, name) for name in taken}


HELP = {entry.name: str(entry.metadata["help"]) for entry in fields(Options)}
"""What each option does, in a line."""
