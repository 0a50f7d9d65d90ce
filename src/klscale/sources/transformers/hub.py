"""The hub of Hugging Face: what a revision points to, asked once, or told by the local cache."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from klscale.errors import InputError, KlscaleError, UnavailableError
from klscale.inputs.references import ModelRef
from klscale.progress import SILENT, Progress
from klscale.sources.transformers.failures import first_line

# A conversion to safetensors that a bot proposed is another commit than the one asked for.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_FILES = (
    ADAPTER, *ADAPTER_WEIGHTS, "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
PAUSES = 10
"""How often the hub may ask for one before that counts as no answer."""


@dataclass(frozen=True)
class HubCommit:
    """A commit of a hub model with the names of its files. The hub lists them; `offline`, the local cache lists those
    that it holds."""

    commit: str
    files: frozenset[str]
    offline: bool
    parent: str | None = None
    """The model that this one was tuned, adapted or quantized from, according to its repository."""
    blobs: Mapping[str, tuple[str, int]] | None = None
    """Name of each file -> the name of its content and its size in bytes, where the hub tells."""
    cached: bool = False
    """Whether the local cache held a part of it at that time."""

    @property
    def options(self) -> dict[str, Any]:
        """How transformers and huggingface_hub are asked for it."""
        return {"revision": self.commit, "local_files_only": self.offline}


class Hub:
    """Asks the hub for each revision once, whichever thread needs it first."""

    def __init__(self, progress: Progress = SILENT) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._asked: dict[ModelRef, Future[HubCommit]] = {}
        self._revisions: dict[str, list[str]] = {}
        self._quiet_until = 0.0

    def commit(self, ref: ModelRef) -> HubCommit:
        """What a revision points to. Raises UnavailableError where there is no such model or the hub does not answer,
        InputError where it has no such revision, or the name can be none."""
        key = ModelRef(ref.name, ref.revision, file=ref.file)
        with self._lock:
            first, answer = key not in self._asked, self._asked.setdefault(key, Future())
        if first:
            try:
                answer.set_result(_hub_commit(key, self._info))
            except BaseException as error:
                answer.set_exception(error)
        return answer.result()

    def revisions(self, name: str) -> list[str]:
        """The branches and tags of a model; of a hub that does not answer, those that the local cache knows. Raises as
        `commit` does."""
        if name not in self._revisions:
            self._revisions[name] = _hub_revisions(name, self._answer)
        return self._revisions[name]

    def _info(self, ref: ModelRef) -> Any:
        from huggingface_hub import HfApi

        ask = partial(HfApi().model_info, ref.name, revision=ref.revision, timeout=20, files_metadata=True)
        return self._answer(ask)

    def _answer(self, ask: Callable[[], Any]) -> Any:
        """The hub's answer; after a pause, where the hub asks for one."""
        from huggingface_hub import errors

        pauses = 0
        while True:
            try:
                return ask()
            except errors.HfHubHTTPError as error:
                if error.response.status_code != 429 or pauses == PAUSES:
                    raise
                pauses += 1
                told = re.search(r";\s*t=(\d+)", error.response.headers.get("RateLimit", "")) or ["", "60"]
                self._pause(float(told[1]) + 1)

    def _pause(self, seconds: float) -> None:
        with self._lock:
            said = time.monotonic() < self._quiet_until
            self._quiet_until = time.monotonic() + seconds
        if not said:
            self._progress.note(
                f"The hub allows only so many questions in a while: going on in {seconds:.0f} seconds.\n"
                "It allows more after `hf auth login`."
            )
        time.sleep(seconds)

    def may_have(self, ref: ModelRef) -> bool:
        """Whether there is a directory or a hub model of this name; a hub that does not answer proves nothing."""
        if ref.path is not None:
            return ref.path.is_dir()
        try:
            self.commit(ref)
        except KlscaleError as error:
            return error.exit_status != InputError.exit_status
        return True


