"""The options that the verbs share. The help of each here is its help on the command line."""

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
READING = ("device", "batch_tokens", "long_texts", "split_special_tokens", "template")
"""How models are read."""


@dataclass(frozen=True)
class Options:
    """The store, the texts and the way of scoring: one object for all verbs.

    Arguments `texts` and `store` of a verb override those given here. `texts` is a text set, or the name, id or file of
    one. `store` is a store or its location, by default KLSCALE_STORE or `./klscale-store`. Of a text set that the store
    knows, the store's clip is used. `limit` is for `score`, `compare` and `layers`.

        options = klscale.Options(store="klscale-store", device="cuda", long_texts="window")
        klscale.compare(["gpt2", "gpt2+nf4"], options=options)
    """

    texts: TextSet | str | None = field(
        default=None,
        metadata={
            "help": "Text set: a name, an id, a file, hf://datasets/NAME, or - for stdin. Default: the store's own."
        },
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
    split_special_tokens: bool = field(
        default=False, metadata={"help": "Read a string such as <s> in a text as text, not as a special token."}
    )
    template: str | None = field(
        default=None,
        metadata={
            "help": "How prompts are put to a model: its own chat template, none, or a Jinja file. Default: own."
        },
    )
    sampled_tokens: int | None = field(
        default=None,
        metadata={"help": "Texts whose sampled tokens are kept, for KL of one tokenizer. 0: none. Default: 2,000."},
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "Score only the first N texts of the set's random order. A later call adds the rest."},
    )
    rescore: bool = field(default=False, metadata={"help": "Score even what the store has."})
    keep_downloads: bool = field(
        default=True,
        metadata={
            "help": "Keep files fetched from the hub. Else they are dropped once scored; files cached before stay."
        },
    )
    progress: Progress = field(
        default=SILENT, metadata={"help": "Shows the progress of work, and notes. Default: silent."}
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
        """The text set; if the store knows it, with the store's clip. Raises InputError where there is none, or where
        several could be meant."""
        if self.texts is None or isinstance(self.texts, str):
            return store.resolve_texts(self.texts, progress=self.progress)
        known = self.texts.id in {head["id"] for head in store.text_sets()}
        return store.keep_texts(self.texts) if known else self.texts

    def stored(self, store: Store, remedy: str = "klscale score REF...  or  klscale import FILE") -> TextSet:
        """The text set of a store. Raises InputError for an empty store, where no text set is named."""
        if self.texts is None and store.is_empty:
            raise InputError(f"{store.location} is empty.", remedy=remedy)
        return self.chosen(store)

    def scoring(self, *names: str) -> dict[str, Any]:
        """The options with these names (default: all options of scoring), as keywords."""
        taken = names or (*READING, "sampled_tokens", "rescore", "keep_downloads", "progress")
        return {name: getattr(self, name) for name in taken}


HELP = {entry.name: str(entry.metadata["help"]) for entry in fields(Options)}
"""Name -> help of each option, in a line."""
