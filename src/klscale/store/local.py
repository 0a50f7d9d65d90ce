"""Files of a store on this machine: written whole or not at all, and read only where they lie inside the store."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from klscale.errors import StorageError, UnreadableError
from klscale.store.whole import clear_abandoned_of, write_whole


class Local:
    """A directory, with the methods that `Remote` has."""

    creates = False
    """Two processes that write one file at one moment both write it."""

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root

    def get(self, path: str) -> bytes:
        """What a file holds. Raises FileNotFoundError, and UnreadableError for a link that leads outside the store,
        for a directory and for a device."""
        self._require_inside(Path(path))
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UnreadableError("is no regular file")
        data: bytes = self._system.cat_file(path)
        return data

    def put(self, path: str, data: bytes) -> None:
        """Write a file under a temporary name, then rename it. Raises StorageError where that fails."""
        try:
            self._require_inside(Path(path).parent)
            write_whole(Path(path), lambda temporary: temporary.write_bytes(data))
        except UnreadableError as error:
            raise StorageError(f"{path} is not written.", f"Its directory {error}.", "Remove the link.") from error
        except OSError as error:
            raise StorageError(
                f"{path} could not be written.",
                f"{error.strerror or error}.",
                "Make room or set the rights, then run the same command again: what was finished before is kept.",
            ) from error

    def create(self, path: str, data: bytes) -> bool:
        """Write a file, whether there was one or not."""
        self.put(path, data)
        return True

    def list(self, directory: str) -> list[dict[str, Any]]:
        """What a directory holds. Raises FileNotFoundError and NotADirectoryError."""
        found: list[dict[str, Any]] = self._system.ls(directory, detail=True)
        return found

    def find(self, directory: str) -> dict[str, dict[str, Any]]:
        """The same with all directories below, by path."""
        found: dict[str, dict[str, Any]] = self._system.find(directory, detail=True)
        return found

    def infos(self, directory: str, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is known of those of these files of a directory that are there, each looked at when its turn comes."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                yield path, self._system.info(path)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self._system.exists(path))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Take a file, or a directory with all that is in it, away. Raises OSError where it cannot be."""
        if recursive:
            self._system.rm(path, recursive=True)
        else:
            self._system.rm_file(path)

    def listed(self, stamps: Mapping[str, str]) -> None:
        """Nothing is cached."""

    def clear(self) -> None:
        """Remove what killed processes have left half written."""
        for directory, _, names in os.walk(self._root):
            clear_abandoned_of(Path(directory), names)

    def _require_inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(Path(self._root).resolve()):
            raise UnreadableError("is a link that leads outside the store")
