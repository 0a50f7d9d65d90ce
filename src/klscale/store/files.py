"""The files of a store: written whole or not at all, read only where they lie inside the store, and sealed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec
import psutil

from klscale.errors import InputError, StorageError
from klscale.inputs.texts import content_id

SEAL = "klscale-seal"
"""Names the SHA-256 of a whole file, which the file itself holds; it is taken with zeros in its place."""
_ZEROS = b"0" * 64


ABANDONED_S = 86_400.0
"""Age at which a temporary file is abandoned. One of a process that is gone from this host is so at once."""
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.klscale-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.tmp(?:\.\w+)?|\..+\.[0-9a-f]{8}\.tmp")
"""Names of temporary files, with host and process; klscale 0.1.0 did not name these."""


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
        self._local = isinstance(self.system, fsspec.implementations.local.LocalFileSystem)
        if self._local and Path(self.root).exists() and not Path(self.root).is_dir():
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
        try:
            if not self._local:
                self.system.pipe_file(path, data)
                return
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

    def read(self, path: str) -> bytes:
        """What a file holds. Raises FileNotFoundError, and UnreadableError for a link that leads outside the store,
        for a directory and for a device."""
        if self._local:
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
        self.system.invalidate_cache()
        try:
            found = self.system.ls(self.path(*parts), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        known = {one["name"].rstrip("/"): _stamp(one) for one in found}
        return {
            path: known[path] for path in sorted(known) if path.endswith(suffix) and not _name(path).startswith(".")
        }

    def state(self, directory: str) -> str:
        """Changes whenever a finished file under this directory of the store does."""
        self.system.invalidate_cache()
        known = self.system.find(self.path(directory), detail=True)
        return content_id(
            f"{path} {_stamp(known[path])}".encode() for path in sorted(known) if not _name(path).startswith(".")
        )

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return bool(self.system.exists(path))

    def remove(self, path: str) -> None:
        """Take a file away."""
        self._clear()
        self.system.rm_file(path)

    def _clear(self) -> None:
        """Once: clear what killed processes have left."""
        tidy, self.tidy = self.tidy, None
        if tidy is not None:
            if self._local:
                for directory, _, names in os.walk(self.root):
                    _clear_abandoned(Path(directory), names)
            tidy()

    def forget(self, path: str, *, recursive: bool = False) -> None:
        """Take a file, or a directory with all that is in it, away if it can be."""
        with contextlib.suppress(OSError):  # never there, or taken away by another process
            self.system.rm(path, recursive=True) if recursive else self.system.rm_file(path)


def write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    """Have `write` write a file under a temporary name with the same ending, then rename it: nobody sees half a file.
    A link is followed. Raises OSError where it cannot be written."""
    target = Path(os.path.realpath(file))
    temporary = target.with_name(f".klscale-{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{target.suffix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def clear_abandoned(directory: Path) -> None:
    """Remove temporary files of killed processes from a directory."""
    with contextlib.suppress(OSError):
        _clear_abandoned(directory, [path.name for path in directory.iterdir()])


def _clear_abandoned(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        if (match := _TEMPORARY.fullmatch(name)) is None:
            continue
        with contextlib.suppress(OSError):
            gone = match[1] == _HOST and not psutil.pid_exists(int(match[2]))
            if gone or time.time() - (directory / name).lstat().st_mtime > ABANDONED_S:
                (directory / name).unlink()


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
