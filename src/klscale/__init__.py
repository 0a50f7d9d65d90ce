"""klscale: how far apart are two language models, and is that a lot?

    compared = klscale.compare(["EleutherAI/pythia-70m", "EleutherAI/pythia-160m"], "texts.jsonl", "klscale-store")
    print(compared)
    print(klscale.scale(store="klscale-store"))

The verbs are those of the command line: `score`, `compare`, `changes`, `drift`, `layers`, `sensitivity`, `card`,
`trajectory`, `scale`, `validate`, `map`, `place`, `predict`, `report`, `demo`. Names are loaded when they are
first used: `import klscale` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "errors": ("InputError", "KlscaleError", "ScoringError"),
    "inputs.references": ("Model", "ModelRef"),
    "inputs.suites": ("read_suite",),
    "inputs.texts": ("TextSet", "build_texts", "load_texts"),
    "progress": ("Progress",),
    "science.estimates": ("Estimate",),
    "science.kl": ("KL", "KLMatrix", "bits_per_byte", "kl", "kl_difference", "kl_matrix"),
    "show.card_checks": ("CardCheck", "check_card"),
    "show.cards": ("Card", "card"),
    "show.verbs": ("Demo", "Report", "demo", "report"),
    "store.store": ("Store",),
    "studies.calibration": ("calibrate",),
    "studies.noise": ("noise_study",),
    "studies.precision": ("compare_to_precision",),
    "studies.scales": ("measure", "published"),
    "studies.sensitivity": ("Sensitivity",),
    "studies.series": ("Series",),
    "studies.tails": ("examine_pair", "examine_tails"),
    "studies.trajectories": ("analyse_run", "analyse_runs", "find_runs", "over_seeds"),
    "studies.text_set_agreement": ("compare_text_sets",),
    "studies.validity": ("text_sensitivity",),
    "studies.changes": ("Changes",),
    "studies.verbs.changes": ("ModelChanges", "changes"),
    "studies.verbs.compare": ("Comparison", "compare"),
    "studies.verbs.doctor": ("Checkup", "doctor"),
    "studies.verbs.drift": ("ModelDrift", "ServerAlarm", "drift", "drift_alarm"),
    "studies.verbs.draw": ("DrawnTexts", "draw_texts"),
    "studies.verbs.kld": ("StoredKL", "kld"),
    "studies.verbs.layers": ("Layers", "layers"),
    "studies.verbs.map": ("StoreMap",),
    "studies.verbs.options": ("Options",),
    "studies.predicting": ("Prediction", "predict_scores"),
    "studies.verbs.place": ("Placed", "place"),
    "studies.verbs.pmi": ("PMIComparison", "PMIMap", "pmi", "pmi_map"),
    "studies.verbs.predict": ("Predicted", "predict"),
    "studies.verbs.scale": ("Scale", "scale"),
    "studies.verbs.score": ("Scored", "score"),
    "studies.verbs.sensitivity": ("PartCosts", "sensitivity"),
    "studies.verbs.trajectory": ("Trajectories", "trajectory"),
    "studies.verbs.trajectory_by": ("AttributeTrajectories", "trajectory_by"),
    "studies.verbs.validate": ("Validation", "validate"),
    "training.callbacks": ("TrainingWatch", "TrajectoryCallback"),
    "vectors.imports": ("read_log_likelihoods",),
    "vectors.scores": ("Scores",),
    "vectors.vectors": ("Vectors",),
}
_HOME = {name: (module, name) for module, names in _EXPORTS.items() for name in names}
_HOME["map"] = ("studies.verbs.map", "map_models")  # a builtin of that name is needed inside the package

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # not all commands need it, and it takes a while

        return version("klscale")
    if name not in _HOME:
        raise AttributeError(f"module 'klscale' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(f"klscale.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
