"""A store written anew as compact files by text set: what a data set on a hub is made of. It is a store itself."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from klscale.errors import InputError, nearest
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.store import compact, vector_records
from klscale.store.files import name_of
from klscale.store.store import Entry, Store
from klscale.store.vector_records import Packed


@dataclass(frozen=True)
class Part:
    """Files of a data set whose tables have the same `columns`: its name as the hub has it, the `files` in its
    directory, and the `models` in them. Of `vectors` of log-likelihoods, or of the texts."""

    name: str
    texts: TextSet
    files: tuple[str, ...]
    columns: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def vectors(self) -> bool:
        """Whether it holds log-likelihoods, not the texts."""
        return bool(self.models)


def publish(
    store: Store, text_sets: Sequence[str], directory: Path, models: Sequence[str] = (), progress: Progress = SILENT
) -> list[Part]:
    """The parts of a data set in a new directory: of each text set the newest vector of each model, or of these
    `models`, with its run-to-run noise and draws; and the texts.

    Raises InputError for a directory that is not empty and for a model that is not there, and StorageError.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory} is not an empty directory.", "A data set gets one of its own.", "Name another.")
    entries = {one: store.newest(one) for one in text_sets}
    known = {name for of_set in entries.values() for name in of_set}
    for model in models:
        if model not in known:
            raise InputError(f"{store.location} holds no vector of {model}.", nearest(model, known))
    chosen = {
        one: [entry for name, entry in of_set.items() if not models or name in models]
        for one, of_set in entries.items()
    }
    if not any(chosen.values()):
        raise InputError(f"{store.location} holds no vectors to publish.", remedy="klscale score REF...")
    made, names = Store(directory), set[str]()
    progress.begin("writing the data set", sum(map(len, chosen.values())), "models")
    parts = list[Part]()
    for text_set, some in chosen.items():
        if some:
            made.put_texts(texts := store.texts(text_set))
            compact.put(made, text_set, _members(store, some, progress))
            _copy_beside(store, made, some)
            parts += _parts(made, texts, names)
    if not any(part.vectors for part in parts):
        what = f"No vector of {store.location} that was to be published can be read."
        raise InputError(what, remedy="klscale check  names the files.")
    return parts


def _members(store: Store, entries: Sequence[Entry], progress: Progress) -> Iterator[Packed]:
    together = sorted(entries, key=lambda entry: store.packs.of.get(entry.path, ""))
    for entry in together:
        progress.advance()
        if (found := store.vector_or_none(entry.path, entry.text_set)) is not None:
            yield Packed(name_of(entry.path), vector_records.scores_to_table(found[0]), found[1])


def _copy_beside(store: Store, made: Store, entries: Sequence[Entry]) -> None:
    """Copy what belongs to these vectors: run-to-run noise, and the token ids that were drawn."""
    text_set, keys = entries[0].text_set, [entry.key for entry in entries]
    for key, found in store.repeat_runs(text_set, keys).items():
        made.write_noise_floor(text_set, key, found)
    for tokens in dict.fromkeys(
        entry.metadata["sampled"]["tokens"] for entry in entries if "sampled" in entry.metadata
    ):
        if (draws := store.draws(text_set, tokens)) is not None:
            made.freeze_draws(text_set, draws)


def _parts(made: Store, texts: TextSet, names: set[str]) -> Iterator[Part]:
    """The vectors of a text set, files of the same columns together, and then its texts."""
    groups: dict[str, list[str]] = {}
    for file in made.files.list("compact", texts.id, suffix=".parquet"):
        groups.setdefault(pq.read_schema(file).remove_metadata().to_string(), []).append(file)
    for files in groups.values():
        columns = tuple(pq.read_schema(files[0]).names)
        extra = [name.split("_")[0] for name in columns if name in ("span_log_likelihood", "sampled_log_probability")]
        extra += ["layers"] if "layer_log_likelihood" in columns else []
        models = [str(one.metadata["ref"]) for file in files for one in made.packs.read(file, texts.id).values()]
        yield Part(
            _name("-".join([texts.name, *extra]), texts.id, names),
            texts,
            tuple(_within(made, file) for file in files),
            columns,
            tuple(sorted(models)),
        )
    table, buffer = pa.Table.from_pylist([*texts.records()]), io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    file = made.files.path("texts", f"{texts.id}.parquet")  # the hub reads files of one kind; a store reads the lines
    made.files.write(file, buffer.getvalue())
    name = _name(f"{texts.name}-texts", texts.id, names)
    yield Part(name, texts, (_within(made, file),), tuple(table.column_names), ())


def _within(made: Store, file: str) -> str:
    return file.removeprefix(made.files.root.rstrip("/") + "/")


def _name(wanted: str, text_set: str, taken: set[str]) -> str:
    """A name of plain characters that no other part has."""
    plain = re.sub(r"[^A-Za-z0-9.-]+", "-", wanted).strip("-.")[:80] or text_set
    name, n = plain, 1
    while name in taken:
        n += 1
        name = f"{plain}-{text_set}" if n == 2 else f"{plain}-{text_set}-{n - 1}"
    taken.add(name)
    return name
