"""Compact files: many vectors of a text set in one Parquet file, each read as if it had a file of its own.

A vector counts once: its own file before any compact one, and of two compact ones the newer. A compact file is never
written to. It is named after what it holds, and is removed once others, or files of their own, hold all of that.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any

from klscale.errors import StorageError, UnreadableError
from klscale.inputs.texts import content_id
from klscale.progress import Progress
from klscale.store import claims, records, vector_records
from klscale.store.files import name_of
from klscale.store.vector_records import Packed
from klscale.vectors.scores import Scores

if TYPE_CHECKING:
    from klscale.store.store import Store

SUMMARY, MANY = "compact.parquet", 50
"""What compact files say of their vectors, kept where so many were read for it or more."""
BYTES = 64 << 20
"""Of values in a compact file, decompressed; one with less than half of that is filled up by the next `compact`."""
HELD = 4
"""Compact files in memory at once."""


@dataclass(frozen=True)
class Compacted:
    """Of a text set: how many `vectors` were put elsewhere, and in how many files its vectors were and are."""

    text_set: str
    vectors: int
    files_before: int
    files_after: int


@dataclass(frozen=True)
class InPack:
    """Which compact file holds a vector, and what the vector says of itself."""

    pack: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Known:
    """What a compact file, as it was at its `stamp`, holds; None where it is left out."""

    stamp: str
    metadata: dict[str, dict[str, Any]] | None
    n_bytes: int = 0


class Packs:
    """The compact files of a store. `of`: file that a vector had -> compact file, for vectors without one of their
    own when they were last listed."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, RLock()
        self._held: OrderedDict[str, dict[str, Packed]] = OrderedDict()
        self._known: dict[str, _Known] = {}
        self._packed: dict[str, tuple[dict[str, str], dict[str, InPack]]] = {}
        """Of each text set: the stamps of its compact files when its vectors were listed, and these."""
        self.of: dict[str, str] = {}

    def listing(self, text_set: str) -> tuple[dict[str, str], dict[str, InPack]]:
        """The stamps of files of one vector, and all vectors in compact files by the files that they had."""
        with self._lock:
            return self._listing(text_set)

    def _listing(self, text_set: str) -> tuple[dict[str, str], dict[str, InPack]]:
        packs = self._stamps(text_set)
        for _ in range(3):  # a vector that moves while files are listed must not be missed
            own = self._store.files.stamps("vectors", text_set, suffix=".parquet")
            packs, before = self._stamps(text_set), packs
            if packs == before and self._read_new(packs, text_set):
                break
        if text_set not in self._packed or self._packed[text_set][0] != packs:
            self._packed[text_set] = packs, self._newest(text_set)
        packed = self._packed[text_set][1]
        for path in own:
            self.of.pop(path, None)
        self.of.update((path, one.pack) for path, one in packed.items() if path not in own)
        return own, packed

    def _newest(self, text_set: str) -> dict[str, InPack]:
        """The vectors of the compact files that are known, each as the newest file has it."""
        directory, packed = self._store.files.path("vectors", text_set), dict[str, InPack]()
        for pack, known in self.known(text_set).items():
            for name, metadata in (known.metadata or {}).items():
                path = f"{directory}/{name}"  # of `records.FILE`
                if path not in packed or (metadata.get("date") or "") > (packed[path].metadata.get("date") or ""):
                    packed[path] = InPack(pack, metadata)
        return packed

    def known(self, text_set: str) -> dict[str, _Known]:
        """The compact files of a text set, as last listed."""
        directory = self._store.files.path("compact", text_set) + "/"
        return {pack: known for pack, known in self._known.items() if pack.startswith(directory)}

    def damaged(self, text_set: str) -> list[str]:
        """Those that are left out."""
        return [pack for pack, known in self.known(text_set).items() if known.metadata is None]

    def vector(self, path: str, text_set: str, n_texts: int | None) -> tuple[Scores, dict[str, Any]] | None:
        """A vector in a compact file by the file that it had; None where none holds it. Raises UnreadableError."""
        pack = self.of.get(path)
        try:
            one = None if pack is None else self.read(pack, text_set).get(name_of(path))
        except FileNotFoundError:  # the vector was put elsewhere
            one = None
        if one is None:
            self.of.pop(path, None)
            return None
        return vector_records.vector_of(one, n_texts), one.metadata

    def read(self, pack: str, text_set: str) -> dict[str, Packed]:
        """What a compact file holds, by the names of the files. Raises FileNotFoundError and UnreadableError."""
        with self._lock:
            if pack not in self._held:
                parse = partial(vector_records.pack_from_parquet, text_set=text_set)
                self._held[pack] = self._store.read(pack, parse)
            self._held.move_to_end(pack)
            while len(self._held) > HELD:
                self._held.popitem(last=False)
            return self._held[pack]

    def member(self, one: InPack, text_set: str, path: str) -> Packed:
        """A vector as its compact file holds it. Raises StorageError where that changed since it was listed."""
        try:
            return self.read(one.pack, text_set)[name_of(path)]
        except (FileNotFoundError, UnreadableError) as error:
            why = f"It {records.problem(error)}: another process may be at work on the store."
            raise StorageError(f"{one.pack} changed meanwhile.", why, "Run the same command again.") from error

    def _stamps(self, text_set: str) -> dict[str, str]:
        return self._store.files.stamps("compact", text_set, suffix=".parquet")

    def _read_new(self, stamps: Mapping[str, str], text_set: str) -> bool:
        """Know these files, and no others of the text set; whether all were there."""
        for pack in self.known(text_set).keys() - stamps.keys():
            del self._known[pack]
            self._held.pop(pack, None)
        old = {pack: known.stamp for pack, known in self._known.items()}
        new = {pack: stamp for pack, stamp in stamps.items() if old.get(pack) != stamp}
        if not new:
            return True
        n_read, summary = 0, self._store.summary(text_set, SUMMARY, vector_records.packs_from_parquet) or {}
        for pack, stamp in new.items():
            self._held.pop(pack, None)
            if (about := summary.get(name_of(pack))) is not None and about[0] == stamp:
                self._known[pack] = _Known(stamp, about[2], about[1])
                continue
            try:
                found = self.read(pack, text_set)
            except FileNotFoundError:
                return False
            except UnreadableError as error:
                self._store.leave_out(pack, error)
                self._known[pack] = _Known(stamp, None)
                continue
            n_bytes = next((one.table.get_total_buffer_size() for one in found.values()), 0)  # they share it
            self._known[pack] = _Known(stamp, {name: one.metadata for name, one in found.items()}, n_bytes)
            n_read += len(found)
        if n_read >= MANY:
            known = {
                name_of(pack): (one.stamp, one.n_bytes, one.metadata)
                for pack, one in self.known(text_set).items() if one.metadata is not None
            }  # fmt: skip
            self._store.keep_summary(text_set, SUMMARY, vector_records.packs_to_parquet(known, text_set))
        return True


