"""A reference pinned to its files: the commit on the hub, or a fingerprint of what is in a local directory."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from klscale.errors import InputError, KlscaleError, UnavailableError
from klscale.inputs.conversations import WITH_TEMPLATE
from klscale.inputs.references import ModelRef
from klscale.sources.digests import file_digest
from klscale.sources.source import Pinned
from klscale.sources.transformers.failures import failure
from klscale.sources.transformers.gguf_files import READING
from klscale.sources.transformers.hub import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    Hub,
    HubCommit,
    cache_folder,
    fetch,
)

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
READ_WITH_TOKENIZER = (
    "config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
READ_WITH_WEIGHTS = (*READ_WITH_TOKENIZER, "*.index.json", ADAPTER)
CHAT_TEMPLATE = "chat_template.*"
"""Read for the responses to prompts alone."""
BYTES_IN_FILES = {False: 2.0, True: 0.5}
"""Bytes of a weight in most published files; in GGUF files where true."""
OF_SAVING = ("_name_or_path", "transformers_version")
"""Keys of a configuration on which no value depends: where a model came from, and what wrote it."""


@dataclass(frozen=True)
class ResolvedModel(Pinned):
    """A pinned model of transformers: `identity` is `commit:<sha>` on the hub, or `files:<hash>` of the local files
    that scoring reads."""

    hub: HubCommit | None = None
    base: ResolvedModel | None = None
    """Of an adapter: the model that it changes."""
    of_content: str | None = None
    """Hash of weights, configuration and tokenizer, where it is known before anything is fetched."""

    @property
    def location(self) -> str:
        return str(self.ref.path) if self.ref.path else self.ref.name

    @property
    def weights(self) -> list[str]:
        """Names of the files that hold the weights; an adapter's file comes before those of its model."""
        if self.ref.file:
            return [self.ref.file]
        names = self.hub.files if self.hub else {path.name for path in Path(self.location).glob("*")}
        if self.base is not None:
            return [*[name for name in ADAPTER_WEIGHTS if name in names][:1], *self.base.weights]
        return weights_read(names)

    @property
    def content(self) -> str:
        return self.of_content or self.identity

    @property
    def files(self) -> str:
        return (self.base or self).identity

    @property
    def has_trained_weights(self) -> bool:
        ref = self.ref
        return self.base is None and ref.quantization is None and ref.file is None and ref.layer is None

    @property
    def is_fetched(self) -> bool:
        return self.hub is not None


def with_chat_template(resolved: ResolvedModel) -> ResolvedModel:
    """The same model with a chat template that is a file of its own as part of what it is. One in the configuration of
    a tokenizer or in a GGUF file is so already."""
    digest = hashlib.sha256()
    for model in filter(None, (resolved, resolved.base)):
        if model.hub is not None:
            blobs = model.hub.blobs or {}
            found = sorted((name, blobs[name][0]) for name in blobs if fnmatch(name, CHAT_TEMPLATE))
        else:
            found = sorted((path.name, file_digest(path).hex()) for path in Path(model.location).glob(CHAT_TEMPLATE))
        digest.update(repr(found).encode() if found else b"")
    if digest.digest() == hashlib.sha256().digest():
        return resolved
    mark = WITH_TEMPLATE + digest.hexdigest()
    content = resolved.of_content and resolved.of_content + mark
    return replace(resolved, identity=resolved.identity + mark, of_content=content)


def resolve(ref: ModelRef, hub: Hub | None = None) -> ResolvedModel:
    """Pin a reference. Raises UnavailableError where there is no such model or the hub does not answer, InputError
    where what is there is none."""
    return _resolve(ref, hub or Hub(), base_of=None)


