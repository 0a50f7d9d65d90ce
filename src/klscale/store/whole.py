"""Files on this machine that are written whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ABANDONED_S = 86_400.0
"""Age at which a temporary file is abandoned. One of a process that is gone from this host is so at once."""
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.klscale-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}\.tmp(?:\.\w+)?|\..+\.[0-9a-f]{8}\.tmp")
"""Names of temporary files, with host and process; klscale 0.1.0 did not name these."""


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
        clear_abandoned_of(directory, [path.name for path in directory.iterdir()])


def clear_abandoned_of(directory: Path, names: Sequence[str]) -> None:
    """The same of these names in a directory."""
    for name in names:
        if (match := _TEMPORARY.fullmatch(name)) is None:
            continue
        with contextlib.suppress(OSError):
            gone = match[1] == _HOST and not is_alive(int(match[2]))
            if gone or time.time() - (directory / name).lstat().st_mtime > ABANDONED_S:
                (directory / name).unlink()


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    import psutil  # what only reads a store does not need it

    return psutil.pid_exists(pid)
