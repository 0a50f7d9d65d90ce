"""klscale: how far apart are two language models, and is that a lot?

    texts = klscale.load_texts("texts.jsonl")
    store = klscale.Store("klscale-store")
    klscale.score(["EleutherAI/pythia-70m", "EleutherAI/pythia-160m"], texts, store)
    print(store.vectors(texts).kl()["EleutherAI/pythia-70m", "EleutherAI/pythia-160m"])

Names are loaded when they are first used: `import klscale` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

_EXPORTS = {
    "errors": ("InputError", "KlscaleError"),
    "inputs.references": ("Model", "ModelRef"),
    "inputs.suites": ("read_suite",),
    "inputs.texts": ("TextSet", "build_texts", "load_texts"),
    "progress": ("Progress",),
    "science.bootstrap": ("kl_bootstrap",),
    "science.estimates": ("Estimate",),
    "science.kl": ("KL", "KLMatrix", "bits_per_byte", "kl", "kl_difference", "kl_matrix"),
    "store.store": ("Store",),
    "studies.calibration": ("calibrate",),
    "studies.noise": ("noise_study",),
    "studies.precision": ("compare_to_precision",),
    "studies.scales": ("measure", "published"),
    "studies.tails": ("examine_pair", "examine_tails"),
    "studies.trajectories": ("analyse_runs", "find_runs", "over_seeds", "trajectory"),
    "studies.validity": ("compare_text_sets", "text_sensitivity"),
    "sweep.score": ("score",),
    "training.callbacks": ("TrainingWatch", "TrajectoryCallback"),
    "vectors.imports": ("read_log_likelihoods",),
    "vectors.vectors": ("Scores", "Vectors"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("klscale")
    if name not in _HOME:
        raise AttributeError(f"module 'klscale' has no attribute {name!r}")
    return getattr(import_module(f"klscale.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
