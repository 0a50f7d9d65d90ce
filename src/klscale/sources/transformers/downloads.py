"""What a sweep fetches from the hub, dropped from the local cache as soon as no model needs it any more."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from klscale.sources.source import Fetched
from klscale.sources.transformers.files import CHAT_TEMPLATE, READ_WITH_WEIGHTS, ResolvedModel
from klscale.sources.transformers.hub import ADAPTER_FILES, cache_folder, is_cached

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_MARK = ".klscale"
"""Name of a file that marks a commit which a sweep fetched and will drop. It is dropped with the commit."""
READ_BESIDE = ("generation_config.json", CHAT_TEMPLATE)
"""Fetched by transformers, though no score of plain texts depends on them."""


def to_fetch(resolved: ResolvedModel) -> dict[tuple[str, str], int] | None:
    """(repository, content) -> bytes of what loading would fetch, without what the local cache holds; None where that
    is not known."""
    found: dict[tuple[str, str], int] = {}
    for model in filter(None, (resolved, resolved.base)):
        if model.hub is None:
            continue
        if model.hub.blobs is None:
            if model.hub.offline and model.weights:
                continue
            return None
        names = set(model.weights) if model.base is None else model.hub.files.intersection(ADAPTER_FILES)
        if model.base is None and not model.ref.file:
            patterns = (*READ_WITH_WEIGHTS, *READ_BESIDE)
            names |= {name for name in model.hub.files for p in patterns if "/" not in name and fnmatch(name, p)}
        for name in names.intersection(model.hub.blobs):
            content, size = model.hub.blobs[name]
            if not is_cached(model.ref.name, model.hub.commit, name, content):
                found[model.ref.name, content] = size
    return found


def is_at_hand(resolved: ResolvedModel) -> bool:
    """Whether the local cache holds the weights that loading reads from the hub."""
    of_hub = [(model, model.hub) for model in (resolved, resolved.base) if model is not None and model.hub is not None]
    return all(
        model.weights and all((Commit(model.ref.name, hub.commit).snapshot / name).exists() for name in model.weights)
        for model, hub in of_hub
    )


class Commit(NamedTuple):
    """One commit of a hub model."""

    repository: str
    sha: str

    @property
    def snapshot(self) -> Path:
        """Where its files are in the local cache."""
        return cache_folder(self.repository) / "snapshots" / self.sha


class Downloads(Fetched):
    """The files of hub commits that a sweep reads, each by some `users`: a commit that the sweep has fetched is dropped
    when the last that needs it is done. What the cache held before stays, and what other commits share.

    A sweep that is cut short leaves what it was at, marked as its own, so that the next goes on with it and drops it.
    Other processes may sweep over the same models: none drops files of a repository while another reads there.
    """

    def __init__(self, users: Iterable[Collection[ResolvedModel]]) -> None:
        self._users = Counter(commit for models in users for commit in _commits(models))
        self._idle: set[Commit] = set()

    @contextlib.contextmanager
    def reading(self, models: Collection[ResolvedModel]) -> Iterator[None]:
        """While the files of these models are fetched and read."""
        with contextlib.ExitStack() as locks:
            for commit, model in _commits(models).items():
                locks.enter_context(_lock(commit.repository, exclusive=False))
                mark = commit.snapshot / _MARK
                with contextlib.suppress(OSError):  # a cache that is not ours to write
                    if commit not in self._users:
                        mark.unlink(missing_ok=True)
                    elif not (mark.is_file() or _held(commit, model)):
                        commit.snapshot.mkdir(parents=True, exist_ok=True)
                        mark.touch()
            yield

    def done(self, models: Collection[ResolvedModel]) -> None:
        """One of the users needs the files of these models no more."""
        for commit in self._users.keys() & _commits(models):
            self._users[commit] -= 1
            if not self._users[commit]:
                self._idle.add(commit)

    def drop(self) -> None:
        """Drop what nothing needs any more. Not while this process downloads; what another reads now, a later time."""
        for commit in list(self._idle):
            if (commit.snapshot / _MARK).is_file():
                with _lock(commit.repository, exclusive=True) as mine, contextlib.suppress(OSError):
                    if mine:
                        _delete(commit)
            if not (commit.snapshot / _MARK).is_file():
                self._idle.discard(commit)


def _commits(models: Collection[ResolvedModel]) -> dict[Commit, ResolvedModel]:
    """The commits that models are read from; none where the hub does not answer, since what is dropped could not be
    fetched again."""
    read = [one for model in models for one in (model, model.base) if one is not None]
    return {Commit(one.ref.name, one.hub.commit): one for one in read if one.hub and not one.hub.offline}


def _held(commit: Commit, model: ResolvedModel) -> bool:
    """Whether the cache has what no sweep fetched: files since before this one began, or weights since."""
    cached = model.hub is not None and model.hub.cached and commit.snapshot.is_dir()
    return cached or any((commit.snapshot / name).exists() for name in model.weights)


def _delete(commit: Commit) -> None:
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(cache_folder(commit.repository).parent)
    # Of two repositories that share a history, the other may hold the same commit.
    mine = frozenset(repo for repo in cache.repos if repo.repo_path == cache_folder(commit.repository).resolve())
    replace(cache, repos=mine).delete_revisions(commit.sha).execute()


@contextlib.contextmanager
def _lock(repository: str, *, exclusive: bool) -> Iterator[bool]:
    """Whether files of a repository may be dropped now: no process reads there. Else wait until they may be read."""
    folder = cache_folder(repository)
    path = folder.parent / ".locks" / folder.name / "klscale.lock"
    with contextlib.ExitStack() as opened:
        mine = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(path.open("a"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except OSError:  # it is locked, or the file system knows no locks
            mine = False
        yield mine
