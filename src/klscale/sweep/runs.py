"""Runs: the checkpoints that a training run left, here or on the hub, and the distances between their weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from klscale.errors import InputError, KlscaleError
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import ModelRef
from klscale.progress import SILENT, Progress
from klscale.science.diffusion import WINDOW
from klscale.science.weights import count_parameters, distances_to, squared_distances, unusable
from klscale.sources.source import Pinned, Source, Sources
from klscale.store.store import Store

_MODELS = ("config.json", "adapter_config.json")
"""A directory with one of these is a model itself."""
_PATTERN = re.compile(r"[*?[]")
"""Characters that neither a branch nor a hub id can contain."""


def checkpoints(ref: ModelRef, sources: Sources | None = None) -> list[ModelRef]:
    """The checkpoints of a run, in the order of steps; after them those whose names tell no step.

    A run is a directory with `checkpoint-*` (or `step-*`), whole or not; a hub model: those of its branches and tags
    that tell a step; or a pattern with `*`, `?` or `[`: `NAME@step*` of branches and tags, `runs/a/checkpoint-*` of
    directories. Any other revision is its own only checkpoint, and so is an address. Quantization and dtype are those
    of `ref`.

    Raises InputError where there is none, UnavailableError where there is no such model or the hub does not answer.
    """
    if ref.scheme:
        return [ref]
    folder, _, pattern = ref.name.rstrip("/").rpartition("/")
    if ref.path is not None and ref.path.is_dir():
        there = _directories(ref, ref.name.rstrip("/"))
        found = [one for one in there if _step(one) is not None]
        what = f"{ref.path} holds no checkpoints."
        remedy = "A checkpoint is a directory such as checkpoint-500 or step-500."
    elif _PATTERN.search(pattern):
        there = _directories(ref, folder)
        found = [one for one in there if fnmatchcase(one.name.rpartition("/")[2], pattern)]
        what, remedy = f"No directory matches {ref.name!r}.", "Revisions of a hub model: NAME@PATTERN."
    elif ref.path is None and (ref.revision is None or _PATTERN.search(ref.revision)):
        revisions = (sources or Sources()).of(ref).revisions(ref.name)
        there = [replace(ref, revision=revision) for revision in revisions]
        found = [one for one in there if _step(one) is not None]
        what, remedy = f"{ref.name} has no revisions that tell a step.", "Write NAME@PATTERN for others."
        if ref.revision is not None:
            found = [one for one in there if fnmatchcase(one.revision or "", ref.revision)]
            what = f"{ref.name} has no revision that matches {ref.revision!r}."
            remedy = f"See https://huggingface.co/{ref.name}/tree/main for its branches and tags."
    else:
        return [ref]
    if not found:
        names = [one.revision or one.name.rpartition("/")[2] for one in sorted(there, key=_order)]
        more = ", ..." if len(names) > 8 else "."
        raise InputError(what, f"There are: {', '.join(names[:8])}{more}" if names else "", remedy)
    return sorted(found, key=_order)


def _directories(ref: ModelRef, folder: str) -> list[ModelRef]:
    """The directories in a folder, each as a model with the quantization and dtype of `ref`."""
    inside = Path(folder or ".").expanduser()
    names = [path.name for path in inside.iterdir() if path.is_dir()] if inside.is_dir() else []
    return [replace(ref, name=f"{folder}/{name}" if folder else name) for name in names]


def _step(ref: ModelRef) -> int | None:
    step: int | None = attributes_of(ref).get("step")
    return step


def _order(ref: ModelRef) -> tuple[bool, int, int, int, str, str]:
    """Sorts checkpoints by stage, then by step; names without a step come last."""
    known = attributes_of(ref)
    stage, ingredient, step = (int(known.get(name, 0)) for name in ("stage", "ingredient", "step"))
    return "step" not in known, stage, ingredient, step, ref.revision or "", ref.name


def is_run(ref: ModelRef) -> bool:
    """Whether a reference stands for its checkpoints, since it is no model itself."""
    if ref.scheme:
        return False
    if ref.path is None or not ref.path.is_dir():
        return bool(_PATTERN.search(ref.name.rpartition("/")[2]) or _PATTERN.search(ref.revision or ""))
    whole = ref.file or ref.revision or any((ref.path / name).is_file() for name in _MODELS)
    return not whole and any(_step(one) is not None for one in _directories(ref, ref.name.rstrip("/")))


# ----------------------------------------------------------------------------------------------------------- weights


def weigh(refs: Sequence[ModelRef], store: Store, *, progress: Progress = SILENT) -> dict[ModelRef, KlscaleError]:
    """Keep in the store the squared distances between the weights of all these local checkpoints; where it has them
    all, nothing is read. Returns what is wrong with each that could not be compared, a quantized reference, an adapter
    or a model of the hub (for which there is `score` with `weigh`) among them."""
    sources, found = Sources(), dict[str, Pinned]()
    problems: dict[ModelRef, KlscaleError] = {}
    for ref in refs:
        try:
            pinned = sources.pin(ref) if ref.path else None
            if pinned is None or not pinned.has_trained_weights:
                why = "Weights are compared as they were trained, in safetensors files of this machine."
                raise InputError(f"The weights of {ref} cannot be compared.", why, "Give a checkpoint's directory.")
            found.setdefault(pinned.identity, pinned)
        except KlscaleError as error:
            problems[ref] = error
    named = {str(pinned): pinned for pinned in found.values()}
    files = {name: sources.of(pinned.ref).weight_files(pinned) for name, pinned in named.items()}
    odd = unusable(files)
    problems |= {named[name].ref: error for name, error in odd.items()}
    known, _ = store.weight_distances([named[name].identity for name in files if name not in odd])
    if not np.isnan(known).any():
        return problems
    weighed = squared_distances({name: files[name] for name in files if name not in odd}, progress=progress)
    identities = [named[name].identity for name in weighed.names]
    for t, name in enumerate(weighed.names):
        earlier = dict(zip(identities[:t], weighed.squared_distance[t, :t].tolist(), strict=True))
        store.write_weight_distances(named[name].ref, identities[t], weighed.n_parameters, earlier)
    return problems | {named[name].ref: error for name, error in weighed.problems.items()}


def weigh_one(new: Pinned, others: Sequence[Pinned], source: Source, store: Store) -> None:
    """Keep in the store the squared distances between the weights of one checkpoint and those of some others of its
    source; what is not here is fetched. Raises KlscaleError where one cannot be compared; the distances to the others
    are kept."""
    files = source.weight_files(new)
    there = {str(other): source.weight_files(other) for other in others}
    found, problem = dict[str, float](), None
    try:
        found = distances_to(files, there)
    except KlscaleError as error:
        problem = error
        for name in there:  # all but those that are wrong
            with contextlib.suppress(KlscaleError):
                found |= distances_to(files, {name: there[name]})
    known = {other.identity: found[str(other)] for other in others if str(other) in found}
    store.write_weight_distances(new.ref, new.identity, count_parameters(files), known)
    if problem is not None:
        raise problem


def windows(models: Iterable[Pinned], store: Store) -> list[tuple[Pinned, list[Pinned]]]:
    """Each checkpoint of the hub runs among these models, in the order of steps, with those that its weights are to be
    compared with: the first of its run and as many before it as a fit of an exponent takes, less those whose distances
    the store has."""
    runs: dict[str, dict[str, Pinned]] = {}
    for one in models:
        if one.is_fetched and one.has_trained_weights and _step(one.ref) is not None:
            runs.setdefault(one.ref.name, {}).setdefault(one.identity, one)
    found = []
    for run in runs.values():
        ordered = sorted(run.values(), key=lambda one: _order(one.ref))
        known, _ = store.weight_distances([one.identity for one in ordered])
        for t, one in enumerate(ordered):
            near = {0, *range(max(t - WINDOW, 0), t)} - {t}
            found.append((one, [ordered[u] for u in sorted(near) if np.isnan(known[t, u])]))
    return found
