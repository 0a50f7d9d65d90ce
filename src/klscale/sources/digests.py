"""Hashes of the content of files, kept for large ones."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

from klscale.inputs.texts import cache_directory

LARGE = 2**24
"""The hash of a file with at least so many bytes is kept."""


def file_digest(path: Path) -> bytes:
    """Hash of a file's content. The hash of a large file is kept until its path, inode, size or time changes."""
    stat = path.stat()
    what = f"{path.resolve()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}"
    kept = cache_directory() / "digests" / hashlib.sha256(what.encode()).hexdigest()
    with contextlib.suppress(OSError):
        if stat.st_size >= LARGE and len(content := kept.read_bytes()) == 64:
            return content
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    settled = time.time() - stat.st_mtime > 2  # it might be written to again within the clock's tick
    if stat.st_size >= LARGE and settled:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)
    return content
