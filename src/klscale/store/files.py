"""The files of a store: written whole or not at all, read only where they lie inside the store, and sealed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec

from klscale.errors import InputError, StorageError
from klscale.inputs.texts import content_id
from klscale.store.remote import Remote
from klscale.store.whole import clear_abandoned_of, write_whole

SEAL = "klscale-seal"
"""Names the SHA-256 of a whole file, which the file itself holds; it is taken with zeros in its place."""
_ZEROS = b"0" * 64


class UnreadableError(ValueError):
    """A file of the store that cannot be used; says why, in words that follow the file's name."""


class Files:
    """Files under a directory or fsspec URL (`s3://...`). Before the first of them is written or removed, temporary
    files of killed processes are cleared, and `tidy` is called. Raises InputError where there can be none."""

    tidy: Callable[[], None] | None = None

    def __init__(self, location: str) -> None:
        if "::" in location:
            what = f"The store {location!r} is a chain of URLs."
            raise InputError(what, "What is written through one may not arrive.", "Give one directory or URL.")
        try:
            self.system, self.root = fsspec.core.url_to_fs(location)
        except (ValueError, ImportError) as error:
            raise InputError(
                f"The store {location!r} cannot be opened.", str(error), "Give a directory or URL."
            ) from error
        local = isinstance(self.system, fsspec.implementations.local.LocalFileSystem)
        self._remote = None if local else Remote(self.system)
        if local and Path(self.root).exists() and not Path(self.root).is_dir():
            raise InputError(f"The store {location!r} is a file, not a directory.", remedy="Give --store DIRECTORY.")

    def path(self, *parts: str) -> str:
        """The path of a file, by the names of its directories and its own. Raises UnreadableError for no name."""
        for part in parts:
            if part in ("", ".", "..") or re.search(r"[/\\\0]", part):
                raise UnreadableError(f"{part!r} is no name of a file")
        return "/".join((self.root.rstrip("/"), *parts))

    def write(self, path: str, data: bytes) -> None:
        """Write a file whole or not at all: locally a temporary name, fsync and rename; elsewhere one PUT. Raises
        StorageError where that fails."""
        self._clear()
        if self._remote:
            self._remote.put(path, data)
            return
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

    @property
    def creates(self) -> bool:
        """Whether the storage can write a file on condition that there is none."""
        return self._remote is not None and self._remote.creates

    def create(self, path: str, data: bytes) -> bool:
        """Write a file on condition that there is none; whether there was none. Where the storage cannot do that, the
        file is written. Raises StorageError where that fails."""
        if self._remote and self._remote.creates:
            return self._remote.create(path, data)
        self.write(path, data)
        return True

    def read(self, path: str) -> bytes:
        """What a file holds. Raises FileNotFoundError, StorageError where the storage does not answer, and
        UnreadableError for a link that leads outside the store, for a directory and for a device."""
        if self._remote:
            return self._remote.get(path)
        self._require_inside(Path(path))
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise UnreadableError("is no regular file")
        data: bytes = self.system.cat_file(path)
        return data

    def _require_inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(Path(self.root).resolve()):
            raise UnreadableError("is a link that leads outside the store")

    def list(self, *parts: str, suffix: str = "") -> list[str]:
        """The paths in a directory, sorted; none where it is not there. Names that begin with a dot are left out."""
        return [*self.stamps(*parts, suffix=suffix)]

    def stamps(self, *parts: str, suffix: str = "") -> dict[str, str]:
        """The same, each with a string that changes whenever the file does."""
        directory = self.path(*parts)
        try:
            found = self._remote.list(directory) if self._remote else self.system.ls(directory, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        known = {one["name"].rstrip("/"): _stamp(one) for one in found}
        if self._remote:
            self._remote.listed(known)
        return {
            path: known[path] for path in sorted(known) if path.endswith(suffix) and not _name(path).startswith(".")
        }

    def state(self, directory: str) -> str:
        """Changes whenever a finished file under this directory of the store does."""
        path = self.path(directory)
        known = self._remote.find(path) if self._remote else self.system.find(path, detail=True)
        return content_id(
            f"{path} {_stamp(known[path])}".encode() for path in sorted(known) if not _name(path).startswith(".")
        )

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._remote.exists(path) if self._remote else bool(self.system.exists(path))

    def remove(self, path: str) -> None:
        """Take a file away."""
        self._clear()
        if self._remote:
            self._remote.remove(path)
        else:
            self.system.rm_file(path)

    def remove_unchanged(self, stamps: Mapping[str, str], *parts: str) -> None:
        """Take away those files of a directory that are still as they were when `stamps` gave these."""
        self._clear()
        now = self.stamps(*parts) if self._remote else {}
        for path, stamp in stamps.items():
            with contextlib.suppress(FileNotFoundError):
                if (now.get(path) if self._remote else _stamp(self.system.info(path))) == stamp:
                    self.remove(path)

    def _clear(self) -> None:
        """Once: clear what killed processes have left."""
        tidy, self.tidy = self.tidy, None
        if tidy is not None:
            if self._remote is None:
                for directory, _, names in os.walk(self.root):
                    clear_abandoned_of(Path(directory), names)
            tidy()

    def forget(self, path: str, *, recursive: bool = False) -> None:
        """Take a file, or a directory with all that is in it, away if it can be."""
        with contextlib.suppress(OSError, StorageError):  # never there, or taken away by another process
            if self._remote:
                self._remote.remove(path, recursive=recursive)
            elif recursive:
                self.system.rm(path, recursive=True)
            else:
                self.system.rm_file(path)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _stamp(about: dict[str, Any]) -> str:
    return json.dumps([str(about.get(key)) for key in ("size", "mtime", "ino", "created", "LastModified", "ETag")])


# ------------------------------------------------------------------------------------------------------------- seals


def sealed(write: Callable[[str], bytes]) -> bytes:
    """The bytes that `write` makes of a seal, with the right one: 64 hexadecimal digits."""
    blank = uuid.uuid4().hex + uuid.uuid4().hex
    data = write(blank)
    seal = hashlib.sha256(data.replace(blank.encode(), _ZEROS)).hexdigest()
    return data.replace(blank.encode(), seal.encode())


def require_seal(data: bytes, seal: object) -> None:
    """Raise UnreadableError unless a file holds this seal, once, and it is the right one."""
    digits = seal.encode() if isinstance(seal, str) else b""
    once = re.fullmatch(rb"[0-9a-f]{64}", digits) is not None and data.count(digits) == 1
    if not once or hashlib.sha256(data.replace(digits, _ZEROS)).hexdigest() != seal:
        raise UnreadableError("is not as it was written: its seal is broken")
