"""What this installation is and what is wrong with it: versions, packages, devices, caches, and the store."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from klscale.display import Displayed
from klscale.errors import KlscaleError, printable
from klscale.inputs.texts import PILE_BLOB_ID, cache_directory, git_blob_id
from klscale.limits import LIMITS
from klscale.store.store import Store
from klscale.studies.verbs.options import Options

FREE_BYTES = 1_000_000_000
"""Less free space than this is a problem."""
EXTRAS = ("quant", "lora", "llama-cpp", "ray", "s3", "sentencepiece", "serve", "vllm")
"""Optional parts of klscale."""
IMPORTED = {
    "torch": "torch", "transformers": "transformers", "bitsandbytes": "bitsandbytes", "torchao": "torchao",
    "gguf": "gguf", "peft": "peft", "llama-cpp-python": "llama_cpp",
    "vllm": "vllm",
}  # fmt: skip
"""Packages that may be installed and still not work -> what is imported."""
PATIENCE_S = 300
"""Importing them takes seconds; on a slow disk, a minute."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its `topic` (versions, packages, devices, cache, store or settings), `name` and
    `value`. Where something is wrong, `problem` says what and `remedy` the way out; else they are empty."""

    topic: str
    name: str
    value: str
    problem: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Checkup(Displayed):
    """All `findings`, in the order in which they were looked at."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The findings where something is wrong."""
        return tuple(one for one in self.findings if one.problem)

    def __str__(self) -> str:
        lines = [f"{one.topic}: {one.name} {one.value}" for one in self.findings]
        return "\n".join([*lines, *(f"Problem: {one.problem} {one.remedy}".rstrip() for one in self.problems)])


def doctor(store: Store | str | os.PathLike[str] | None = None, *, options: Options = Options()) -> Checkup:
    """What this installation is and what is wrong with it: versions, packages, devices, caches, every file of the
    store, and settings in the environment. Nothing is changed. Damaged things are findings, not errors.

        print(klscale.doctor("klscale-store"))
    """
    options = options.at(None, store)
    options.progress.begin("looking at packages and devices")
    return Checkup((*_versions(), *_packages_and_devices(), *_caches(), *_store(options), *_settings()))


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "klscale", metadata.version("klscale"))
    yield Finding("versions", "Python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("versions", "system", f"{platform.system()} {platform.release()}, {platform.machine()}")


# -------------------------------------------------------------------------------------------- packages and devices


def _requirements() -> Iterator[tuple[Any, str]]:
    """What klscale requires, and the extra that requires it; empty for what it always needs."""
    from packaging.requirements import Requirement

    seen = set()
    for text in metadata.requires("klscale") or ():
        wanted = Requirement(text)
        for extra in ("", *EXTRAS):
            if (wanted.marker is None or wanted.marker.evaluate({"extra": extra})) and wanted.name not in seen:
                seen.add(wanted.name)
                yield wanted, extra


def _packages_and_devices() -> Iterator[Finding]:
    installed: dict[str, str] = {}
    wanted = [*_requirements()]
    for requirement, _ in wanted:
        try:
            installed[requirement.name] = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue
    probed, failure = _probe([module for name, module in IMPORTED.items() if name in installed])
    for requirement, extra in wanted:
        name, version = requirement.name, installed.get(requirement.name)
        broken = probed["problems"].get(IMPORTED.get(name, ""), "")
        asked = f"'{name}{requirement.specifier}'"
        if version is None:
            problem = "" if extra else f"{name} is not installed."
            remedy = "" if extra else f"pip install {asked}"
            yield Finding("packages", name, f"not installed (extra {extra})" if extra else "missing", problem, remedy)
        elif not requirement.specifier.contains(version, prereleases=True):
            problem = f"{name} {version} is not {requirement.specifier}, which klscale needs."
            yield Finding("packages", name, version, problem, f"pip install {asked}")
        else:
            problem = (
                f"{name} {version} is installed but cannot be imported: {printable(broken)[:200]}" if broken else ""
            )
            yield Finding(
                "packages", name, version, problem, f"pip install --force-reinstall {asked}" if broken else ""
            )
    yield from _devices(probed, failure)


def _probe(modules: list[str]) -> tuple[dict[str, Any], str]:
    """What the process that imports them says, and why it says nothing."""
    nothing: dict[str, Any] = {"problems": {}, "devices": [], "threads": None, "cuda": None}
    command = [sys.executable, "-m", "klscale.studies.probe", *modules]
    named = ", ".join(modules)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, errors="replace")
    except subprocess.TimeoutExpired:
        return nothing, f"Importing {named} took more than {PATIENCE_S} seconds."
    try:
        return {**nothing, **json.loads(done.stdout.strip().splitlines()[-1])}, ""
    except (ValueError, IndexError):
        said = done.stderr.strip().splitlines()[-1:]
        return nothing, " ".join([f"The process that imports {named} ended without an answer.", *said])


