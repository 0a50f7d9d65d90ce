"""The store: a directory or fsspec URL of Parquet files that outlives us. It knows no torch.

    STORE/texts/<text set id>.jsonl, <id>.json          the texts, once; name, clip, counts
    STORE/vectors/<text set id>/<slug>-<key>.parquet    one file for each scored model
    STORE/weights/<slug>-<key>.parquet                  distances of a checkpoint's weights to those of others
    STORE/maps/<text set id>/<key>.parquet              a kept map: one row a model
    STORE/noise/<text set id>/<key>.json                KL between two readings of one model
    STORE/exact/<text set id>/<key>.json                exact KL of two models, as it was measured
    STORE/partial/<text set id>/<key>/                  unfinished work of a model
    STORE/partial/<text set id>/<key>.<owner>.claim     a process is at work on it

Files appear whole or not at all: locally a temporary name, fsync and rename; elsewhere one PUT. `key` hashes what
makes a vector what it is, so many machines write to one store without locks; claims only save them double work.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError, StorageError, nearest
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import NAMED, TextSet, content_id, load_texts
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats
from klscale.science.kl import KL
from klscale.vectors.vectors import Scores, Vectors, attribute_table

SCHEMA = pa.schema([("text", pa.int32()), ("log_likelihood", pa.float64()), ("n_tokens", pa.int32())])
LAYERS = "layer_log_likelihood"
"""Column with a list of one value a layer, in files of models that were scored at every layer."""
WEIGHTS = pa.schema([("other", pa.string()), ("squared_distance", pa.float64())])
CLAIM_BEAT_S, CLAIM_DEAD_S = 30.0, 150.0
"""How often a process says that it is still at work, and how long its silence means that it is not."""
UNREADABLE = (pa.ArrowException, KeyError, TypeError, ValueError, OSError, OverflowError, RecursionError)


def to_parquet(scores: Scores, metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a Parquet file that holds scores, with metadata under the key `klscale`."""
    table = pa.table([scores.text, scores.log_likelihood, scores.n_tokens], schema=SCHEMA)
    if scores.layers is not None:
        values = pa.array(scores.layers.ravel(), pa.float64())
        table = table.append_column(LAYERS, pa.FixedSizeListArray.from_arrays(values, scores.layers.shape[1]))
    return _parquet(table, metadata)


