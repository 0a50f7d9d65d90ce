"""From a reference to a model in memory, through transformers. Model code from a repository is never executed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klscale.errors import InputError, KlscaleError, UnavailableError
from klscale.models import ModelRef, attributes_of

# A conversion to safetensors that a bot proposed is another commit than the one asked for.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_READ_WITH_WEIGHTS = (
    "config.json",
    "*.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class ResolvedModel:
    """A reference pinned to what it means now: `identity` is `commit:<sha>` on the hub, or `files:<hash>` of the
    local files that scoring reads."""

    ref: ModelRef
    identity: str
    commit: str | None = None

    @property
    def location(self) -> str:
        return str(self.ref.path) if self.ref.path else self.ref.name


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model in evaluation mode with its tokenizer. `window`: the longest text in tokens, or None."""

    ref: ModelRef
    model: Any
    tokenizer: Any
    window: int | None
    attributes: dict[str, Any] = field(default_factory=dict)


def resolve(ref: ModelRef) -> ResolvedModel:
    """Pin a reference. Raises UnavailableError where there is no such model or the hub does not answer, InputError
    where what is there is none."""
    if ref.quantization:
        raise InputError(
            f"{ref}: quantized variants cannot be scored by this version.",
            "Only models whose weights load as they are can be.",
            f"Score {ref.name} itself, or a checkpoint that was saved quantized.",
        )
    if ref.path is not None:
        return ResolvedModel(ref, f"files:{_fingerprint(ref)}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", ref.name, re.ASCII):
        raise InputError(f"{ref.name!r} is neither a directory here nor a hub id.", remedy="Check the path.")
    commit = _hub_commit(ref)
    return ResolvedModel(ref, f"commit:{ref.name}@{commit}", commit)


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
    if ref.file:
        weights = [directory / ref.file]
    elif not (directory / "config.json").is_file():
        hint = ", ".join(sorted(p.parent.name for p in directory.glob("*/config.json"))[-3:])
        raise InputError(
            f"{directory} holds no config.json.",
            "A model directory is one that transformers' save_pretrained wrote.",
            f"Did you mean one of its directories: {hint}?" if hint else "Check the path.",
        )
    else:
        weights = [path for pattern in _WEIGHTS for path in sorted(directory.glob(pattern))]
    if not weights or not all(path.is_file() for path in weights):
        raise InputError(
            f"{directory} holds no weights.",
            f"Looked for {ref.file or ' and '.join(_WEIGHTS)}.",
            "Check that the download or the save was complete.",
        )
    others = {path for pattern in _READ_WITH_WEIGHTS for path in directory.glob(pattern) if path.is_file()}
    digest = hashlib.sha256()
    for path in sorted({*weights, *others}):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        digest.update(path.name.encode() + b"\0" + content)
    return digest.hexdigest()


def _hub_commit(ref: ModelRef) -> str:
    """The commit that a revision of a hub model points to: asked of the hub, else of the local cache."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        return str(HfApi().model_info(ref.name, revision=ref.revision, timeout=20).sha)
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{ref.name} has no revision {ref.revision!r}.",
            remedy=f"See https://huggingface.co/{ref.name}/tree/main for its branches and tags.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UnavailableError(
            f"{ref.name!r} is neither a directory here nor a model on the hub.",
            "A private model looks the same without a login.",
            "Check the spelling, or `hf auth login`.",
            exit_status=2,
        ) from error
    except Exception as unreachable:  # whatever a network does
        try:
            cached = hf_hub_download(ref.name, ref.file or "config.json", revision=ref.revision, local_files_only=True)
            match = re.search(r"/snapshots/([0-9a-f]{40})/", Path(cached).as_posix())
        except errors.LocalEntryNotFoundError:
            match = None
        if match is None:
            raise UnavailableError(
                f"{ref} could not be fetched: the hub does not answer, and the local cache does not hold it.",
                _first_line(unreachable),
                "Check the network, or give a local directory: ./DIRECTORY.",
            ) from unreachable
        return match[1]


def load(resolved: ResolvedModel) -> LoadedModel:
    """The model in memory on the CPU, in evaluation mode, in the reference's dtype.

    Raises KlscaleError where the files are not a causal language model, or do not hold all of its weights.
    """
    import torch
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    ref = resolved.ref
    options: dict[str, Any] = {"revision": resolved.commit} if resolved.commit else {"local_files_only": True}
    if ref.file:
        options["gguf_file"] = ref.file
    what = f"{ref} cannot be fetched."
    try:
        with quiet_transformers():
            if resolved.commit:  # by its own name, so that the cache knows offline what the branch pointed to
                hf_hub_download(ref.name, ref.file or "config.json", revision=ref.revision)
            what = f"The configuration of {ref} cannot be loaded."
            _refuse_kernels(AutoConfig.from_pretrained(resolved.location, trust_remote_code=False, **options), ref)
            what = f"The tokenizer of {ref} cannot be loaded."
            tokenizer = AutoTokenizer.from_pretrained(resolved.location, trust_remote_code=False, **options)
            what = f"{ref} cannot be loaded as a causal language model."
            model, info = AutoModelForCausalLM.from_pretrained(
                resolved.location,
                dtype=getattr(torch, ref.dtype),
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except KlscaleError:
        raise
    except Exception as error:  # damaged files fail in any way
        raise _failure(ref, what, error) from error
    missing = sorted(info["missing_keys"])
    if missing or info.get("mismatched_keys"):
        raise KlscaleError(
            f"{ref}: the weights do not fit the model.",
            f"{len(missing)} tensors are missing ({', '.join(missing[:3])}...) and would be random."
            if missing
            else f"Shapes differ: {sorted(info['mismatched_keys'])[0]}.",
            "Check that the files are whole and that config.json belongs to them.",
        )
    model.eval()
    config = model.config.get_text_config()
    known = {"type": config.model_type, "parameters": model.num_parameters(), "step": _trainer_step(resolved)}
    return LoadedModel(ref, model, tokenizer, _window(config), attributes_of(ref, known))


def _refuse_kernels(config: Any, ref: ModelRef) -> None:
    """A configuration can name attention code of another repository, which would be fetched and run."""
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str) and "/" in asked:
        raise KlscaleError(
            f"{ref} asks for the attention code {asked!r}.",
            "Code from a repository is never executed.",
            "Take `attn_implementation` out of its config.json.",
        )


def _window(config: Any) -> int | None:
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


def _first_line(error: BaseException) -> str:
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
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
