"""The store: texts and log-likelihood vectors in a directory or fsspec URL that outlives us. It knows no torch.

    STORE/texts/<text set id>.jsonl, <id>.json          the texts, once; name, clip, counts
    STORE/vectors/<text set id>/<slug>-<key>.parquet    one file for each scored model
    STORE/compact/<text set id>/<id>.parquet            many of these files in one (`klscale compact`)
    STORE/draws/<text set id>/<tokens>.parquet          token ids drawn for a text set and a tokenizer
    STORE/drawing/<key>.parquet                         texts that a model is writing, until their set is whole
    STORE/weights/<slug>-<key>.parquet                  distances of a checkpoint's weights to those of others
    STORE/maps/<text set id>/<key>.parquet              a kept map: one row a model
    STORE/noise/<text set id>/<key>.json                KL between two runs of one model
    STORE/exact/<text set id>/<key>.json                exact KL of two models, as it was measured
    STORE/summaries/<text set id>/entries.parquet       what many vectors say of themselves; in compact.parquet, those
                                                        of compact files
    STORE/summaries/<text set id>/scale.json            the scale of many models; with layers: scale-of-layers.json
    STORE/partial/<text set id>/<key>/                  unfinished work of a model
    STORE/partial/<text set id>/<key>.<owner>.claim     a process is at work on it

Files appear whole or not at all (`files`), are sealed and read by one function for each kind (`*_records`). What does
not read counts as not there, with a note. `key` hashes what makes a vector what it is, so many machines write to one
store without locks; claims only save them double work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError, StorageError, UnreadableError, nearest
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import RULE
from klscale.inputs.texts import ALONE, NAMED, TextSet, load_texts
from klscale.limits import require_memory
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats
from klscale.science.kl import KL
from klscale.store import check, claims, compact, drawn_records, measured_records, records, text_records, vector_records
from klscale.store.claims import Claim
from klscale.store.compact import Compacted, InPack, Packs
from klscale.store.files import Files, name_of, stem_of
from klscale.store.records import UNREADABLE
from klscale.vectors.draws import TokenDraws
from klscale.vectors.scores import DRAWS, GIVEN, SAMPLED, SPANS, TOP, Scores
from klscale.vectors.vectors import PackedSpans, SampledRow, SpanRow, Vectors, attribute_table

logger = logging.getLogger(__name__)
T = TypeVar("T")
MANY = 50
"""Vectors from which on what was found out by reading all of them is kept."""
AT_ONCE = 512
"""Vectors that are read before their values are taken over."""
WRITES = 8
"""Files that are written at once: a write waits for the disk most of the time."""
SCALES = ("scale.json", "scale-of-layers.json")
"""Without and with the layers of models."""
LARGE = (SPANS, GIVEN, DRAWS, SAMPLED, TOP)
"""Parts that are read when they are asked for."""


@dataclass(frozen=True)
class Entry:
    """One scored model in the store. `metadata` holds `ref`, `key`, `attributes`, `convention`, `source`, `dtype`,
    `versions`, `device`, `date`, `checksum`, `parts` (their names), `skipped` (texts left out on purpose), `first`
    (where it holds some texts, and more may be added) and resolved automatic choices."""

    path: str
    text_set: str
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def ref(self) -> ModelRef:
        return records.parsed(self.metadata["ref"])

    @property
    def key(self) -> str:
        return str(self.metadata["key"])

    @property
    def first(self) -> int | None:
        """How many texts of the set's random order it holds, those skipped among them; None for all texts."""
        return self.metadata.get("first")

    @property
    def n_layers(self) -> int:
        """How many layers were read, the embedding among them; 0 for a model scored as a whole."""
        return int(self.metadata.get("n_layers", 0))

    @property
    def lost_cuts(self) -> float | None:
        """The share of the cuts between spans that the tokenizer loses; None where the vector has no spans."""
        spans = self.metadata.get("spans")
        share = spans.get("lost_cuts") if isinstance(spans, Mapping) else None
        return share if isinstance(share, float) else None


def vector_key(identity: str, ref: ModelRef, convention: str, source: str) -> str:
    """Short hash of what makes a vector what it is. `identity` is the hub commit or the files' fingerprint."""
    parts = [identity, ref.quantization or "", ref.dtype, ref.file or "", convention, source]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def now() -> str:
    """The time, as entries record and are ordered by it."""
    return _date(datetime.now(UTC))