def _hub_commit(ref: ModelRef, ask: Callable[[ModelRef], Any]) -> HubCommit:
    """What a revision of a hub model points to: asked of the hub, else of the local cache."""
    from huggingface_hub import errors, hf_hub_download

    _require_hub_id(ref.name, ref.file)
    try:
        info = ask(ref)
        files = info.siblings or ()
        blobs = {
            file.rfilename: (file.lfs.sha256, file.lfs.size) if file.lfs else (file.blob_id, file.size)
            for file in files
            if file.size is not None
        }
        parent = _parent(ref.name, info.tags or ())
        names = frozenset(file.rfilename for file in files)
        there = (cache_folder(ref.name) / "snapshots" / str(info.sha)).is_dir()
        return HubCommit(str(info.sha), names, False, parent, blobs or None, there)
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{ref.name} has no revision {ref.revision!r}.",
            remedy=f"See https://huggingface.co/{ref.name}/tree/main for its branches and tags.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _no_model(ref.name) from error
    except Exception as unreachable:  # whatever a network does
        match = None
        for file in (ref.file or "config.json", ADAPTER):
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                cached = hf_hub_download(ref.name, file, revision=ref.revision, local_files_only=True)
                match = re.match(r"(.*/snapshots/([0-9a-f]{40}))/", Path(cached).as_posix()) or match
        if match is None:
            raise _unreachable(ref, unreachable) from unreachable
        snapshot = Path(match[1])
        held = (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
        return HubCommit(match[2], frozenset(held), offline=True, cached=True)


def _hub_revisions(name: str, answer: Callable[[Callable[[], Any]], Any]) -> list[str]:
    """Branches and tags of a hub model: asked of the hub, else of the local cache."""
    from huggingface_hub import HfApi, errors

    _require_hub_id(name)
    try:
        refs = answer(partial(HfApi().list_repo_refs, name))
        return list(dict.fromkeys(ref.name for ref in (*refs.branches, *refs.tags)))
    except errors.RepositoryNotFoundError as error:
        raise _no_model(name) from error
    except Exception as unreachable:  # whatever a network does
        refs = cache_folder(name) / "refs"
        held = sorted(path.relative_to(refs).as_posix() for path in refs.rglob("*") if path.is_file())
        if not held:
            raise _unreachable(name, unreachable) from unreachable
        return held


def _require_hub_id(name: str, file: str | None = None) -> None:
    """Raises InputError for what can be no repository of the hub, or no file in one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        what = f"{name!r} is neither a directory here nor a hub id."
        raise InputError(what, first_line(error), "Check the path.") from error
    if file is not None and (re.search(r"[:\\]", file) or not {"", ".", ".."}.isdisjoint(file.split("/"))):
        raise InputError(f"{name} has no file {file!r}.", "It is no path in a repository.", f"Give {name}:FILE.gguf.")


def _no_model(name: str) -> UnavailableError:
    return UnavailableError(
        f"{name!r} is neither a directory here nor a model on the hub.",
        "A private model looks the same without a login.",
        "Check the spelling, or `hf auth login`.",
        exit_status=2,
    )


def _unreachable(model: ModelRef | str, error: Exception) -> UnavailableError:
    return UnavailableError(
        f"{model} could not be fetched: the hub does not answer, and the local cache does not hold it.",
        first_line(error),
        "Check the network, or give a local directory: ./DIRECTORY.",
    )


def _parent(name: str, tags: Iterable[str]) -> str | None:
    """The base model among the tags of a repository; None where there are several, or it was merged from them."""
    bases: dict[str, set[str]] = {}
    for tag in tags:
        if match := re.fullmatch(r"base_model:(?:(\w+):)?([\w.-]+(?:/[\w.-]+)?)", tag, re.ASCII):
            bases.setdefault(match[2], set()).update(filter(None, [match[1]]))
    if len(bases) != 1:
        return None
    base, relations = bases.popitem()
    return base if base != name and relations <= {"finetune", "adapter", "quantized"} else None


def fetch(ref: ModelRef, hub: HubCommit, name: str) -> Path:
    """A file of this commit; asked for by the revision's own name too, so that the cache knows offline what a branch
    pointed to."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(ref.name, name, revision=ref.revision, local_files_only=hub.offline)
    return Path(hf_hub_download(ref.name, name, **hub.options))


def is_cached(repository: str, commit: str, name: str, content: str) -> bool:
    """Whether the local cache holds a file, of this commit or the same of another."""
    from huggingface_hub import try_to_load_from_cache

    there = try_to_load_from_cache(repository, name, revision=commit)
    return isinstance(there, str) or (cache_folder(repository) / "blobs" / content).is_file()


def cache_folder(repository: str) -> Path:
    """Where the local cache of the hub holds a model: its `snapshots`, `blobs` and `refs`."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))