# ------------------------------------------------------------------------------------------------------ there and back


def compact(store: Store, text_set: str, progress: Progress) -> Compacted:
    """Put the vectors of a text set into few files. At each moment each vector is whole in one file at least."""
    own, packed = store.packs.listing(text_set)
    known = store.packs.known(text_set)
    at_work = (*(f"-{key}.parquet" for key in claims.claims(store.files, text_set)),)
    free = {path: stamp for path, stamp in own.items() if not path.endswith(at_work)}
    again = _again(known, {name_of(path) for path in own})
    paths = [*free, *(path for path, one in packed.items() if one.pack in again and path not in free)]
    progress.begin("compacting", len(paths), "vectors")
    moved: dict[str, str] = {}

    def members() -> Iterator[Packed]:
        for path in paths:
            progress.advance()
            if path in free and (found := _own(store, path, text_set)) is not None:
                moved[path] = free[path]
                yield found
            elif path in packed and packed[path].pack in again:  # one's own file is worked on, or is damaged
                yield store.packs.member(packed[path], text_set, path)

    written = _write(store, text_set, members(), known)
    for pack in again - written:  # before the files of one vector: a copy in these may be an older one
        _forget(store, pack)
    store.files.remove_unchanged(moved, "vectors", text_set)
    return _done(store, text_set, len(moved), len(own) + len(known))