def _resolve(ref: ModelRef, asked: Hub, base_of: ModelRef | None) -> ResolvedModel:
    """As `resolve`. `base_of` is the adapter that names this model, which then must be no adapter itself."""
    reading = f" {READING}" if ref.file else ""
    if ref.path is not None:
        fingerprint, content = _fingerprint(ref)
        identity, adapter = f"files:{fingerprint}{reading}", ref.path / ADAPTER
        if adapter.is_file():
            return _on_base(ref, asked, base_of, identity, adapter)
        return ResolvedModel(ref, identity, of_content=f"{content}{reading}")
    hub = asked.commit(ref)
    identity = f"commit:{ref.name}@{hub.commit}{reading}"
    if ADAPTER not in hub.files:
        told = _hub_content(ref, hub)
        return ResolvedModel(ref, identity, hub, of_content=told and f"{told}{reading}")
    if weights_among(hub.files):
        raise _both(ref, ref.name)
    try:
        adapter = fetch(ref, hub, ADAPTER)
    except Exception as error:  # whatever a network does
        raise failure(ref, f"{ref} cannot be fetched.", error) from error
    return _on_base(ref, asked, base_of, identity, adapter, hub)


def _on_base(
    ref: ModelRef, asked: Hub, base_of: ModelRef | None, identity: str, adapter: Path, hub: HubCommit | None = None
) -> ResolvedModel:
    """An adapter with the model that its configuration names; the vector depends on both."""
    if base_of is not None:
        raise InputError(f"{ref} is an adapter itself.", remedy="Merge it into its model.")
    try:
        told = json.loads(adapter.read_text(encoding="utf-8"))
        name, revision = told["base_model_name_or_path"], told.get("revision")
        base = ModelRef(str(name), str(revision) if revision else None, dtype=ref.dtype)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{ref} is an adapter without a model.",
            f"Its {ADAPTER} does not name a base model.",
            "Write the model under `base_model_name_or_path` there.",
        ) from error
    try:
        resolved = _resolve(base, asked, base_of=ref)
    except KlscaleError as error:
        raise type(error)(
            f"{ref} is an adapter of {name}, which cannot be used.",
            error.what,
            f"Put the model there, or mend `base_model_name_or_path` in its {ADAPTER}.",
        ) from error
    return ResolvedModel(ref, f"{identity} on {resolved.identity}", hub, resolved)


def _both(ref: ModelRef, place: Any) -> InputError:
    return InputError(
        f"{place} holds both a model and an adapter.",
        f"Whether {ref} means the model alone or with its adapter cannot be told.",
        f"Move {ADAPTER} or the model's weights elsewhere.",
    )


def _hub_content(ref: ModelRef, hub: HubCommit) -> str | None:
    """Hash of what the files of a commit hold that scoring reads; None where the hub has not told. Where only a line
    of config.json differs that says where the model was saved, this differs, too."""
    if hub.blobs is None:
        return None
    weights = [ref.file] if ref.file else weights_read(hub.files)
    read = {name for name in hub.blobs if any(fnmatch(name, pattern) for pattern in READ_WITH_WEIGHTS)}
    if not weights or not all(name in hub.blobs for name in weights):
        return None
    contents = sorted((name, hub.blobs[name][0]) for name in {*weights, *read})
    return hashlib.sha256(repr(contents).encode()).hexdigest()


def _configuration(path: Path) -> bytes:
    """A configuration without the lines that change with its place and time."""
    try:
        told = json.loads(path.read_bytes())
        return json.dumps({key: told[key] for key in sorted(told) if key not in OF_SAVING}).encode()
    except (ValueError, TypeError, RecursionError):
        return path.read_bytes()


