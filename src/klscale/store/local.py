"""Files of a store on this machine: written whole or not at all, and read only where they lie inside the store."""

from __future__ import annotations

import contextlib
import os
import shutil
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
    at_once = 2
    """With more, threads wait for each other in the interpreter: a thousand vectors of 10,000 texts took twice as long
    with eight."""

    def __init__(self, root: str) -> None:
        self._root = root

    def get(self, path: str) -> bytes:
        """What a file holds. Raises FileNotFoundError, and UnreadableError for a link that leads outside the store,
        for a directory and for a device."""
        self._require_inside(path)
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (a Path takes as long as all of this)
            raise UnreadableError("is no regular file")
        return Path(path).read_bytes()

    def put(self, path: str, data: bytes) -> None:
        """Write a file under a temporary name, then rename it. Raises StorageError where that fails."""
        try:
            self._require_inside(os.path.dirname(path))  # noqa: PTH120
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
        found = []
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    found.append(_listed(entry, f"{directory}/{entry.name}"))
        return found

    def find(self, directory: str) -> dict[str, dict[str, Any]]:
        """The same with all directories below, by path."""
        found, inside = dict[str, dict[str, Any]](), list[dict[str, Any]]()
        with contextlib.suppress(OSError):
            inside = self.list(directory)
        for one in inside:
            found |= self.find(one["name"]) if one["is_directory"] else {one["name"]: one}
        return found

    def infos(self, directory: str, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """What is known of those of these files of a directory that are there, each looked at when its turn comes."""
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                yield path, _known(path, os.stat(path))  # noqa: PTH116

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return os.path.lexists(path)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Take a file, or a directory with all that is in it, away. Raises OSError where it cannot be."""
        if recursive:
            shutil.rmtree(path)
        else:
            Path(path).unlink()

    def listed(self, stamps: Mapping[str, str]) -> None:
        """Nothing is cached."""

    def clear(self) -> None:
        """Remove what killed processes have left half written."""
        for directory, _, names in os.walk(self._root):
            clear_abandoned_of(Path(directory), names)

    def _require_inside(self, path: str) -> None:
        root, real = os.path.realpath(self._root), os.path.realpath(path)
        if real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
            raise UnreadableError("is a link that leads outside the store")


def root_of(location: str) -> str:
    """The absolute path of a directory, with / between names."""
    return Path(os.path.expanduser(location)).absolute().as_posix()  # noqa: PTH111 (of a user that is not there too)


def _known(path: str, about: os.stat_result) -> dict[str, Any]:
    """What is known of a file: as fsspec has it, so that what older versions kept of a store still counts."""
    created = getattr(about, "st_birthtime", about.st_ctime)
    return {"name": path, "size": about.st_size, "mtime": about.st_mtime, "ino": about.st_ino, "created": created}


def _listed(entry: os.DirEntry[str], path: str) -> dict[str, Any]:
    """The same of what stands in a directory; of a link, with the size of what it leads to."""
    found = _known(path, entry.stat(follow_symlinks=False))
    if entry.is_symlink():
        found["size"] = 0  # where it leads nowhere
        with contextlib.suppress(OSError):
            found["size"] = entry.stat().st_size
    return {**found, "is_directory": entry.is_dir(follow_symlinks=False)}