def _devices(probed: dict[str, Any], failure: str) -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    threads = "" if probed["threads"] is None else f", torch uses {probed['threads']}"
    free = f"{_gigabytes(memory.available)} of {_gigabytes(memory.total)} free"
    yield Finding("devices", "cpu", f"{os.cpu_count()} cores{threads}; {free}")
    for name, what, size in probed["devices"]:
        yield Finding("devices", name, f"{what}{'' if size is None else f', {_gigabytes(size)}'}")
    if failure:
        yield Finding("devices", "torch", "unknown", failure, "Import them one by one: python -c 'import torch'")
    elif not any(name.startswith("cuda") for name, *_ in probed["devices"]) and Path("/dev/nvidia0").exists():
        build = "This is the build for the CPU." if probed["cuda"] is None else "Is the driver old, or the device busy?"
        yield Finding("devices", "cuda", "none", f"There is an NVIDIA GPU, which torch does not see. {build}",
                      "See https://pytorch.org/get-started/locally/ and nvidia-smi.")  # fmt: skip


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


# ------------------------------------------------------------------------------------------------- caches and store


def _place(topic: str, name: str, path: Path) -> Finding:
    """A directory: how much it holds, and whether it, or the one that it would be made in, can be written."""
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    size = sum(file.stat().st_size for file in _files(path))
    value = f"{path}: {size / 1e6:,.1f} MB" if path.is_dir() else f"{path}: not there yet"
    if not existing.is_dir():
        return Finding(topic, name, value, f"{existing} is in the way: it is no directory.", "Move it away.")
    if not os.access(existing, os.W_OK):
        return Finding(
            topic, name, value, f"{existing} cannot be written.", "Give yourself the right, or choose another."
        )
    free = shutil.disk_usage(existing).free
    problem = f"Only {free / 1e6:,.0f} MB are free at {existing}." if free < FREE_BYTES else ""
    return Finding(topic, name, f"{value}, {_gigabytes(free)} free", problem, "Make room." if problem else "")


def _files(path: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(path):
        yield from (file for name in names if (file := Path(directory) / name).is_file() and not file.is_symlink())


def _caches() -> Iterator[Finding]:
    from huggingface_hub import constants

    ours = cache_directory()
    yield _place("cache", "klscale", ours)
    pile = ours / "texts-10k-pile.jsonl"
    if pile.is_file():
        whole = git_blob_id(pile) == PILE_BLOB_ID
        yield Finding(
            "cache", "pile-10k", "whole" if whole else "damaged",
            "" if whole else f"{pile} is not the published file.",
            "" if whole else "Delete it; the next command that needs it fetches it again.",
        )  # fmt: skip
    yield _place("cache", "models of the hub", Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        yield Finding("cache", "HF_HUB_OFFLINE", "set: only models in the cache are found")


def _store(options: Options) -> Iterator[Finding]:
    try:
        store = options.opened()
        if "://" in store.location:
            yield Finding("store", "location", store.location)
        else:
            yield _place("store", "location", Path(store.location))
        heads = store.text_sets()
        models = sum(len(store.entries(head["id"])) for head in heads)
        yield Finding("store", "content", f"{len(heads):,} text sets, {models:,} vectors")
        options.progress.begin("checking files")
        found = [*store.check()]
        bad = [f"{path} {why}" for path, why in found if why]
        yield Finding(
            "store", "files", f"{len(found):,} checked, {len(bad):,} damaged",
            f"{len(bad):,} files are damaged, first {bad[0]}." if bad else "",
            "klscale check lists them; score those models again." if bad else "",
        )  # fmt: skip
    except KlscaleError as error:
        yield Finding(
            "store", "location", str(options.store), " ".join(filter(None, [error.what, error.why])), error.remedy
        )


def _settings() -> Iterator[Finding]:
    for name in ("KLSCALE_STORE", "KLSCALE_CACHE", "KLSCALE_PILE_URL", "HF_ENDPOINT", "OMP_NUM_THREADS"):
        if value := os.environ.get(name):
            yield Finding("settings", name, value)
    for limit in LIMITS:
        if value := os.environ.get(limit.variable):
            try:
                yield Finding("settings", limit.variable, f"{limit.value:,} {limit.unit}")
            except KlscaleError as error:
                yield Finding("settings", limit.variable, value, error.what, error.remedy)
