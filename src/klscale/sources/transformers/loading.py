"""From a reference to a model in memory, through transformers. Model code from a repository is never executed."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import partial
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import psutil
import torch

from klscale.errors import InputError, KlscaleError, UnavailableError
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import KERNELS, WEIGHTS_ONLY, ModelRef
from klscale.inputs.texts import cache_directory
from klscale.progress import SILENT, Progress
from klscale.sources.transformers import quantization
from klscale.sources.transformers.gguf_files import READING, GgufFile, complete, configure, set_tokenizer
from klscale.sources.transformers.quantization import Quantization

# A conversion to safetensors that a bot proposed is another commit than the one asked for.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

_BUFFER = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|(^|\.)(position_ids|masked_bias|attn_mask)$")
"""Names of tensors that a model computes itself, whatever the file holds."""
_MODALITY = re.compile(r"(^|[._])(vision|visual|audio|image|img|mm|multi_modal|multimodal)[._]")
"""Names of tensors that read images or sound."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_FILES = (
    _ADAPTER, *_ADAPTER_WEIGHTS, "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json",
    "merges.txt", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_LARGE = 2**24
"""Bytes of a file that takes some time to hash."""
_RESIDENT = 0.8
"""Part of the free memory that weights may take; the rest is for batches and for what else runs."""
_NOTICES = ("accelerate.big_modeling", "torchao", "torch.utils._pytree")
"""Loggers that tell of placement and of kernels that are not built for this machine."""
_READ_WITH_WEIGHTS = (
    "config.json",
    "*.index.json",
    _ADAPTER,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_PAUSES = 10
"""How often the hub may ask for one before that counts as no answer."""
_READ_BESIDE = ("generation_config.json", "chat_template.*")
"""Fetched by transformers, though no score depends on them."""


@dataclass(frozen=True)
class HubCommit:
    """A commit of a hub model with its files, as the hub tells, or `offline` the local cache (there only those that it
    holds)."""

    commit: str
    files: frozenset[str]
    offline: bool
    parent: str | None = None
    """The one model that this was tuned, adapted or quantized from, as its repository says."""
    blobs: Mapping[str, tuple[str, int]] | None = None
    """Of each file the name that its content goes by, and its bytes; where that was asked for."""
    cached: bool = False
    """Whether the local cache held any of it when it was asked for."""

    @property
    def options(self) -> dict[str, Any]:
        """How transformers and huggingface_hub are asked for it."""
        return {"revision": self.commit, "local_files_only": self.offline}


@dataclass(frozen=True)
class ResolvedModel:
    """A reference pinned to what it means now: `identity` is `commit:<sha>` on the hub, or `files:<hash>` of the
    local files that scoring reads."""

    ref: ModelRef
    identity: str
    hub: HubCommit | None = None
    base: ResolvedModel | None = None
    """Of an adapter: the model that it changes."""

    def __str__(self) -> str:
        return str(self.ref)

    @property
    def location(self) -> str:
        return str(self.ref.path) if self.ref.path else self.ref.name

    @property
    def weights(self) -> list[str]:
        """The files that the weights are read from; of an adapter its own, then those of its model."""
        if self.ref.file:
            return [self.ref.file]
        names = self.hub.files if self.hub else {path.name for path in Path(self.location).glob("*")}
        if self.base is not None:
            return [*[name for name in _ADAPTER_WEIGHTS if name in names][:1], *self.base.weights]
        return _weights_read(names)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model in evaluation mode with its tokenizer. `window`: the longest text in tokens, or None."""

    ref: ModelRef
    model: Any
    tokenizer: Any
    window: int | None
    attributes: dict[str, Any] = field(default_factory=dict)
    quantization: Quantization | None = None
    """What was quantized, here or before the model was saved."""
    unused_tensors: tuple[str, ...] = ()
    """Of its files: buffers that the model computes itself, and what reads images or sound."""
    applied: tuple[str, ...] = ()
    """Keys and tensors of a GGUF file that transformers leaves out."""
    offload: tempfile.TemporaryDirectory[str] | None = None
    """Of a model larger than memory, whose layers are brought in by each forward pass: a folder with those that are
    not in its own files. It goes with the model."""


def device_of(name: str | None) -> torch.device:
    """The device of this name, or the fastest that is there. Raises InputError for one that cannot be used."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        why = str(error).split("\n")[0]
        raise InputError(f"The device {name!r} cannot be used.", why, "Use --device cpu.") from error


class Hub:
    """What the hub says of each revision, asked for once, by whichever thread comes first; with `sizes`, of its files
    too."""

    def __init__(self, progress: Progress = SILENT, *, sizes: bool = False) -> None:
        self._progress, self._sizes, self._lock = progress, sizes, threading.Lock()
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

        ask = partial(HfApi().model_info, ref.name, revision=ref.revision, timeout=20, files_metadata=self._sizes)
        return self._answer(ask)

    def _answer(self, ask: Callable[[], Any]) -> Any:
        """What the hub says; where it asks for a pause, after that."""
        from huggingface_hub import errors

        pauses = 0
        while True:
            try:
                return ask()
            except errors.HfHubHTTPError as error:
                if error.response.status_code != 429 or pauses == _PAUSES:
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


def resolve(ref: ModelRef, hub: Hub | None = None) -> ResolvedModel:
    """Pin a reference. Raises UnavailableError where there is no such model or the hub does not answer, InputError
    where what is there is none."""
    return _resolve(ref, hub or Hub(), base_of=None)


def _resolve(ref: ModelRef, asked: Hub, base_of: ModelRef | None) -> ResolvedModel:
    """`base_of`: the adapter that names this model, which then is no adapter itself."""
    reading = f" {READING}" if ref.file else ""
    if ref.path is not None:
        identity = f"files:{_fingerprint(ref)}{reading}"
        adapter = ref.path / _ADAPTER
        return _on_base(ref, asked, base_of, identity, adapter) if adapter.is_file() else ResolvedModel(ref, identity)
    hub = asked.commit(ref)
    identity = f"commit:{ref.name}@{hub.commit}{reading}"
    if _ADAPTER not in hub.files:
        return ResolvedModel(ref, identity, hub)
    if _weights(hub.files):
        raise _both(ref, ref.name)
    try:
        adapter = _fetch(ref, hub, _ADAPTER)
    except Exception as error:  # whatever a network does
        raise _failure(ref, f"{ref} cannot be fetched.", error) from error
    return _on_base(ref, asked, base_of, identity, adapter, hub)


def _fetch(ref: ModelRef, hub: HubCommit, name: str) -> Path:
    """A file of this commit; asked for by the revision's own name too, so that the cache knows offline what a branch
    pointed to."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(ref.name, name, revision=ref.revision, local_files_only=hub.offline)
    return Path(hf_hub_download(ref.name, name, **hub.options))


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
            f"Its {_ADAPTER} does not name a base model.",
            "Write the model under `base_model_name_or_path` there.",
        ) from error
    try:
        resolved = _resolve(base, asked, base_of=ref)
    except KlscaleError as error:
        raise type(error)(
            f"{ref} is an adapter of {name}, which cannot be used.",
            error.what,
            f"Put the model there, or mend `base_model_name_or_path` in its {_ADAPTER}.",
        ) from error
    return ResolvedModel(ref, f"{identity} on {resolved.identity}", hub, resolved)


def _both(ref: ModelRef, place: Any) -> InputError:
    return InputError(
        f"{place} holds both a model and an adapter.",
        f"Whether {ref} means the model alone or with its adapter cannot be told.",
        f"Move {_ADAPTER} or the model's weights elsewhere.",
    )


def _fingerprint(ref: ModelRef) -> str:
    """Hash of the files that scoring reads: config, tokenizer, weights. Other files may change freely."""
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
    weights = _weights(path.name for path in directory.iterdir())
    looked_for: tuple[str, ...] = _WEIGHTS
    if ref.file:
        weights, looked_for = [ref.file], (ref.file,)
    elif (directory / _ADAPTER).is_file():
        if weights:
            raise _both(ref, directory)
        weights, looked_for = [name for name in _ADAPTER_WEIGHTS if (directory / name).is_file()], _ADAPTER_WEIGHTS
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
    others = {path for pattern in _READ_WITH_WEIGHTS for path in directory.glob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted({*(directory / name for name in weights), *others}):
        digest.update(path.name.encode() + b"\0" + _digest(path))
    return digest.hexdigest()


def weight_files(resolved: ResolvedModel) -> list[Path]:
    """Where the files of the weights are; those of the hub are fetched. Raises KlscaleError where that fails."""
    from huggingface_hub import hf_hub_download

    ref, hub = resolved.ref, resolved.hub
    if hub is None:
        return [Path(resolved.location, name) for name in resolved.weights]
    try:
        return [Path(hf_hub_download(ref.name, name, **hub.options)) for name in resolved.weights]
    except Exception as error:  # whatever a network does
        raise _failure(ref, f"{ref} cannot be fetched.", error) from error


def _weights(names: Iterable[str]) -> list[str]:
    """Those of these files that hold a model's weights; an adapter's do not."""
    return [name for name in names if name not in _ADAPTER_WEIGHTS and any(fnmatch(name, p) for p in _WEIGHTS)]


def _weights_read(names: Collection[str]) -> list[str]:
    """Those that transformers reads a model's weights from: safetensors before pickles, one file before its parts."""
    for whole, parts in (
        ("model.safetensors", r"model[-_]\d+-of-\d+\.safetensors"),
        ("pytorch_model.bin", r"pytorch_model[-_]\d+-of-\d+\.bin"),
    ):
        if whole in names:
            return [whole]
        if f"{whole}.index.json" in names:
            return sorted(name for name in names if re.fullmatch(parts, name))
    return []


def downloads(resolved: ResolvedModel) -> dict[tuple[str, str], int] | None:
    """(repository, content) -> bytes of what loading would fetch, without what the local cache holds; None where that
    is not known. For what was resolved by a `Hub` that asks for sizes."""
    found: dict[tuple[str, str], int] = {}
    for model in filter(None, (resolved, resolved.base)):
        if model.hub is None:
            continue
        if model.hub.blobs is None:
            if model.hub.offline and model.weights:
                continue
            return None
        names = set(model.weights) if model.base is None else model.hub.files.intersection(_ADAPTER_FILES)
        if model.base is None and not model.ref.file:
            patterns = (*_READ_WITH_WEIGHTS, *_READ_BESIDE)
            names |= {name for name in model.hub.files for p in patterns if "/" not in name and fnmatch(name, p)}
        for name in names.intersection(model.hub.blobs):
            content, size = model.hub.blobs[name]
            if not _cached(model.ref.name, model.hub.commit, name, content):
                found[model.ref.name, content] = size
    return found


def _cached(repository: str, commit: str, name: str, content: str) -> bool:
    """Whether the local cache holds a file, of this commit or the same of another."""
    from huggingface_hub import try_to_load_from_cache

    there = try_to_load_from_cache(repository, name, revision=commit)
    return isinstance(there, str) or (cache_folder(repository) / "blobs" / content).is_file()


def cache_folder(repository: str) -> Path:
    """Where the local cache of the hub holds a model: its `snapshots`, `blobs` and `refs`."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"))


def _digest(path: Path) -> bytes:
    """Hash of a file's content; that of a large one is kept for as long as its path, inode, size and time stay."""
    stat = path.stat()
    what = f"{path.resolve()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}"
    kept = cache_directory() / "digests" / hashlib.sha256(what.encode()).hexdigest()
    with contextlib.suppress(OSError):
        if stat.st_size >= _LARGE and len(content := kept.read_bytes()) == 64:
            return content
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "blake2b").digest()
    settled = time.time() - stat.st_mtime > 2  # it might be written to again within the clock's tick
    if stat.st_size >= _LARGE and settled:
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)
    return content


