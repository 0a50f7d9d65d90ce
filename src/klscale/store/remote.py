"""Files of a store that is not on this machine (`s3://`, `gs://`, `hf://`, ...): what fails for a moment is tried
again, what was read once is kept, and a claim is made only where there is none."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from klscale.errors import StorageError
from klscale.inputs.texts import cache_directory
from klscale.store.whole import write_whole

T = TypeVar("T")

WAITS_S = (1.0, 5.0)
"""Between tries of a request. The clients of the storage services try several times within each, and wait longer."""
DEFINITE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError)
"""What a further try would only find again."""


class Remote:
    """Requests to an fsspec file system.

    Each raises FileNotFoundError where there is no such file, and StorageError where the storage does not answer as it
    should, or refuses.
    """

    at_once = 8

    def __init__(self, system: Any) -> None:
        self._system = system
        self._stamps: dict[str, str] = {}
        """Of the files last listed: what changes whenever a file does."""
        parameters = inspect.signature(getattr(system, "_pipe_file", system.pipe_file)).parameters
        self.creates = "mode" in parameters
        """Whether a file can be written on condition that there is none. Where it cannot, `create` always writes."""

    def get(self, path: str) -> bytes:
        """What a file holds; from the local cache where the file is as it was when it was last listed."""
        kept = self._kept(path)
        if kept is not None:
            with contextlib.suppress(OSError):
                return kept.read_bytes()
        data: bytes = self._ask(path, "read", lambda: self._system.cat_file(path))
        if kept is not None:
            self._keep(kept, data)
        return data

    def put(self, path: str, data: bytes) -> None:
        """Write a file in one request."""
        self._stamps.pop(path, None)
        self._ask(path, "written", lambda: self._system.pipe_file(path, data))

    def create(self, path: str, data: bytes) -> bool:
        """Write a file on condition that there is none; whether this is the file that is there now. A request that was
        done, though its answer was lost, finds its own file when it is made again. Where the storage knows no such
        condition, the file is written."""
        if not self.creates:
            self.put(path, data)
            return True
        try:
            self._ask(path, "written", lambda: self._system.pipe_file(path, data, mode="create"))
        except FileExistsError:
            try:
                found: bytes = self._ask(path, "read", lambda: self._system.cat_file(path))
            except FileNotFoundError:
                return False
            return found == data
        return True

    def list(self, directory: str) -> list[dict[str, Any]]:
        """What a directory holds, as it is now. Raises NotADirectoryError too."""
        self._system.invalidate_cache(directory)
        found: list[dict[str, Any]] = self._ask(directory, "listed", lambda: self._system.ls(directory, detail=True))
        return found

    def find(self, directory: str) -> dict[str, dict[str, Any]]:
        """The same with all directories below, by path."""
        self._system.invalidate_cache(directory)
        found: dict[str, dict[str, Any]] = self._ask(
            directory, "listed", lambda: self._system.find(directory, detail=True)
        )
        return found

    def infos(self, directory: str, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is known of those of these files of a directory that are there, by one listing."""
        known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            known = {one["name"].rstrip("/"): one for one in self.list(directory)}
        yield from ((path, known[path]) for path in paths if path in known)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self._ask(path, "looked for", lambda: self._system.exists(path)))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Take a file, or a directory with all that is in it, away."""
        self._stamps.pop(path, None)
        rm = self._system.rm if recursive else self._system.rm_file
        self._ask(path, "removed", lambda: rm(path, recursive=True) if recursive else rm(path))

    def clear(self) -> None:
        """A request leaves no half of a file."""

    def listed(self, stamps: Mapping[str, str]) -> None:
        """What the storage says of files: while it says the same of one, the copy in the local cache is that file."""
        self._stamps.update(stamps)

    def _kept(self, path: str) -> Path | None:
        """Where the local cache has a file, or will; None for one that was not listed."""
        if (stamp := self._stamps.get(path)) is None:
            return None
        at = hashlib.sha256(f"{self._system.protocol} {self._system.storage_options!r} {path}".encode()).hexdigest()
        return cache_directory() / "stores" / at[:2] / f"{at}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"

    def _keep(self, kept: Path, data: bytes) -> None:
        """Put a file into the local cache in place of what it was before; where that cannot be, do without."""
        with contextlib.suppress(OSError):
            write_whole(kept, lambda temporary: temporary.write_bytes(data))
            for old in kept.parent.glob(f"{kept.name.split('-')[0]}-*"):
                if old != kept:
                    old.unlink()

    def _ask(self, path: str, done: str, request: Callable[[], T]) -> T:
        for wait in (*WAITS_S, None):
            try:
                return request()
            except DEFINITE:
                raise
            except Exception as error:  # each service has its own
                name, status = type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)
                refused = isinstance(error, PermissionError) or "Credential" in name or "Token" in name
                refused = refused or status in (401, 403)
                if refused or wait is None:
                    raise StorageError(
                        f"{self._system.unstrip_protocol(path)} could not be {done}.",
                        f"The storage {'refuses: ' if refused else 'does not answer as it should: '}{error}",
                        "Check its credentials and rights." if refused else
                        "Run the same command again: what was finished before is kept.",
                    ) from error  # fmt: skip
                time.sleep(wait)
        raise AssertionError  # the last try returns or raises