def _parquet(table: Any, metadata: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({"klscale": json.dumps(metadata, ensure_ascii=False)})
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(data: bytes) -> tuple[Scores, dict[str, Any]]:
    """Scores and metadata; raises one of UNREADABLE where the bytes are not what `to_parquet` makes."""
    table = pq.read_table(io.BytesIO(data))
    text, log_likelihood, n_tokens = (table.column(name).to_numpy() for name in SCHEMA.names)
    layers = None
    if LAYERS in table.column_names:
        lists = table.column(LAYERS).combine_chunks()
        layers = lists.flatten().to_numpy().reshape(len(lists), lists.type.list_size)
    scores = Scores(text.astype(np.int64), log_likelihood, n_tokens.astype(np.int64), layers)
    return scores, _metadata(table.schema)


def _metadata(schema: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(schema.metadata[b"klscale"])
    return found


def _weights_from_parquet(data: bytes) -> tuple[dict[str, float], dict[str, Any]]:
    """Squared distances to other checkpoints, by identity, and metadata; raises one of UNREADABLE."""
    table = pq.read_table(io.BytesIO(data))
    found = dict(zip(*(table.column(name).to_pylist() for name in WEIGHTS.names), strict=True))
    metadata = _metadata(table.schema)
    if _weights_checksum(found) != metadata["checksum"]:
        raise ValueError("the values are not those that were written")
    return found, metadata


def _weights_checksum(squared_distances: Mapping[str, float]) -> str:
    values = np.array([*squared_distances.values()], dtype="<f8")
    return content_id([*(other.encode() for other in squared_distances), values.tobytes()])


def _map_from_parquet(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Columns and metadata of a kept map; raises one of UNREADABLE."""
    table = pq.read_table(io.BytesIO(data))
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    metadata = _metadata(table.schema)
    if _map_checksum(columns, metadata) != metadata["checksum"]:
        raise ValueError("the values are not those that were written")
    return columns, metadata


def _map_checksum(columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> str:
    told = json.dumps({name: value for name, value in metadata.items() if name != "checksum"}, sort_keys=True)
    numbers = [array.astype("<f8").tobytes() for array in columns.values() if array.dtype != object]
    words = json.dumps([[*array] for array in columns.values() if array.dtype == object])
    return content_id([told.encode(), words.encode(), json.dumps([*columns]).encode(), *numbers])


def _noise_from_json(data: bytes) -> KL:
    """KL between two readings of one model; raises one of UNREADABLE."""
    found = json.loads(data)
    kl = KL(**{**found, "interval": tuple(found["interval"])})
    if not math.isfinite(kl.value) or any(number < 0 for number in (kl.value, kl.standard_error, *kl.interval)):
        raise ValueError(f"a noise floor of {kl.value:.3g} ± {kl.standard_error:.3g} bits/byte")
    return kl


def _exact_from_json(data: bytes) -> dict[str, Any]:
    """What was measured of the exact KL of two models; raises one of UNREADABLE."""
    found = dict(json.loads(data))
    if found.pop("checksum") != _record_checksum(found):
        raise ValueError("the values are not those that were written")
    return found


def _record_checksum(record: Mapping[str, Any]) -> str:
    return content_id([json.dumps(record, sort_keys=True).encode()])


def _weights_name(identity: str) -> str:
    """How the name of the file of a checkpoint's weights ends."""
    return f"-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.parquet"


@dataclass(frozen=True)
class Entry:
    """One scored model in the store. `metadata` holds `ref`, `key`, `attributes`, `convention`, `source`, `dtype`,
    `versions`, `device`, `date`, `checksum`, `skipped` (texts left out on purpose), `first` (where it holds some texts,
    and more may be added) and resolved automatic choices."""

    path: str
    text_set: str
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def ref(self) -> ModelRef:
        return ModelRef.parse(self.metadata["ref"])

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


def vector_key(identity: str, ref: ModelRef, convention: str, source: str) -> str:
    """Short hash of what makes a vector what it is. `identity` is the hub commit or the files' fingerprint."""
    parts = [identity, ref.quantization or "", ref.dtype, ref.file or "", convention, source]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def now() -> str:
    """The time, as entries record and are ordered by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Store:
    """A store at a local path or fsspec URL (`s3://...`); made when first written to."""

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.location)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"The store {self.location!r} cannot be opened.", str(error), "Give a directory or URL."
            ) from error
        self._local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        if self._local and Path(self._root).exists() and not Path(self._root).is_dir():
            raise InputError(
                f"The store {self.location!r} is a file, not a directory.", remedy="Give --store DIRECTORY."
            )

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    # ------------------------------------------------------------------------------------------------------- files

    def _path(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _write(self, path: str, data: bytes) -> None:
        try:
            if not self._local:
                self._fs.pipe_file(path, data)
                return
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{path} could not be written.",
                f"{error.strerror or error}.",
                "Make room or set the rights, then run the same command again: what was finished before is kept.",
            ) from error

    def _read(self, path: str) -> bytes:
        data: bytes = self._fs.cat_file(path)
        return data

    def _list(self, *parts: str, suffix: str = "") -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._path(*parts), detail=False)
        except FileNotFoundError:
            return []
        return sorted(p for p in found if p.endswith(suffix) and not p.rsplit("/", 1)[-1].startswith("."))

    def state(self, directory: str) -> str:
        """Changes whenever a finished file under this directory of the store does."""
        self._fs.invalidate_cache()
        known = self._fs.find(self._path(directory), detail=True)
        about = ("size", "mtime", "ino", "created", "LastModified", "ETag")
        return content_id(
            json.dumps([path, *(str(known[path].get(key)) for key in about)]).encode()
            for path in sorted(known) if not path.rsplit("/", 1)[-1].startswith(".")
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------- texts

    def text_sets(self) -> list[dict[str, Any]]:
        """What is known of each text set in the store: `id`, `name`, `n_texts`, `mean_bytes`, `clip`, `external`."""
        heads = []
        for path in self._list("texts", suffix=".json"):
            with contextlib.suppress(ValueError, TypeError):  # a damaged file is left to `check`
                head = json.loads(self._read(path))
                heads += [head] if {"id", "name", "n_texts"} <= head.keys() else []
        return heads

    def texts(self, text_set: str) -> TextSet:
        """A text set of the store by its id."""
        head = json.loads(self._read(self._path("texts", f"{text_set}.json")))
        lines = self._read(self._path("texts", f"{text_set}.jsonl")).decode().splitlines()
        records = [json.loads(line) for line in lines]
        columns = {key: tuple(record[key] for record in records) for key in records[0]}
        return TextSet(
            name=head["name"],
            id=head["id"],
            clip=head["clip"],
            bytes=np.array(columns.pop("bytes"), dtype=np.int64),
            texts=columns.pop("text", None),
            domain=columns.pop("domain", None),
            document=columns.pop("document", None),
            labels=columns,
        )

    def put_texts(self, texts: TextSet) -> None:
        """Keep a text set, with its clip value."""
        head = {
            "id": texts.id,
            "name": texts.name,
            "n_texts": len(texts),
            "mean_bytes": texts.mean_bytes,
            "clip": texts.clip,
            "external": texts.external,
        }
        lines = "".join(json.dumps(record) + "\n" for record in texts.records())
        self._write(self._path("texts", f"{texts.id}.jsonl"), lines.encode())
        self._write(self._path("texts", f"{texts.id}.json"), json.dumps(head, indent=1).encode())

    def _has_texts(self, text_set: str) -> bool:
        return bool(self._fs.exists(self._path("texts", f"{text_set}.json")))

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
        store's only set, or pile-10k for an empty store. A set that the store knows keeps the store's clip."""
        known = {head["id"]: head["name"] for head in self.text_sets()}
        if spec is None:
            if len(known) > 1:
                listed = ", ".join(f"{name} ({text_set})" for text_set, name in known.items())
                raise InputError(f"{self.location} holds {len(known)} text sets.", listed, "Choose one with --texts.")
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
            if spec in NAMED or Path(spec).suffix or not known:
                raise
            raise InputError(
                error.what, "Neither a file nor a text set of the store.", nearest(spec, [*known.values(), *NAMED])
            ) from error
        return self.keep_texts(texts) if texts.id in known else texts

    # ----------------------------------------------------------------------------------------------------- vectors

    def entries(self, text_set: str) -> list[Entry]:
        """The scored models of a text set, oldest first. A file that cannot be read is left to `check`."""
        paths = self.vector_files(text_set)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self._entry, paths))
        whole = [Entry(path, text_set, metadata) for path, metadata in zip(paths, found, strict=True) if metadata]
        return sorted(whole, key=lambda entry: (entry.metadata.get("date", ""), entry.path))

    def vector_files(self, text_set: str) -> list[str]:
        """The files of a text set's vectors, whether they can be read or not."""
        return self._list("vectors", text_set, suffix=".parquet")

    def _entry(self, path: str) -> dict[str, Any] | None:
        try:
            with self._fs.open(path, "rb") as file:
                return _metadata(pq.read_schema(file))
        except UNREADABLE:
            return None

    def write(self, texts: TextSet, scores: Scores, metadata: Mapping[str, Any]) -> Entry:
        """Keep one model's vector; `metadata` must hold `ref` and `key`. The texts are kept too if they are not yet."""
        if not self._has_texts(texts.id):
            self.put_texts(texts)
        n_layers = 0 if scores.layers is None else scores.layers.shape[1]
        metadata = {**metadata, "n_layers": n_layers, "checksum": scores.checksum, "text_set": texts.id}
        slug = ModelRef.parse(metadata["ref"]).slug
        path = self._path("vectors", texts.id, f"{slug}-{metadata['key']}.parquet")
        self._write(path, to_parquet(scores, metadata))
        return Entry(path, texts.id, metadata)

    def import_vectors(self, vectors: Vectors, source: str, *, progress: Progress = SILENT) -> list[Entry]:
        """Keep vectors that came from elsewhere; `source` says from where."""
        progress.begin(f"importing {source}", len(vectors), "models")
        self.keep_texts(vectors.texts)
        entries = []
        for ref, row, (_, attributes) in zip(
            vectors.models, vectors.log_likelihood, vectors.attributes.iterrows(), strict=True
        ):
            there = np.flatnonzero(~np.isnan(row))
            scores = Scores(there, row[there], np.zeros(len(there), dtype=np.int64))
            known = attributes.dropna().drop("noise_floor", errors="ignore").to_dict()
            convention = known.pop("convention")
            metadata = {
                "ref": str(ref),
                "key": vector_key(f"values:{scores.checksum}", ref, convention, "import"),
                "attributes": known,
                "convention": convention,
                "source": f"import {source.rsplit('/', 1)[-1]}",
                "date": now(),
            }
            entries.append(self.write(vectors.texts, scores, metadata))
            progress.advance()
        return entries

    def scores(self, entry: Entry) -> Scores:
        """The values of one entry. Raises KlscaleError where they are not those that were written."""
        try:
            scores, metadata = from_parquet(self._read(entry.path))
        except UNREADABLE as error:
            raise KlscaleError(
                f"{entry.path} cannot be read.", str(error).split("\n")[0], "See `klscale check`."
            ) from error
        if scores.checksum != metadata.get("checksum"):
            raise KlscaleError(
                f"{entry.path} does not hold the values it was written with.",
                remedy=f"`klscale rm {entry.ref}` and score it again.",
            )
        return scores

    def vectors(
        self,
        texts: TextSet,
        entries: Sequence[Entry] | None = None,
        refs: Sequence[ModelRef] | None = None,
        *,
        layers: bool = False,
    ) -> Vectors:
        """Vectors of these entries (default: the newest of each reference), as labelled by `refs` where given.

        With `layers`, each model that was scored so is followed by its layers, `NAME#0` (the embedding) to `NAME#L`.
        """
        if entries is None:
            entries = list({str(entry.ref): entry for entry in self.entries(texts.id)}.values())
        refs = refs or [entry.ref for entry in entries]
        rows = [(ref, entry) for ref, entry in zip(refs, entries, strict=True)
                for ref in (ref, *(replace(ref, layer=n) for n in range(entry.n_layers * layers)))]  # fmt: skip
        matrix = np.full((len(rows), len(texts)), np.nan)
        with ThreadPoolExecutor(8) as pool:
            place = 0
            for entry, scores in zip(entries, pool.map(self.scores, entries), strict=True):
                matrix[place, scores.text] = scores.log_likelihood
                if layers and scores.layers is not None:
                    matrix[place + 1 : place + 1 + entry.n_layers, scores.text] = scores.layers.T
                place += 1 + entry.n_layers * layers
        floors = self.noise_floors(texts.id, [entry.key for entry in entries])
        known = [
            {
                **entry.metadata.get("attributes", {}),
                **entry.metadata,
                "layer": ref.layer,
                "noise_floor": floors.get(entry.key) if ref.layer is None else None,
            }
            for ref, entry in rows
        ]
        models = tuple(ref for ref, _ in rows)
        return Vectors(matrix, models, attribute_table(models, known), texts)

    def remove(self, entry: Entry) -> None:
        """Take one model's vector out of the store."""
        self._fs.rm_file(entry.path)

    # ----------------------------------------------------------------------------------------------------- weights

    def write_weight_distances(
        self, ref: ModelRef, identity: str, n_parameters: int, squared_distances: Mapping[str, float]
    ) -> None:
        """Keep squared distances of one checkpoint's weights to those of others, beside those that the store has.

        `identity` and the keys say whose weights they are, whatever they are called: `commit:NAME@SHA` or
        `files:FINGERPRINT`. Of two processes that write of one checkpoint at one moment, one is kept.
        """
        path = self._path("weights", f"{ref.slug}{_weights_name(identity)}")
        held, metadata = self._weight_distances(path)
        known = held if metadata.get("n_parameters") == n_parameters else {}
        merged = {other: float(value) for other, value in {**known, **squared_distances}.items()}
        metadata = {
            "ref": str(ref),
            "identity": identity,
            "n_parameters": n_parameters,
            "date": now(),
            "checksum": _weights_checksum(merged),
        }
        self._write(path, _parquet(pa.table([[*merged], [*merged.values()]], schema=WEIGHTS), metadata))

    def weight_distances(self, identities: Sequence[str]) -> tuple[Floats, int | None]:
        """Squared distances (T, T) between the weights of these checkpoints: symmetric, 0 on the diagonal, NaN where
        not known; and how many parameters they have (None where that is not known, or not the same for all)."""
        unique = {identity: n for n, identity in enumerate(dict.fromkeys(identities))}
        names = tuple(map(_weights_name, unique))
        paths = [path for path in self._list("weights", suffix=".parquet") if path.endswith(names)]
        distance, n_parameters = np.full((len(unique),) * 2, np.nan), set()
        with ThreadPoolExecutor(8) as pool:
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
        """What a file holds, and its metadata; nothing where it is not there or is damaged, which `check` tells of."""
        try:
            data = self._read(path)
        except FileNotFoundError:
            return {}, {}
        try:
            return _weights_from_parquet(data)
        except UNREADABLE:
            return {}, {}

    # -------------------------------------------------------------------------------------------------------- maps

    def write_map(
        self, text_set: str, key: str, columns: Mapping[str, Sequence[Any] | NDArray[Any]], metadata: Mapping[str, Any]
    ) -> None:
        """Keep a map of models: `columns` of strings and numbers, one row a model. `key` says what it was made of."""
        table = pa.table(dict(columns))
        metadata = {"key": key, "text_set": text_set, "date": now(), **metadata}
        arrays = {name: table.column(name).to_numpy() for name in table.column_names}
        metadata = {**metadata, "checksum": _map_checksum(arrays, metadata)}
        self._write(self._path("maps", text_set, f"{key}.parquet"), _parquet(table, metadata))

    def read_map(self, text_set: str, key: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]] | None:
        """Columns and metadata of a kept map; None where it is not there or is damaged, which `check` tells of."""
        try:
            return _map_from_parquet(self._read(self._path("maps", text_set, f"{key}.parquet")))
        except UNREADABLE:
            return None

    def maps(self, text_set: str) -> list[dict[str, Any]]:
        """The metadata of each kept map of a text set, oldest first. A file that cannot be read is left to `check`."""
        paths = self._list("maps", text_set, suffix=".parquet")
        found = [metadata for path in paths if (metadata := self._entry(path)) is not None]
        return sorted(found, key=lambda metadata: (metadata.get("date", ""), metadata.get("key", "")))

    # ------------------------------------------------------------------------------------------------------- noise

    def write_noise_floor(self, text_set: str, key: str, kl: KL) -> None:
        """Keep the KL between two readings of the model that has the vector `key`."""
        self._write(self._path("noise", text_set, f"{key}.json"), json.dumps(asdict(kl)).encode())

    def noise_floor(self, text_set: str, key: str) -> KL | None:
        """The KL between two readings of a model; None where it is not there or is damaged, which `check` tells of."""
        try:
            return _noise_from_json(self._read(self._path("noise", text_set, f"{key}.json")))
        except UNREADABLE:
            return None

    def noise_floors(self, text_set: str, keys: Sequence[str]) -> dict[str, float]:
        """KL in bits per byte between two readings, of those of these models of which it is known."""
        there = {path.rsplit("/", 1)[-1] for path in self._list("noise", text_set, suffix=".json")}
        known = [key for key in dict.fromkeys(keys) if f"{key}.json" in there]
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda key: self.noise_floor(text_set, key), known)
            return {key: kl.value for key, kl in zip(known, found, strict=True) if kl is not None}

    # ---------------------------------------------------------------------------------------------------- exact KL

    def write_exact(self, text_set: str, key: str, record: Mapping[str, Any]) -> None:
        """Keep what was measured of the exact KL of two models. `key` says of which, and how."""
        whole = {**record, "checksum": _record_checksum(record)}
        self._write(self._path("exact", text_set, f"{key}.json"), json.dumps(whole).encode())

    def exact(self, text_set: str, key: str) -> dict[str, Any] | None:
        """What was measured of the exact KL of two models; None where it is not there or is damaged, which `check`
        tells of."""
        try:
            return _exact_from_json(self._read(self._path("exact", text_set, f"{key}.json")))
        except UNREADABLE:
            return None

    # ----------------------------------------------------------------------------------------------------- partial

    def write_partial(self, text_set: str, key: str, scores: Scores) -> None:
        """Keep a part of a vector that is not finished."""
        part = f"{uuid.uuid4().hex[:12]}.parquet"
        self._write(
            self._path("partial", text_set, key, part), to_parquet(scores, {"key": key, "checksum": scores.checksum})
        )

    def read_partial(self, text_set: str, key: str) -> Scores:
        """What is there of an unfinished vector; parts that do not read are as good as not there."""
        parts = []
        for path in self._list("partial", text_set, key, suffix=".parquet"):
            try:
                scores, metadata = from_parquet(self._read(path))
            except UNREADABLE:
                continue
            if scores.checksum == metadata.get("checksum"):
                parts.append(scores)
        return Scores.concatenate(parts)

    def drop_partial(self, text_set: str, key: str) -> None:
        """Forget unfinished work: the vector is whole, or was asked for anew."""
        with contextlib.suppress(FileNotFoundError):  # never there, or forgotten by another process
            self._fs.rm(self._path("partial", text_set, key), recursive=True)

    # ------------------------------------------------------------------------------------------------------ claims

    def entry(self, text_set: str, keys: Sequence[str]) -> Entry | None:
        """The newest vector with one of these keys, as the store is now."""
        names = tuple(f"-{key}.parquet" for key in keys)
        paths = [path for path in self._list("vectors", text_set, suffix=".parquet") if path.endswith(names)]
        found = [Entry(path, text_set, metadata) for path in paths if (metadata := self._entry(path))]
        return max(found, key=lambda entry: entry.metadata.get("date", ""), default=None)

    def claims(self, text_set: str) -> dict[str, str]:
        """The vectors that living processes work on: key -> the process, in words."""
        return {key: "process {pid} on {host}".format(**found[0]) for key, found in self._claims(text_set).items()}

    def claim(self, text_set: str, key: str) -> Claim | None:
        """Say that this process works on a vector, until the claim is released; None where a living one does already.

        Nothing is locked: with clocks that differ by minutes a model may be scored twice, to the same values. A claim
        that nobody renews is void after CLAIM_DEAD_S; one whose process on this machine is gone, at once.
        """
        if self._claims(text_set).get(key):
            return None
        claim = Claim(self, text_set, key)
        if any(other["owner"] != claim.owner for other in self._claims(text_set).get(key, ())):
            claim.release()  # two at one moment: neither has it, and both try again
            return None
        return claim

    def _claims(self, text_set: str) -> dict[str, list[dict[str, Any]]]:
        """Living claims on each vector; void ones are cleared away."""
        alive: dict[str, list[dict[str, Any]]] = {}
        for path in self._list("partial", text_set, suffix=".claim"):
            try:
                claim = json.loads(self._read(path))
                silent = time.time() - claim["beat"] > CLAIM_DEAD_S
                if not silent and (claim["host"] != socket.gethostname() or psutil.pid_exists(claim["pid"])):
                    alive.setdefault(claim["key"], []).append(claim)
                    continue
            except FileNotFoundError:  # released meanwhile
                continue
            except (ValueError, KeyError, TypeError):  # not a claim
                pass
            self._forget(path)
        return alive

    def _forget(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self._fs.rm_file(path)

    # ------------------------------------------------------------------------------------------------------- check

    def check(self) -> Iterator[tuple[str, str]]:
        """(file, problem or '') for every file of the store: does it read, and is it what its name and checksum say?"""
        sizes: dict[str, int] = {}
        for path in self._list("texts", suffix=".json"):
            text_set = path.rsplit("/", 1)[-1].removesuffix(".json")
            try:
                texts = self.texts(text_set)
                sizes[text_set] = len(texts)
                whole = texts.external or content_id(text.encode() for text in texts.texts or ()) == text_set
                yield path, "" if whole else "the texts are not those that the id stands for"
            except (OSError, ValueError, KeyError, IndexError) as error:
                yield path, f"does not read: {error}"
        for path, text_set in self._by_text_set("vectors", ".parquet"):
            yield path, self._problem(path, text_set, sizes)
        for path in self._list("weights", suffix=".parquet"):
            yield path, self._problem_of_weights(path)
        for path, text_set in self._by_text_set("maps", ".parquet"):
            yield path, self._problem_of_map(path, text_set, sizes)
        for kind, parse in (("noise", _noise_from_json), ("exact", _exact_from_json)):
            for path, text_set in self._by_text_set(kind, ".json"):
                yield path, self._problem_of_record(path, text_set, sizes, parse)

    def _by_text_set(self, kind: str, suffix: str) -> Iterator[tuple[str, str]]:
        """(file, text set) of each file of a kind."""
        for directory in self._list(kind):
            text_set = directory.rstrip("/").rsplit("/", 1)[-1]
            for path in self._list(kind, text_set, suffix=suffix):
                yield path, text_set

    def _problem(self, path: str, text_set: str, sizes: Mapping[str, int]) -> str:
        try:
            scores, metadata = from_parquet(self._read(path))
        except UNREADABLE as error:
            return f"does not read: {str(error).splitlines()[0]}"
        if scores.checksum != metadata.get("checksum"):
            return "the values are not those that were written"
        if text_set not in sizes:
            return "its text set is not in the store"
        if len(scores) and (scores.text.min() < 0 or scores.text.max() >= sizes[text_set]):
            return "it has texts that its text set does not have"
        if not all(np.isfinite(part).all() for part in (scores.log_likelihood, scores.layers) if part is not None):
            return "it holds values that are not finite"
        wanted = metadata.get("first") or sizes[text_set]
        missing = wanted - len(scores) - len(metadata.get("skipped", ()))
        return f"{missing:,} texts are missing" if missing > 0 else ""

    def _problem_of_weights(self, path: str) -> str:
        try:
            found, metadata = _weights_from_parquet(self._read(path))
            own = path.endswith(_weights_name(metadata["identity"]))
        except UNREADABLE as error:
            return f"does not read: {str(error).splitlines()[0]}"
        if not own:
            return "its name is that of another checkpoint"
        if not all(0 <= value < np.inf for value in found.values()):
            return "it holds distances that are negative or not finite"
        return ""

    def _problem_of_map(self, path: str, text_set: str, sizes: Mapping[str, int]) -> str:
        try:
            columns, metadata = _map_from_parquet(self._read(path))
            own = (metadata["text_set"], f"{metadata['key']}.parquet") == (text_set, path.rsplit("/", 1)[-1])
        except UNREADABLE as error:
            return f"does not read: {str(error).splitlines()[0]}"
        if not own:
            return "its name is that of another map"
        if text_set not in sizes:
            return "its text set is not in the store"
        if not all(np.isfinite(array).all() for array in columns.values() if array.dtype != object):
            return "it holds values that are not finite"
        return ""

    def _problem_of_record(
        self, path: str, text_set: str, sizes: Mapping[str, int], parse: Callable[[bytes], Any]
    ) -> str:
        try:
            parse(self._read(path))
        except UNREADABLE as error:
            return f"does not read: {str(error).splitlines()[0]}"
        return "" if text_set in sizes else "its text set is not in the store"


class Claim:
    """This process works on a vector, as all others can see: renewed by a thread until `release`."""

    def __init__(self, store: Store, text_set: str, key: str) -> None:
        self.owner, self._key = uuid.uuid4().hex[:8], key
        self._store, self._path = store, store._path("partial", text_set, f"{key}.{self.owner}.claim")
        self._released = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        told = {"key": self._key, "owner": self.owner, "host": socket.gethostname(), "pid": os.getpid()}
        self._store._write(self._path, json.dumps({**told, "beat": time.time()}).encode())

    def _renew(self) -> None:
        while not self._released.wait(CLAIM_BEAT_S):
            with contextlib.suppress(KlscaleError):  # at worst the claim is void, and another does the same work
                self._beat()

    def release(self) -> None:
        """The work is done, or given up."""
        self._released.set()
        self._thread.join()
        self._store._forget(self._path)