def _hub_commit(ref: ModelRef, ask: Callable[[ModelRef], Any]) -> HubCommit:
    """What a revision of a hub model points to: asked of the hub, else of the local cache."""
    from huggingface_hub import errors, hf_hub_download

    _require_hub_id(ref.name)
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
        for file in (ref.file or "config.json", _ADAPTER):
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


def _require_hub_id(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        raise InputError(f"{name!r} is neither a directory here nor a hub id.", remedy="Check the path.")


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
        _first_line(error),
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


def load(resolved: ResolvedModel, device: str | None = None, *, alone: threading.Event | None = None) -> LoadedModel:
    """The model in evaluation mode and in the reference's dtype: on the CPU, or, where it does not fit there or on
    `device`, spread over accelerators, CPU and disk, from where each forward pass brings its layers in.

    `alone` is set when no other model is in memory: one that does not fit beside another waits for that.
    Raises KlscaleError where the files are not a causal language model, or do not hold all of its weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    ref, base = resolved.ref, resolved.base or resolved
    if resolved.base is not None:
        _peft(ref)
    quantization.require(ref)
    options: dict[str, Any] = base.hub.options if base.hub else {"local_files_only": True}
    if base.ref.file:
        options["gguf_file"] = base.ref.file
    what = f"{base.ref} cannot be fetched."
    try:
        with quiet_transformers():
            if base.hub:
                _fetch(base.ref, base.hub, base.ref.file or "config.json")
            what = f"The configuration of {base.ref} cannot be loaded."
            config = AutoConfig.from_pretrained(base.location, trust_remote_code=False, **options)
            file = GgufFile.read(_file_of(base), str(base.ref)) if base.ref.file else None
            applied = configure(config, file) if file is not None else []
            _refuse_kernels(config, base.ref)
            _refuse_others(config, base.ref)
            _refuse_quantized(config, resolved)
            what = f"The tokenizer of {ref} cannot be loaded."
            tokenizer = AutoTokenizer.from_pretrained(_tokenizer_of(resolved), trust_remote_code=False, **options)
            if file is not None:
                applied += set_tokenizer(tokenizer, file)
            what = f"{base.ref} cannot be loaded as a causal language model."
            placement, folder = _placement(config, ref, device, alone)
            if placement and (resolved.base or ref.quantization):
                done = "quantized" if ref.quantization else "merged with the adapter"
                raise KlscaleError(
                    f"{base.ref} does not fit into memory, so that it cannot be {done}.",
                    "Of a model larger than memory the layers stay on disk as they are.",
                    f"Use %bfloat16, or score {ref} on a larger machine.",
                )
            if ref.quantization in KERNELS:
                options |= quantization.kernel_options(ref, device_of(device))
            # Building a model in half precision changes torch's default dtype in all threads: never beside another.
            if alone is not None and ref.dtype != "float32":
                alone.wait()
            model, info = AutoModelForCausalLM.from_pretrained(
                base.location,
                config=config,
                dtype=getattr(torch, ref.dtype),
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are looked at below, and refused
                **options,
                **placement,
            )
            if file is not None:
                applied += complete(model, info, file, _file_of(base))
    except KlscaleError:
        raise
    except Exception as error:  # damaged files fail in any way
        raise _failure(ref, what, error) from error
    unused = _refuse_incomplete(model, info, resolved)
    if resolved.base is not None:
        model = _with_adapter(model, resolved)
    model.eval()
    config = model.config.get_text_config()
    known = {"type": config.model_type, "parameters": model.num_parameters(), "step": _trainer_step(resolved)}
    if resolved.base is not None:
        known["parent"] = str(base.ref)
    elif resolved.hub is not None:
        known["parent"] = resolved.hub.parent
    quantized: Quantization | None
    if ref.file:
        quantized = quantization.gguf(_file_of(resolved))
    elif ref.quantization in WEIGHTS_ONLY:
        quantized = quantization.quantize_weights(model, ref, device_of(device))
    else:
        quantized = quantization.loaded_so(model, ref)
    if quantized is not None:
        known["quantization"] = quantized.kind
    attributes = attributes_of(ref, known)
    return LoadedModel(ref, model, tokenizer, window_of(config), attributes, quantized, unused, tuple(applied), folder)


def _file_of(resolved: ResolvedModel) -> Path:
    """Where the one file is that a reference names."""
    ref = resolved.ref
    assert ref.file is not None
    return ref.path / ref.file if ref.path else _fetch(ref, resolved.hub, ref.file)  # type: ignore[arg-type]


def _refuse_incomplete(model: Any, info: Any, resolved: ResolvedModel) -> tuple[str, ...]:
    """Tensors of the files that the model rightly does not take, by name. Raises KlscaleError for any other that it
    does not take, and for one that the files lack: transformers makes that up at random."""
    ref, remedy = resolved.ref, "Check that the files are whole and that config.json belongs to them."
    if missing := sorted(info["missing_keys"]):
        why = f"{len(missing)} tensors are missing ({', '.join(missing[:3])}...) and would be random."
        raise KlscaleError(f"{ref}: the weights do not fit the model.", why, remedy)
    if differing := sorted(info["mismatched_keys"]):
        name, there, expected = differing[0]
        why = f"{name} is {tuple(there)} in the files and {tuple(expected)} in the model ({len(differing)} such)."
        raise KlscaleError(f"{ref}: the weights do not fit the model.", why, remedy)
    other = model.config.to_dict().keys() & {"vision_config", "audio_config"}
    unused = sorted(info["unexpected_keys"])
    if wrong := [name for name in unused if not (_BUFFER.search(name) or (other and _MODALITY.search(name)))]:
        why = f"The model has no place for {len(wrong)} tensors ({', '.join(wrong[:3])}{', ...' * (len(wrong) > 3)})."
        what = f"{ref}: the files hold weights that the model does not use."
        raise KlscaleError(what, f"{why} Its values would be another model's.", remedy)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight.shape == embedding.weight.shape:
        same = head.weight is embedding.weight or torch.equal(head.weight, embedding.weight)
        if not same and head.weight.device.type != "meta":
            why = "config.json ties the output head to the embeddings; the files hold a head with other values."
            raise KlscaleError(f"{ref}: the weights do not fit the model.", why, "Set tie_word_embeddings to false.")
    return tuple(unused)


# --------------------------------------------------------------------------------------------------------- adapters


def _peft(ref: ModelRef) -> Any:
    try:
        import peft
    except ImportError as error:
        raise KlscaleError(
            f"{ref} is an adapter.", "Adapters are applied by the package peft, which is not here.", "pip install peft"
        ) from error
    return peft


def _adapter_folder(resolved: ResolvedModel) -> Path:
    """Where the files of an adapter are; those of the hub are fetched."""
    if resolved.hub is None:
        return Path(resolved.location)
    names = sorted(resolved.hub.files.intersection(_ADAPTER_FILES))
    return [_fetch(resolved.ref, resolved.hub, name) for name in names][-1].parent


def _tokenizer_of(resolved: ResolvedModel) -> str:
    """An adapter may come with the tokenizer that it was trained with; else it is the base model's."""
    if resolved.base is None:
        return resolved.location
    own = _adapter_folder(resolved)
    return str(own) if (own / "tokenizer_config.json").is_file() else resolved.base.location


def _with_adapter(model: Any, resolved: ResolvedModel) -> Any:
    """The model with its adapter merged into the weights, in their dtype."""
    peft, what = _peft(resolved.ref), f"The adapter {resolved.ref} cannot be merged into {resolved.base}."
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = peft.PeftModel.from_pretrained(model, str(_adapter_folder(resolved)), torch_device="cpu")
        merged = model.merge_and_unload(safe_merge=True)
    except Exception as error:  # damaged files fail in any way
        remedy = "Adapters that change weights (LoRA and its kin) can be; prompts and prefixes cannot."
        raise KlscaleError(what, _first_line(error), remedy) from error
    if incomplete := [str(warning.message) for warning in said if "missing adapter keys" in str(warning.message)]:
        remedy = "Check that the files are whole and that the adapter belongs to this model."
        raise KlscaleError(what, _first_line(incomplete[0]), remedy)
    return merged


# ------------------------------------------------------------------------------------------------- larger than memory


def available_memory(device: torch.device) -> int:
    """Free bytes where a device keeps its tensors."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _placement(
    config: Any, ref: ModelRef, device: str | None, alone: threading.Event | None
) -> tuple[dict[str, Any], tempfile.TemporaryDirectory[str] | None]:
    """How transformers is to spread weights that do not fit into memory, and a folder for those that it must write
    anew; nothing where they fit."""
    if getattr(config, "quantization_config", None) is not None or ref.file or ref.quantization in KERNELS:
        return {}, None  # their size in memory is another
    itemsize = getattr(torch, ref.dtype).itemsize
    size, head = (itemsize * n for n in _parameters(config))
    cpu, places = torch.device("cpu"), {device_of(device), torch.device("cpu")}

    def fits() -> bool:
        return all(size <= _RESIDENT * available_memory(place) for place in places)

    if not fits() and alone is not None:
        alone.wait()
        gc.collect()
    if fits():
        return {}, None
    # The output embedding is held beside the layers, wherever those are.
    memory: dict[int | str, int] = {"cpu": int(_RESIDENT * available_memory(cpu) - head)}
    if device_of(device).type == "cuda":
        for n in (device_of(device).index,) if ":" in (device or "") else range(torch.cuda.device_count()):
            memory[n] = int(_RESIDENT * available_memory(torch.device("cuda", n)) - head)
    cache = cache_directory() / "offload"
    cache.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=cache)
    return {"device_map": "auto", "max_memory": memory, "offload_folder": folder.name}, folder


_COUNTED: dict[str, tuple[int, int]] = {}


def _parameters(config: Any) -> tuple[int, int]:
    """Parameters of a model, and of its output embedding, without loading any; once for all checkpoints of a run."""
    from transformers import AutoModelForCausalLM

    key = json.dumps([type(config).__name__, config.to_dict()], sort_keys=True, default=str)
    if key not in _COUNTED:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        head = getattr(model.get_output_embeddings(), "weight", None)
        _COUNTED[key] = sum(p.numel() for p in model.parameters()), 0 if head is None else head.numel()
    return _COUNTED[key]


# --------------------------------------------------------------------------------------------------- what is refused


def _refuse_kernels(config: Any, ref: ModelRef) -> None:
    """A configuration can name attention code of another repository, which would be fetched and run."""
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str) and "/" in asked:
        raise KlscaleError(
            f"{ref} asks for the attention code {asked!r}.",
            "Code from a repository is never executed.",
            "Take `attn_implementation` out of its config.json.",
        )


def _refuse_quantized(config: Any, resolved: ResolvedModel) -> None:
    """What is quantized is not quantized once more; and an adapter is not merged into what runs through a kernel."""
    ref, saved_so = resolved.ref, getattr(config, "quantization_config", None) is not None
    if ref.quantization and (saved_so or ref.file):
        raise InputError(
            f"{ref}: this model is quantized already.",
            "Its files hold quantized weights.",
            f"Score {ref.name} as it is.",
        )
    if resolved.base is not None and (saved_so or ref.quantization in KERNELS):
        what = f"The adapter {ref} cannot be merged into quantized weights."
        raise InputError(what, "They are held as codes, not as numbers.", "Take the unquantized base model.")


def _refuse_others(config: Any, ref: ModelRef) -> None:
    """Only what transformers knows as a decoder has log-likelihoods of texts."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    remedy = "Only decoder models of transformers' AutoModelForCausalLM can be scored."
    if getattr(config, "is_encoder_decoder", False):
        what = f"{ref} is an encoder-decoder model ({config.model_type})."
        raise KlscaleError(what, "It gives the probability of one text after another, not of a text.", remedy)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise KlscaleError(f"{ref} is not a causal language model, but of the kind {config.model_type!r}.", "", remedy)


def window_of(config: Any) -> int | None:
    """The longest input that positions are defined for, or None where there is no such limit."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return None


def _trainer_step(resolved: ResolvedModel) -> int | None:
    """Optimisation steps of a checkpoint that the transformers Trainer saved."""
    state = resolved.ref.path / "trainer_state.json" if resolved.ref.path else None
    if state is None or not state.is_file():
        return None
    with contextlib.suppress(ValueError, AttributeError):
        step = json.loads(state.read_text(encoding="utf-8")).get("global_step")
        return step if isinstance(step, int) else None
    return None


def _first_line(error: BaseException | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _failure(ref: ModelRef, what: str, error: Exception) -> KlscaleError:
    """What a user can do about an error of transformers."""
    from huggingface_hub.errors import GatedRepoError

    text, why = str(error), _first_line(error)
    remedy = "Check that the directory or the download is whole."
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        what, why = f"{ref.name} is gated.", "Its owner asks for consent before a download."
        remedy = f"Accept the terms at https://huggingface.co/{ref.name}, then `hf auth login`."
    elif "Weights only load failed" in text:
        why = "Its .bin file is a pickle that holds more than tensors, and could run any code: it is not read."
        remedy = "Ask its owner for safetensors."
    elif "trust_remote_code" in text:
        why = "It needs code from its repository, which is never executed."
        remedy = "Score it elsewhere and `klscale import` its log-likelihoods."
    elif "Unrecognized configuration class" in text or "does not recognize this architecture" in text:
        remedy = (
            "Only decoder models of transformers' AutoModelForCausalLM are scored; a newer transformers may know more."
        )
    return KlscaleError(what, why, remedy)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and notices of transformers while it reads and saves: klscale tells what matters."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    notices = [getLogger(name) for name in _NOTICES]
    levels = [logger.level for logger in notices]
    for logger in notices:
        logger.setLevel(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        for logger, level in zip(notices, levels, strict=True):
            logger.setLevel(level)
        if bar:
            logging.enable_progress_bar()
