"""Claims: which vectors living processes work on. Nothing is locked; a claim only saves others the same work."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from klscale.errors import KlscaleError
from klscale.store.files import Files
from klscale.store.records import UNREADABLE
from klscale.store.whole import is_alive

CLAIM_BEAT_S, CLAIM_DEAD_S = 30.0, 150.0
"""How often a process says that it is still at work, and how long its silence means that it is not."""


def claims(files: Files, text_set: str) -> dict[str, list[dict[str, Any]]]:
    """The claims of living processes on each vector: `key`, `owner`, `host`, `pid`, `beat`. Void ones are removed.

    A claim that nobody renews is void after CLAIM_DEAD_S; one whose process on this machine is gone, at once.
    """
    alive: dict[str, list[dict[str, Any]]] = {}
    for path in files.list("partial", text_set, suffix=".claim"):
        try:
            found = json.loads(files.read(path))
            claim: dict[str, Any] = {"key": str(found["key"]), "owner": str(found["owner"]), "host": str(found["host"]),
                     "pid": int(found["pid"]), "beat": float(found["beat"])}  # fmt: skip
            here = claim["host"] == socket.gethostname()
            silent = abs(time.time() - claim["beat"]) > CLAIM_DEAD_S
            if not silent and (not here or is_alive(claim["pid"])):
                alive.setdefault(claim["key"], []).append(claim)
                continue
        except FileNotFoundError:  # released meanwhile
            continue
        except UNREADABLE:  # not a claim
            pass
        files.forget(path)
    return alive


def claim(files: Files, text_set: str, key: str) -> Claim | None:
    """Say that this process works on a vector, until the claim is released; None where a living one does already.

    Storage that writes a file only where there is none decides between two; elsewhere both give way and try again. With
    clocks that differ by minutes a model may be scored twice, to the same values.
    """
    if claims(files, text_set).get(key):
        return None
    try:
        mine = Claim(files, text_set, key)
    except FileExistsError:
        return None
    if not files.creates and any(other["owner"] != mine.owner for other in claims(files, text_set).get(key, ())):
        mine.release()  # two at one moment: neither has it, and both try again
        return None
    return mine


class Claim:
    """This process works on a vector, as all others can see: renewed by a thread until `release`. Raises
    FileExistsError where another made the same claim first, on storage that decides that."""

    def __init__(self, files: Files, text_set: str, key: str) -> None:
        self.owner, self._key = uuid.uuid4().hex[:8], key
        name = f"{key}.claim" if files.creates else f"{key}.{self.owner}.claim"
        self._files, self._path = files, files.path("partial", text_set, name)
        self._released = threading.Event()
        if not files.create(self._path, self._known()):
            raise FileExistsError(self._path)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _known(self) -> bytes:
        known = {"key": self._key, "owner": self.owner, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps({"record": "claim/2", **known, "beat": time.time()}).encode()

    def _renew(self) -> None:
        while not self._released.wait(CLAIM_BEAT_S):
            with contextlib.suppress(KlscaleError):  # at worst the claim is void, and another does the same work
                self._files.write(self._path, self._known())

    def release(self) -> None:
        """The work is done, or given up."""
        self._released.set()
        self._thread.join()
        self._files.forget(self._path)
