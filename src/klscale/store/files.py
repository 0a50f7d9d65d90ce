"""The files of a store: written whole or not at all, read only where they lie inside the store, and sealed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from klscale.errors import InputError, StorageError, UnreadableError
from klscale.inputs.texts import content_id
from klscale.store.local import Local, root_of
from klscale.store.remote import Remote

SEAL = "klscale-seal"
"""Names the SHA-256 of a whole file, which the file itself holds; it is taken with zeros in its place."""
_ZEROS = b"0" * 64


class Files:
    """Files under a directory or fsspec URL (`s3://...`). Before the first of them is written or removed, temporary
    files of killed processes are cleared, and `tidy` is called. Raises InputError where there can be none."""

    tidy: Callable[[], None] | None = None

    def __init__(self, location: str) -> None:
        if "::" in location:
            what = f"The store {location!r} is a chain of URLs."
            raise InputError(what, "What is written through one may not arrive.", "Give one directory or URL.")
        if not location:
            why = "--store, or KLSCALE_STORE, is empty."
            raise InputError("The store has no name.", why, "Give --store DIRECTORY.")
        self._disk, self.root = _opened(location)
        if isinstance(self._disk, Local):
            there = next(path for path in (Path(self.root), *Path(self.root).parents) if path.exists())
            if not there.is_dir():
                what = f"The store {location!r} cannot be there."
                raise InputError(what, f"{there} is a file, not a directory.", "Give --store DIRECTORY.")

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
        self._disk.put(path, data)

    @property
    def creates(self) -> bool:
        """Whether the storage can write a file on condition that there is none."""
        return self._disk.creates

    @property
    def at_once(self) -> int:
        """How many files are read at once."""
        return self._disk.at_once

    def create(self, path: str, data: bytes) -> bool:
        """Write a file on condition that there is none; whether this is the file that is there now. Where the
        storage cannot do that, the file is written. Raises StorageError where that fails."""
        self._clear()
        return self._disk.create(path, data)

    def read(self, path: str) -> bytes:
        """What a file holds. Raises FileNotFoundError, StorageError where the storage does not answer, and
        UnreadableError for a link that leads outside the store, for a directory and for a device."""
        return self._disk.get(path)

    def list(self, *parts: str, suffix: str = "") -> list[str]:
        """The paths in a directory, sorted; none where it is not there. Names that begin with a dot are left out.
        Raises as `stamps` does."""
        return [*self.stamps(*parts, suffix=suffix)]

    def stamps(self, *parts: str, suffix: str = "") -> dict[str, str]:
        """The same, each with a string that changes whenever the file does. Raises StorageError where a file stands in
        place of a directory of the store."""
        try:
            found = self._disk.list(self.path(*parts))
        except FileNotFoundError:
            return {}
        except NotADirectoryError as error:
            if not Path(kind := self.path(parts[0])).is_dir():
                raise StorageError(
                    f"{kind} is a file, where a store has a directory.",
                    "What the store held there cannot be read.",
                    "Put the directory back from a copy, or use another store.",
                ) from error
            return {}
        known = {one["name"].rstrip("/"): _stamp(one) for one in found}
        self._disk.listed(known)
        return {
            path: known[path] for path in sorted(known) if path.endswith(suffix) and not name_of(path).startswith(".")
        }

    def state(self, directory: str) -> str:
        """Changes whenever a finished file under this directory of the store does."""
        known = self._disk.find(self.path(directory))
        return content_id(
            f"{path} {_stamp(known[path])}".encode() for path in sorted(known) if not name_of(path).startswith(".")
        )

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self._disk.exists(path)

    def remove(self, path: str) -> None:
        """Take a file away."""
        self._clear()
        self._disk.remove(path)

    def remove_unchanged(self, stamps: Mapping[str, str], *parts: str) -> None:
        """Take away those files of a directory that are still as they were when `stamps` gave these."""
        for path, about in self._disk.infos(self.path(*parts), stamps):
            if _stamp(about) == stamps[path]:
                with contextlib.suppress(FileNotFoundError):
                    self.remove(path)

    def _clear(self) -> None:
        """Once: clear what killed processes have left."""
        tidy, self.tidy = self.tidy, None
        if tidy is not None:
            self._disk.clear()
            tidy()

    def forget(self, path: str, *, recursive: bool = False) -> None:
        """Take a file, or a directory with all that is in it, away if it can be."""
        with contextlib.suppress(OSError, StorageError):  # never there, or taken away by another process
            self._disk.remove(path, recursive=recursive)


def _opened(location: str) -> tuple[Local | Remote, str]:
    """The storage of a location, and the path of the store there."""
    if ":" not in location:
        return Local(root := root_of(location)), root
    import fsspec  # a tenth of a second, of which a directory needs nothing

    try:
        system, root = fsspec.core.url_to_fs(location)
    except (ValueError, ImportError) as error:
        raise InputError(f"The store {location!r} cannot be opened.", str(error), "Give a directory or URL.") from error
    local = isinstance(system, fsspec.implementations.local.LocalFileSystem)
    return (Local(root) if local else Remote(system)), root


def name_of(path: str) -> str:
    """The name of a file, without its directories."""
    return path.rsplit("/", 1)[-1]


def stem_of(path: str) -> str:
    """The name of a file, without what follows its last dot."""
    return name_of(path).rpartition(".")[0]


def _stamp(about: dict[str, Any]) -> str:
    known = [str(about.get(key)) for key in ("size", "mtime", "ino", "created", "LastModified", "ETag")]
    return json.dumps(known + ([str(about["blob_id"])] if "blob_id" in about else []))  # of the Hugging Face hub


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