def put(store: Store, text_set: str, members: Iterator[Packed]) -> set[str]:
    """Put vectors into compact files of a text set, beside those that are there; the files. Raises StorageError."""
    store.packs.listing(text_set)
    return _write(store, text_set, members, store.packs.known(text_set))


def expand(store: Store, text_set: str, progress: Progress) -> Compacted:
    """Give each vector a file of its own again."""
    own, packed = store.packs.listing(text_set)
    known = store.packs.known(text_set)
    progress.begin("expanding", len(packed), "vectors")
    kept, n_moved = set(), 0
    for pack in known:
        at_work = claims.claims(store.files, text_set)
        for path in (path for path, one in packed.items() if one.pack == pack):
            progress.advance()
            one = packed[path]
            there = store.files.exists(path)
            if one.metadata["key"] in at_work or (there and store.vector_or_none(path, text_set) is None):
                kept.add(pack)  # what is being written, or is damaged, is not the only copy
                continue
            if there:
                continue
            try:
                scores = vector_records.vector_of(store.packs.member(one, text_set, path), None)
            except UnreadableError as error:
                store.leave_out(path, error)
                kept.add(pack)
                continue
            store.files.create(path, vector_records.vector_to_parquet(scores, one.metadata))
            n_moved += 1
    for pack, about in known.items():
        if about.metadata is not None and pack not in kept:
            _forget(store, pack)
    return _done(store, text_set, n_moved, len(own) + len(known))


def drop(store: Store, text_set: str, paths: Collection[str]) -> None:
    """Take vectors out of all compact files that hold them."""
    names, known = {*map(name_of, paths)}, store.packs.known(text_set)
    for pack, about in known.items():
        if about.metadata is None or not names & about.metadata.keys():
            continue
        rest = {store.files.path("vectors", text_set, name): InPack(pack, one) for name, one in about.metadata.items()}
        kept = (store.packs.member(one, text_set, path) for path, one in rest.items() if path not in paths)
        _write(store, text_set, kept, known)
        _forget(store, pack)


def _again(known: Mapping[str, _Known], own: set[str]) -> set[str]:
    """The compact files to write anew: small ones, and those with a vector that is elsewhere too."""
    whole = {pack: one for pack, one in known.items() if one.metadata is not None}
    times = Counter(name for one in whole.values() for name in one.metadata or ())
    times.update(own)
    return {
        pack for pack, one in whole.items()
        if one.n_bytes < BYTES / 2 or any(times[name] > 1 for name in one.metadata or ())
    }  # fmt: skip


def _own(store: Store, path: str, text_set: str) -> Packed | None:
    """What the file of one vector holds; None where it is not there or is left out."""
    if (found := store.vector_or_none(path, text_set)) is None:
        return None
    return Packed(name_of(path), vector_records.scores_to_table(found[0]), found[1])


def _write(store: Store, text_set: str, members: Iterator[Packed], known: Mapping[str, _Known]) -> set[str]:
    """Put vectors into compact files, those with the same columns together; which. Those there are stay."""
    written, waiting, sizes = set[str](), dict[Any, list[Packed]](), Counter[Any]()

    def write(some: list[Packed]) -> None:
        about = [f"{one.file}\0{json.dumps(one.metadata, sort_keys=True)}".encode() for one in some]
        pack = store.files.path("compact", text_set, f"{content_id(about)}.parquet")
        if pack not in known or known[pack].metadata is None:
            store.files.write(pack, vector_records.pack_to_parquet(some, text_set))
        written.add(pack)

    for one in members:
        alike = (*one.table.column_names, one.metadata.get("n_layers", 0))
        if alike in waiting and sizes[alike] + one.table.nbytes > BYTES:
            write(waiting.pop(alike))
            sizes[alike] = 0
        waiting.setdefault(alike, []).append(one)
        sizes[alike] += one.table.nbytes
    for some in waiting.values():
        write(some)
    return written


def _forget(store: Store, pack: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        store.files.remove(pack)


def _done(store: Store, text_set: str, n_moved: int, before: int) -> Compacted:
    own, _ = store.packs.listing(text_set)
    return Compacted(text_set, n_moved, before, len(own) + len(store.packs.known(text_set)))