def _date(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds")


class Store:
    """A store at a local path or fsspec URL (`s3://...`); made when first written to.

    `left_out` says of each file that was met and cannot be used what is wrong with it; `unsealed` holds those met that
    klscale 0.1.0 wrote, without a seal; `lost_cuts` the share of cuts that each vector loses which `check` read.
    Raises InputError for a location where no store can be.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self.files = Files(self.location)
        self.files.tidy = self._clear_claims
        self.left_out: dict[str, str] = {}
        self.unsealed: set[str] = set()
        self.lost_cuts: dict[str, float] = {}
        self._entries: dict[str, tuple[str, dict[str, Any] | None]] = {}
        self._sizes: dict[str, int] = {}
        self._texts: dict[str, tuple[Mapping[str, Any], str, TextSet]] = {}
        self.packs = Packs(self)

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    def read(self, path: str, parse: Callable[[bytes], T]) -> T:
        """What `parse` makes of a file. Raises FileNotFoundError, and UnreadableError where it makes nothing of it."""
        try:
            data = self.files.read(path)
            found = parse(data)
        except FileNotFoundError:
            raise
        except UNREADABLE as error:
            raise UnreadableError(records.problem(error)) from error
        if not (records.is_sealed(data) or path.endswith(".jsonl")):
            self.unsealed.add(path)
        return found

    def leave_out(self, path: str, error: Exception) -> None:
        """Note, once, that a file counts as not there."""
        if path not in self.left_out:
            self.left_out[path] = records.problem(error)
            logger.warning("%s is left out: it %s.", path, self.left_out[path])

    def _find(self, path: str, parse: Callable[[bytes], T]) -> T | None:
        """What `parse` makes of a file; None where it is not there, or is left out."""
        try:
            return self.read(path, parse)
        except FileNotFoundError:
            return None
        except UnreadableError as error:
            self.leave_out(path, error)
            return None

    def state(self, directory: str) -> str:
        """Changes whenever a finished file under this directory of the store does."""
        return self.files.state(directory)

    # ------------------------------------------------------------------------------------------------------- texts

    @property
    def is_empty(self) -> bool:
        """Whether it holds no text set, nor the file of one that cannot be read."""
        return not self.files.list("texts", suffix=".json")

    def text_sets(self) -> list[dict[str, Any]]:
        """What is known of each text set in the store: `id`, `name`, `n_texts`, `mean_bytes`, `clip`, `external`."""
        paths = self.files.list("texts", suffix=".json")
        found = [self._find(path, partial(text_records.head_from_json, text_set=stem_of(path))) for path in paths]
        return [{name: head[name] for name in text_records.HEAD} for head in found if head is not None]

    def texts(self, text_set: str) -> TextSet:
        """A text set of the store by its id. Raises KlscaleError, which names the file, where it cannot be read."""
        head_file, lines_file = at, _ = self.text_files(text_set)
        read_head = partial(text_records.head_from_json, text_set=text_set)
        try:
            head = self.read(head_file, read_head)
            at = lines_file
            try:
                return self.read(lines_file, partial(self._texts_of, head))
            except UnreadableError:
                if (newer := self.read(head_file, read_head)) == head:
                    raise
                return self.read(lines_file, partial(self._texts_of, newer))  # kept anew meanwhile
        except (FileNotFoundError, UnreadableError) as error:
            remedy = "Put it back from a copy of the store, or use another store. `klscale check` reads every file."
            raise KlscaleError(f"{at} {records.problem(error)}.", "No model on these texts is used.", remedy) from error

    def _texts_of(self, head: Mapping[str, Any], lines: bytes) -> TextSet:
        """The text set of this head and these lines, which is made once."""
        digest = text_records.digest(lines)
        known = self._texts.get(head["id"])
        if known is None or known[:2] != (head, digest):
            known = self._texts[head["id"]] = head, digest, text_records.texts_from_lines(lines, head)
        return known[2]

    def text_files(self, text_set: str) -> tuple[str, str]:
        """The files of a text set: its head, and its lines."""
        return self.files.path("texts", f"{text_set}.json"), self.files.path("texts", f"{text_set}.jsonl")

    def put_texts(self, texts: TextSet) -> None:
        """Keep a text set, with its clip value. Raises InputError for an id that is not twelve hexadecimal digits."""
        if not records.is_key(texts.id):
            raise InputError(f"A text set with the id {texts.id!r} cannot be kept.", "An id has 12 hexadecimal digits.")
        head_file, lines_file = self.text_files(texts.id)
        lines = text_records.lines_of(texts)
        new = text_records.digest(lines)
        try:
            head = self.read(head_file, partial(text_records.head_from_json, text_set=texts.id))
        except (FileNotFoundError, UnreadableError):
            head = {"lines": []}
        if head["lines"] and head["lines"] != [new]:  # until the head is written, both may be there
            both = [*dict.fromkeys([*head["lines"], new])]
            self.files.write(head_file, text_records.head_to_json({**head, "lines": both}))
        self.files.write(lines_file, lines)
        self.files.write(head_file, text_records.head_to_json({**text_records.head_of(texts), "lines": [new]}))

    def _has_texts(self, text_set: str) -> bool:
        return self.files.exists(self.text_files(text_set)[0])

    def keep_texts(self, texts: TextSet) -> TextSet:
        """Keep a text set unless the store has it; domains and documents that the store did not know are added.

        Raises InputError where they contradict those of the store.
        """
        if not self._has_texts(texts.id):
            self.put_texts(texts)
            return texts
        known = self.texts(texts.id)
        new = {}
        for label in ("domain", "document"):
            mine, theirs = getattr(known, label), getattr(texts, label)
            if mine is None and theirs is not None:
                new[label] = theirs
            elif theirs is not None and theirs != mine:
                raise InputError(
                    f"{self.location} holds the texts of {texts.name} with other labels under {label!r}.",
                    "They decide which texts are taken as independent.",
                    f"Leave {label!r} out, or use another store.",
                )
        if new:
            known = replace(known, **new)
            self.put_texts(known)
        return known

    def resolve_texts(self, spec: str | None, *, progress: Progress = SILENT) -> TextSet:
        """The text set that `--texts` means: one of the store by name or id, else a named set or a file. None: the
        store's only set, or pile-10k for an empty store; responses alone do not count beside their prompts. A set that
        the store knows keeps the store's clip."""
        known = {head["id"]: head["name"] for head in self.text_sets()}
        if spec is None:
            whole = {name for name in known.values() if not name.endswith(ALONE)}
            known = {key: name for key, name in known.items() if name in whole or name.removesuffix(ALONE) not in whole}
            if len(known) > 1:
                listed = ", ".join(f"{name} ({text_set})" for text_set, name in known.items())
                raise InputError(f"{self.location} holds {len(known)} text sets.", listed, "Choose one with --texts.")
            if not known and (damaged := self.files.list("texts", suffix=".json")):
                return self.texts(stem_of(damaged[0]))  # which says what is wrong with it
            if not known:
                return load_texts("pile-10k", progress=progress)
            return self.texts(next(iter(known)))
        if spec in known:
            return self.texts(spec)
        named = [text_set for text_set, name in known.items() if name == spec]
        if len(named) > 1:
            raise InputError(
                f"{self.location} holds {len(named)} text sets named {spec!r}.",
                ", ".join(named),
                "Choose one by its id.",
            )
        if named:
            return self.texts(named[0])
        try:
            texts = load_texts(spec, progress=progress)
        except InputError as error:
            lacks = isinstance(error.__cause__, FileNotFoundError) and "://" not in spec
            if not lacks or Path(spec).suffix or not known:
                raise
            raise InputError(
                error.what, "Neither a file nor a text set of the store.", nearest(spec, [*known.values(), *NAMED])
            ) from error
        return self.keep_texts(texts) if texts.id in known else texts

    # ----------------------------------------------------------------------------------------------------- vectors

    def entries(self, text_set: str) -> list[Entry]:
        """The scored models of a text set, oldest first; without files that are left out. A file that has changed, or
        that no summary has, is read whole."""
        stamps, packed = self.packs.listing(text_set)
        n_unknown = self._take_summary(text_set, stamps)
        found = self._entries_of(text_set, stamps, packed)
        if n_unknown >= MANY:
            self._keep_entries(text_set, stamps)
        return found

    def _changed(self, stamps: Mapping[str, str]) -> list[str]:
        """Those of these files that are not known as they are now."""
        return [path for path, stamp in stamps.items() if self._entries.get(path, ("", None))[0] != stamp]

    def _take_summary(self, text_set: str, stamps: Mapping[str, str]) -> int:
        """Take what the summary says of these files, where several are not known; how many are not known then."""
        unknown = {name_of(path): path for path in self._changed(stamps)}
        if len(unknown) > 1:
            summary = self.summary(text_set, "entries.parquet", vector_records.entries_from_parquet) or {}
            for name, about in summary.items():
                if name in unknown and about[0] == stamps[unknown[name]]:
                    self._entries[unknown.pop(name)] = about
        return len(unknown)

    def _keep_entries(self, text_set: str, stamps: Mapping[str, str]) -> None:
        """Keep what these files say of themselves, as far as it is known."""
        sealed = {path: self._entries[path] for path in stamps if path in self._entries and path not in self.unsealed}
        known = {name_of(path): (stamp, about) for path, (stamp, about) in sealed.items() if about is not None}
        self.keep_summary(text_set, "entries.parquet", vector_records.entries_to_parquet(known, text_set))

    def newest(self, text_set: str) -> dict[str, Entry]:
        """The newest vector of each reference on a text set, by the reference as a string."""
        return {str(entry.ref): entry for entry in self.entries(text_set)}

    def newest_of(self, model: str, texts: TextSet) -> Entry:
        """The newest vector of a model on these texts. Raises InputError where there is none."""
        newest = self.newest(texts.id)
        if model not in newest:
            what = f"No vector of {model} on {texts.name}."
            raise InputError(what, nearest(model, newest), "klscale ls  lists them.")
        return newest[model]

    def summary(self, text_set: str, name: str, parse: Callable[..., T]) -> T | None:
        """What `parse` makes of a summary; None where it is not there or is left out."""
        return self._find(self.files.path("summaries", text_set, name), partial(parse, text_set=text_set))

    def keep_summary(self, text_set: str, name: str, data: bytes) -> None:
        """Keep what was found out by reading many vectors, if the store can be written."""
        with contextlib.suppress(StorageError):
            self.files.write(self.files.path("summaries", text_set, name), data)

    def keep_scale(
        self, text_set: str, key: str, settings: list[dict[str, Any]], resamples: int, *, layers: bool = False
    ) -> None:
        """Keep the scale of these texts, if the store can be written. `key` says what it was measured on."""
        self.keep_summary(text_set, SCALES[layers], measured_records.scale_to_json(settings, text_set, key, resamples))

    def kept_scale(self, text_set: str, key: str, resamples: int, *, layers: bool = False) -> list[Any] | None:
        """The settings of a scale on what `key` stands for, with as many bootstrap samples or more; None where it is
        not there or is left out."""
        found = self.summary(text_set, SCALES[layers], measured_records.scale_from_json)
        return None if found is None or found[1] != key or found[2] < resamples else found[0]

    def entry(self, text_set: str, keys: Sequence[str]) -> Entry | None:
        """The newest vector with one of these keys, as the store is now."""
        names = tuple(f"-{key}.parquet" for key in keys)
        stamps, packed = self.packs.listing(text_set)
        stamps = {path: stamp for path, stamp in stamps.items() if path.endswith(names)}
        packed = {path: one for path, one in packed.items() if path.endswith(names)}
        found = self._entries_of(text_set, stamps, packed)
        return found[-1] if found else None

    def vector_files(self, text_set: str) -> list[str]:
        """The files of a text set's vectors, whether they can be read or not; of a compact file that can be read, those
        that it stands for."""
        stamps, packed = self.packs.listing(text_set)
        return [*stamps, *(path for path in packed if path not in stamps), *self.packs.damaged(text_set)]

    def compact(self, text_set: str, *, progress: Progress = SILENT) -> Compacted:
        """Put the vectors of a text set into few files; how many. Every method gives what it gave before.

        Vectors that a process works on, and files that are left out, stay where they are. Raises StorageError.
        """
        return compact.compact(self, text_set, progress)

    def expand(self, text_set: str, *, progress: Progress = SILENT) -> Compacted:
        """Give each vector of a text set a file of its own again, as it was before `compact`."""
        return compact.expand(self, text_set, progress)

    def _entries_of(self, text_set: str, stamps: Mapping[str, str], packed: Mapping[str, InPack]) -> list[Entry]:
        """The entries of these files, and of vectors in compact files that have none of their own; a file is read
        whole, once for each of its stamps."""
        new = self._changed(stamps)
        with ThreadPoolExecutor(self.files.at_once) as pool:
            for path, found in zip(new, pool.map(partial(self.vector_or_none, text_set=text_set), new), strict=True):
                self._entries[path] = stamps[path], found and found[1]
        known = [(path, self._entries[path][1]) for path in stamps]
        known += [(path, one.metadata) for path, one in packed.items() if path not in stamps]
        entries = [Entry(path, text_set, metadata) for path, metadata in known if metadata is not None]
        return sorted(entries, key=lambda entry: (entry.metadata.get("date") or "", entry.path))

    def read_vector(self, path: str, text_set: str) -> tuple[Scores, dict[str, Any]]:
        """Values and metadata of a vector by its file, or from the compact file that holds it. Raises FileNotFoundError
        and UnreadableError."""
        n_texts = self._n_texts(text_set)
        if (found := self.packs.vector(path, text_set, n_texts)) is not None:
            return found
        try:
            read = partial(vector_records.vector_from_parquet, text_set=text_set, file=name_of(path), n_texts=n_texts)
            return self.read(path, read)
        except FileNotFoundError:
            self.packs.listing(text_set)  # it may have been put into a compact file meanwhile
            if (found := self.packs.vector(path, text_set, n_texts)) is None:
                raise
            return found

    def vector_or_none(self, path: str, text_set: str) -> tuple[Scores, dict[str, Any]] | None:
        """Values and metadata of a vector; None where it is not there, or is left out."""
        try:
            return self.read_vector(path, text_set)
        except FileNotFoundError:
            return None
        except UnreadableError as error:
            self.leave_out(path, error)
            return None

    def _n_texts(self, text_set: str) -> int | None:
        """How many texts a set has, which its id fixes; None where that cannot be read."""
        if text_set not in self._sizes:
            head = self._find(self.text_files(text_set)[0], partial(text_records.head_from_json, text_set=text_set))
            if head is None:
                return None
            self._sizes[text_set] = head["n_texts"]
        return self._sizes[text_set]

    def write(self, texts: TextSet, scores: Scores, metadata: Mapping[str, Any]) -> Entry:
        """Keep one model's vector, with metadata as in `Entry`: `ref`, `key`, `attributes` and `convention` at least.
        The texts are kept too if they are not yet. Raises InputError for what no vector can have."""
        if not self._has_texts(texts.id):
            self.put_texts(texts)
        return self._write(texts.id, scores, _whole_metadata(texts, scores, metadata))

    def _write(self, text_set: str, scores: Scores, metadata: dict[str, Any]) -> Entry:
        slug = ModelRef.parse(metadata["ref"]).slug
        path = self.files.path("vectors", text_set, f"{slug}-{metadata['key']}.parquet")
        self.files.write(path, vector_records.vector_to_parquet(scores, metadata))
        self.packs.of.pop(path, None)
        return Entry(path, text_set, metadata)

    def import_vectors(self, vectors: Vectors, source: str, *, progress: Progress = SILENT) -> list[Entry]:
        """Keep vectors that came from elsewhere; `source` says from where. Raises InputError, and keeps none, where
        one has a value or attribute that no vector can have."""
        progress.begin(f"importing {source}", len(vectors), "models")
        made, began = [], datetime.now(UTC)  # a clock that is set back in between would change their order
        rows = zip(vectors.models, vectors.log_likelihood, vectors.known, strict=True)
        for n, (ref, row, attributes) in enumerate(rows):
            there = np.flatnonzero(~np.isnan(row))
            spans = vectors.spans_of(ref, there)
            scores = Scores(there, row[there], np.zeros(len(there), dtype=np.int64), spans)
            known = {name: value for name, value in attributes.items() if name != "noise_floor"}
            convention = known.pop("convention")
            metadata = {
                "ref": str(ref),
                "key": vector_key(f"values:{scores.checksum}", ref, convention, "import"),
                "attributes": known,
                "convention": convention,
                "source": f"import {source.rsplit('/', 1)[-1]}",
                **({"spans": vector_records.about_spans(vectors.texts, scores)} if spans else {}),
                "date": _date(began + timedelta(microseconds=n)),
            }
            made.append((scores, _whole_metadata(vectors.texts, scores, metadata)))
        self.keep_texts(vectors.texts)
        entries = []
        with ThreadPoolExecutor(WRITES) as pool:
            for entry in pool.map(lambda one: self._write(vectors.texts.id, *one), made):
                entries.append(entry)
                progress.advance()
        if len(entries) >= MANY:
            self._keep_written(vectors.texts.id, entries)
        return entries

    def _keep_written(self, text_set: str, entries: Sequence[Entry]) -> None:
        """Keep the summary of vectors that were just written: no command has to read them for it."""
        stamps, packed = self.packs.listing(text_set)
        for entry in entries:
            if entry.path in stamps:
                self._entries[entry.path] = stamps[entry.path], json.loads(json.dumps(entry.metadata))
        self._take_summary(text_set, stamps)
        self._entries_of(text_set, stamps, packed)  # with what is known of the others
        self._keep_entries(text_set, stamps)

    def scores(self, entry: Entry) -> Scores:
        """The values of one entry. Raises KlscaleError where its file cannot be read."""
        try:
            return self.read_vector(entry.path, entry.text_set)[0]
        except (FileNotFoundError, UnreadableError) as error:
            raise self._unusable(entry, error) from error

    def _unusable(self, entry: Entry, error: Exception) -> KlscaleError:
        what = f"{entry.path} {records.problem(error)}."
        return KlscaleError(what, remedy=f"`klscale rm {entry.ref}` and score it again.")

    def vectors(
        self,
        texts: TextSet,
        entries: Sequence[Entry] | None = None,
        refs: Sequence[ModelRef] | None = None,
        *,
        layers: bool = False,
    ) -> Vectors:
        """Vectors of these entries (default: the newest of each reference), as labelled by `refs` where given.

        With `layers`, each model that was scored so is followed by its layers, `NAME#0` (the embedding) to `NAME#L`;
        imported layers end with the output too (`Vectors.with_outputs`). An entry whose file cannot be read is left
        out, with a note. Raises InputError for more than there is memory for.
        """
        if entries is None:
            entries = [*self.newest(texts.id).values()]
        refs = refs or [entry.ref for entry in entries]
        rows = [(ref, entry) for ref, entry in zip(refs, entries, strict=True)
                for ref in (ref, *(replace(ref, layer=n) for n in range(entry.n_layers * layers)))]  # fmt: skip
        remedy = "Name some of the models: klscale compare REF REF..., klscale layers REF"
        require_memory(8 * len(rows) * len(texts), f"{len(rows):,} vectors of {len(texts):,} texts take", remedy)
        matrix, read = np.full((len(rows), len(texts)), np.nan), np.zeros(len(rows), dtype=bool)
        starts = np.cumsum([0, *(1 + entry.n_layers * layers for entry in entries)])
        together = sorted(range(len(entries)), key=lambda n: self.packs.of.get(entries[n].path, ""))
        with ThreadPoolExecutor(self.files.at_once) as pool:
            for start in range(0, len(together), AT_ONCE):
                some = together[start : start + AT_ONCE]
                for n, found in zip(some, pool.map(self._vector_of, [entries[n] for n in some]), strict=True):
                    own = slice(starts[n], starts[n + 1])
                    if found is None:
                        continue
                    read[own], matrix[own.start, found.text] = True, found.log_likelihood
                    if layers and found.layers is not None:
                        matrix[own.start + 1 : own.stop, found.text] = found.layers.T
        if not read.all():
            matrix, rows = matrix[read], [row for row, there in zip(rows, read, strict=True) if there]
        floors = self.noise_floors(texts.id, [entry.key for entry in entries])
        known = [
            vector_records.attributes_of(
                entry.metadata, floors.get(entry.key) if ref.layer is None else None, ref.layer
            )
            for ref, entry in rows
        ]
        models = tuple(ref for ref, _ in rows)
        spans = tuple(self._spans(entry, texts) if ref.layer is None else None for ref, entry in rows)
        read_draws = cache(partial(self.draws, texts.id))
        sampled = tuple(self._sampled(entry, read_draws) if ref.layer is None else None for ref, entry in rows)
        vectors = Vectors(matrix, models, attribute_table(models, known), texts, spans, sampled)
        return vectors.with_outputs() if layers else vectors

    def _sampled(self, entry: Entry, draws: Callable[[str], TokenDraws | None]) -> SampledRow | None:
        """What an entry says of sampled tokens, read when it is asked for; None where it says nothing."""
        if "sampled" not in entry.metadata:
            return None
        tokens = str(entry.metadata["sampled"]["tokens"])
        read = partial(self._part_of, entry, "sampled tokens", lambda scores, _: vector_records.sampled_of(scores))
        return SampledRow(tokens, read, partial(draws, tokens))

    def _spans(self, entry: Entry, texts: TextSet) -> SpanRow | None:
        """The spans of an entry, read when they are asked for; None where it has none by the rule of today."""
        if texts.external or (entry.metadata.get("spans") or {}).get("rule") != RULE:
            return None

        def take(scores: Scores, metadata: dict[str, Any]) -> PackedSpans | None:
            return vector_records.spans_of(scores, metadata, texts)

        return SpanRow(partial(self._part_of, entry, "spans", take))

    def _part_of(self, entry: Entry, what: str, take: Callable[[Scores, dict[str, Any]], T | None]) -> T:
        """What `take` makes of an entry's file. Raises KlscaleError where that cannot be read, or holds it no more."""
        try:
            found = take(*self.read_vector(entry.path, entry.text_set))
            if found is None:
                raise UnreadableError(f"holds no {what} any more")
        except (FileNotFoundError, UnreadableError) as error:
            raise self._unusable(entry, error) from error
        return found

    def _vector_of(self, entry: Entry) -> Scores | None:
        """The values of an entry; None where its file is left out, or holds other layers by now."""
        found = self.vector_or_none(entry.path, entry.text_set)
        if found is None or found[1].get("n_layers", 0) != entry.n_layers:
            return None
        return found[0].without(*(part.name for part in LARGE))

    def remove(self, *entries: Entry) -> None:
        """Take models' vectors out of the store."""
        for text_set in dict.fromkeys(entry.text_set for entry in entries):
            paths = [entry.path for entry in entries if entry.text_set == text_set]
            own, packed = self.packs.listing(text_set)
            compact.drop(self, text_set, paths)  # first: a file that is gone would uncover an older vector
            for path in paths:
                if path in own or path not in packed:
                    self.files.remove(path)

    # ------------------------------------------------------------------------------------------------------- draws

    def draws_file(self, text_set: str, tokens: str) -> str:
        """Where the draws are kept for the tokenizer that reads a text set as these `tokens` (`Tokens.key`)."""
        return self.files.path("draws", text_set, f"{tokens}.parquet")

    def draws(self, text_set: str, tokens: str) -> TokenDraws | None:
        """The token ids that are drawn for a text set and a tokenizer; None where none are, or are left out."""
        n_texts = self._n_texts(text_set)
        read = partial(drawn_records.draws_from_parquet, text_set=text_set, tokens=tokens, n_texts=n_texts)
        return self._find(self.draws_file(text_set, tokens), read)

    def freeze_draws(self, text_set: str, draws: TokenDraws) -> TokenDraws:
        """Keep what was drawn, for good; what was kept of a text before stays. Returns all that is kept. Of two
        processes that write at one moment, one is kept: marks tell whose."""
        known = self.draws(text_set, draws.tokens)
        if known is not None and (draws.of.keys() <= known.of.keys() or known.m != draws.m):
            return known
        whole = draws if known is None else known.joined(draws)
        self.files.write(self.draws_file(text_set, draws.tokens), drawn_records.draws_to_parquet(whole, text_set))
        return whole

    # ----------------------------------------------------------------------------------------------------- drawing

    def write_drawing(self, key: str, drawing: drawn_records.Drawing) -> None:
        """Keep the texts of a drawing that is not finished. `key` says of what, and how."""
        self.files.write(self.files.path("drawing", f"{key}.parquet"), drawn_records.drawing_to_parquet(drawing, key))

    def read_drawing(self, key: str) -> drawn_records.Drawing:
        """What is there of an unfinished drawing; nothing where it is not there or is left out."""
        path = self.files.path("drawing", f"{key}.parquet")
        return self._find(path, partial(drawn_records.drawing_from_parquet, key=key)) or {}

    def drop_drawing(self, key: str) -> None:
        """Forget an unfinished drawing: its text set is whole."""
        self.files.forget(self.files.path("drawing", f"{key}.parquet"))

    # ----------------------------------------------------------------------------------------------------- weights

    def write_weight_distances(
        self, ref: ModelRef, identity: str, n_parameters: int, squared_distances: Mapping[str, float]
    ) -> None:
        """Keep squared distances of one checkpoint's weights to those of others, beside those that the store has.

        `identity` and the keys identify the weights, not their names: `commit:NAME@SHA` or `files:FINGERPRINT`.
        Of two processes that write of one checkpoint at one moment, one is kept.
        """
        path = self.files.path("weights", f"{ref.slug}{measured_records.weights_name(identity)}")
        held, metadata = self._weight_distances(path)
        known = held if metadata.get("n_parameters") == n_parameters else {}
        merged = {other: float(value) for other, value in {**known, **squared_distances}.items()}
        about = {"ref": str(ref), "identity": identity, "n_parameters": n_parameters, "date": now()}
        self.files.write(path, measured_records.weights_to_parquet(merged, about))

    def weight_distances(self, identities: Sequence[str]) -> tuple[Floats, int | None]:
        """Squared distances (T, T) between the weights of these checkpoints: symmetric, 0 on the diagonal, NaN where
        not known; and how many parameters they have (None where that is not known, or not the same for all)."""
        unique = {identity: n for n, identity in enumerate(dict.fromkeys(identities))}
        names = tuple(map(measured_records.weights_name, unique))
        paths = [path for path in self.files.list("weights", suffix=".parquet") if path.endswith(names)]
        distance, n_parameters = np.full((len(unique),) * 2, np.nan), set()
        with ThreadPoolExecutor(self.files.at_once) as pool:
            for found, metadata in pool.map(self._weight_distances, paths):
                if (i := unique.get(metadata.get("identity", ""))) is None:
                    continue
                n_parameters.add(metadata["n_parameters"])
                for other, value in found.items():
                    if (j := unique.get(other)) is not None:
                        distance[i, j] = distance[j, i] = value
        np.fill_diagonal(distance, 0.0)
        places = [unique[identity] for identity in identities]
        return distance[np.ix_(places, places)], n_parameters.pop() if len(n_parameters) == 1 else None

    def _weight_distances(self, path: str) -> tuple[dict[str, float], dict[str, Any]]:
        """What a file holds, and its metadata; nothing where it is not there or is left out."""
        read = partial(measured_records.weights_from_parquet, file=name_of(path))
        return self._find(path, read) or ({}, {})

    # -------------------------------------------------------------------------------------------------------- maps

    def write_map(
        self, text_set: str, key: str, columns: Mapping[str, Sequence[Any] | NDArray[Any]], metadata: Mapping[str, Any]
    ) -> None:
        """Keep a map of models: `columns` of strings and numbers, one row a model. `key` says what it was made of."""
        metadata = {"key": key, "text_set": text_set, "date": now(), **metadata}
        self.files.write(self.map_file(text_set, key), measured_records.map_to_parquet(columns, metadata))

    def map_file(self, text_set: str, key: str) -> str:
        """Where a kept map is."""
        return self.files.path("maps", text_set, f"{key}.parquet")

    def read_map(self, text_set: str, key: str) -> tuple[measured_records.Columns, dict[str, Any]] | None:
        """Columns and metadata of a kept map; None where it is not there or is left out."""
        read = partial(measured_records.map_from_parquet, text_set=text_set, key=key)
        return self._find(self.map_file(text_set, key), read)

    def maps(self, text_set: str) -> list[dict[str, Any]]:
        """The metadata of each kept map of a text set, oldest first; without files that are left out."""
        keys = map(stem_of, self.files.list("maps", text_set, suffix=".parquet"))
        found = [kept[1] for key in keys if (kept := self.read_map(text_set, key)) is not None]
        return sorted(found, key=lambda metadata: (metadata.get("date") or "", metadata["key"]))

    # ------------------------------------------------------------------------------------------------------- noise

    def write_noise_floor(self, text_set: str, key: str, found: KL | measured_records.NoRepeatRun) -> None:
        """Keep the KL between two runs of the model with the vector `key`, or why there is none."""
        data = measured_records.noise_to_json(found, text_set, key)
        self.files.write(self.files.path("noise", text_set, f"{key}.json"), data)

    def repeat_run(self, text_set: str, key: str) -> KL | measured_records.NoRepeatRun | None:
        """What `write_noise_floor` has kept; None where it is not there or is left out."""
        path = self.files.path("noise", text_set, f"{key}.json")
        return self._find(path, partial(measured_records.noise_from_json, text_set=text_set, key=key))

    def repeat_runs(self, text_set: str, keys: Sequence[str]) -> dict[str, KL | measured_records.NoRepeatRun]:
        """Key -> what is kept of the model's repeat run, for the keys where something is."""
        there = {*map(stem_of, self.files.list("noise", text_set, suffix=".json"))}
        known = [key for key in dict.fromkeys(keys) if key in there]
        with ThreadPoolExecutor(self.files.at_once) as pool:
            found = pool.map(lambda key: self.repeat_run(text_set, key), known)
            return {key: one for key, one in zip(known, found, strict=True) if one is not None}

    def noise_floor(self, text_set: str, key: str) -> KL | None:
        """The KL in bits per byte between two runs of a model; None where it is not known."""
        found = self.repeat_run(text_set, key)
        return found if isinstance(found, KL) else None

    def noise_floors(self, text_set: str, keys: Sequence[str]) -> dict[str, float]:
        """Key -> KL in bits per byte between two runs of the model, for the keys where it is known."""
        found = self.repeat_runs(text_set, keys)
        return {key: one.value for key, one in found.items() if isinstance(one, KL)}

    # ---------------------------------------------------------------------------------------------------- exact KL

    def write_exact(self, text_set: str, key: str, record: Mapping[str, Any]) -> None:
        """Keep what was measured of the exact KL of two models. `key` says of which, and how."""
        path = self.files.path("exact", text_set, f"{key}.json")
        self.files.write(path, measured_records.exact_to_json(record, text_set, key))

    def exact(self, text_set: str, key: str) -> dict[str, Any] | None:
        """What was measured of the exact KL of two models; None where it is not there or is left out."""
        path = self.files.path("exact", text_set, f"{key}.json")
        return self._find(path, partial(measured_records.exact_from_json, text_set=text_set, key=key))

    # ----------------------------------------------------------------------------------------------------- partial

    def write_partial(self, text_set: str, key: str, scores: Scores) -> None:
        """Keep a part of a vector that is not finished."""
        path = self.files.path("partial", text_set, key, f"{uuid.uuid4().hex[:12]}.parquet")
        self.files.write(path, vector_records.partial_to_parquet(scores, key))

    def read_partial(self, text_set: str, key: str) -> Scores:
        """What is there of an unfinished vector, without files that are left out."""
        read = partial(vector_records.partial_from_parquet, key=key, n_texts=self._n_texts(text_set))
        paths = self.files.list("partial", text_set, key, suffix=".parquet")
        return Scores.concatenate([found for path in paths if (found := self._find(path, read)) is not None])

    def drop_partial(self, text_set: str, key: str) -> None:
        """Forget unfinished work: the vector is whole, or was asked for anew."""
        self.files.forget(self.files.path("partial", text_set, key), recursive=True)

    # ------------------------------------------------------------------------------------------------------ claims

    def claims(self, text_set: str) -> dict[str, str]:
        """The vectors that living processes work on: key -> the process, in words."""
        found = claims.claims(self.files, text_set)
        return {key: "process {pid} on {host}".format(**those[0]) for key, those in found.items()}

    def _clear_claims(self) -> None:
        """Remove the claims of processes that are gone."""
        for directory in self.files.list("partial"):
            claims.claims(self.files, name_of(directory))

    def claim(self, text_set: str, key: str) -> Claim | None:
        """Say that this process works on a vector, until the claim is released; None where another does already."""
        return claims.claim(self.files, text_set, key)

    # ------------------------------------------------------------------------------------------------------- check

    def check(self) -> Iterator[tuple[str, str]]:
        """(file, problem or '') for every file of the store: does it read, and is it what its name and seal say?"""
        return check.problems(self)

    def seal(self) -> Iterator[str]:
        """Write every file that klscale 0.1.0 wrote, and that reads, anew with a seal; the files."""
        return check.seal(self)


def _whole_metadata(texts: TextSet, scores: Scores, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with what the values add to it. Raises InputError where it, or they, are what no vector can have."""
    n_layers = 0 if scores.layers is None else scores.layers.shape[1]
    whole = {
        **metadata,
        "n_layers": n_layers,
        "parts": [*scores.parts],
        "checksum": scores.checksum,
        "text_set": texts.id,
    }
    try:
        vector_records.require_entry(whole)
        vector_records.require_scores(scores, len(texts))
    except UnreadableError as error:
        raise InputError(f"The vector of {metadata.get('ref')} cannot be kept.", f"It {error}.") from error
    return whole