def _fingerprint(ref: ModelRef) -> tuple[str, str]:
    """Hash of the files that scoring reads: config, tokenizer, weights. Other files may change freely. The second one
    does not depend on what a configuration says of its place and time."""
    directory = ref.path
    assert directory is not None
    if not directory.is_dir():
        raise UnavailableError(
            f"{directory} is not a directory.",
            "A name that begins with . / or ~ is a local model.",
            "Check the path.",
            exit_status=2,
        )
    if ref.revision:
        raise InputError(
            f"{ref}: a local directory has no revisions.",
            f"{directory} is a directory on this machine.",
            "Give the checkpoint's own directory.",
        )
    weights = weights_among(path.name for path in directory.iterdir())
    looked_for: tuple[str, ...] = _WEIGHTS
    if ref.file:
        weights, looked_for = [ref.file], (ref.file,)
    elif (directory / ADAPTER).is_file():
        if weights:
            raise _both(ref, directory)
        weights, looked_for = [name for name in ADAPTER_WEIGHTS if (directory / name).is_file()], ADAPTER_WEIGHTS
    elif not (directory / "config.json").is_file():
        hint = ", ".join(sorted(p.parent.name for p in directory.glob("*/config.json"))[-3:])
        raise InputError(
            f"{directory} holds no config.json.",
            "A model directory is one that transformers' save_pretrained wrote.",
            f"Did you mean one of its directories: {hint}?" if hint else "Check the path.",
        )
    if not weights or not all((directory / name).is_file() for name in weights):
        raise InputError(
            f"{directory} holds no weights.",
            f"Looked for {' and '.join(looked_for)}.",
            "Check that the download or the save was complete.",
        )
    others = {path for pattern in READ_WITH_WEIGHTS for path in directory.glob(pattern) if path.is_file()}
    digest, content = hashlib.sha256(), hashlib.sha256()
    for path in sorted({*(directory / name for name in weights), *others}):
        digest.update(path.name.encode() + b"\0" + (of_file := file_digest(path)))
        name = "" if path.name == ref.file else path.name
        what = _configuration(path) if name == "config.json" else of_file
        content.update(name.encode() + b"\0" + hashlib.sha256(what).digest())
    return digest.hexdigest(), content.hexdigest()


def weight_files(resolved: ResolvedModel) -> list[Path]:
    """Paths of the files that hold the weights; files of the hub are fetched. Raises KlscaleError where that fails."""
    from huggingface_hub import hf_hub_download

    ref, hub = resolved.ref, resolved.hub
    if hub is None:
        return [Path(resolved.location, name) for name in resolved.weights]
    try:
        return [Path(hf_hub_download(ref.name, name, **hub.options)) for name in resolved.weights]
    except Exception as error:  # whatever a network does
        raise failure(ref, f"{ref} cannot be fetched.", error) from error


def bytes_in_memory(resolved: ResolvedModel) -> int | None:
    """Bytes of the weights in memory, from the sizes of their files; None where these are not known. A weight is taken
    to have BYTES_IN_FILES, which is more than it may be in memory and less than it is in float32 files."""
    model = resolved.base or resolved
    if model.hub is not None and model.hub.blobs is not None:
        sizes = [model.hub.blobs[name][1] for name in model.weights if name in model.hub.blobs]
    else:
        folder = Path(model.location)
        if model.hub is not None:
            folder = cache_folder(model.ref.name) / "snapshots" / model.hub.commit
        sizes = [(folder / name).stat().st_size for name in model.weights if (folder / name).is_file()]
    in_memory = 4 if resolved.ref.dtype == "float32" else 2
    return round(sum(sizes) * in_memory / BYTES_IN_FILES[bool(model.ref.file)]) or None


def file_of(resolved: ResolvedModel) -> Path:
    """Path of the one file that a reference names."""
    ref = resolved.ref
    assert ref.file is not None
    return ref.path / ref.file if ref.path else fetch(ref, resolved.hub, ref.file)  # type: ignore[arg-type]


def weights_among(names: Iterable[str]) -> list[str]:
    """The files among these that hold a model's weights; the files of an adapter do not."""
    return [name for name in names if name not in ADAPTER_WEIGHTS and any(fnmatch(name, p) for p in _WEIGHTS)]


def weights_read(names: Collection[str]) -> list[str]:
    """The files that transformers reads: safetensors before pickles, one file before several parts."""
    for whole, parts in (
        ("model.safetensors", r"model[-_]\d+-of-\d+\.safetensors"),
        ("pytorch_model.bin", r"pytorch_model[-_]\d+-of-\d+\.bin"),
    ):
        if whole in names:
            return [whole]
        if f"{whole}.index.json" in names:
            return sorted(name for name in names if re.fullmatch(parts, name))
    return []
