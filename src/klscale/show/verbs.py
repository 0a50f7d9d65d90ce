"""The verbs that write files: the report of a store, and the demo."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from klscale.inputs.suites import read_suite
from klscale.inputs.texts import TextSet, pocket_texts
from klscale.progress import SILENT, Progress
from klscale.science.diffusion import WINDOW
from klscale.show import pages, reports
from klscale.show.contents import read_contents
from klscale.show.files import PAGES, require_ending, save_json
from klscale.show.scale import save_scale, scale_record
from klscale.show.trajectories import save_trajectories
from klscale.store.store import Store
from klscale.studies import scales, trajectories
from klscale.studies.pocket import QUICK_TEXTS, train_pocket_suite
from klscale.studies.verbs.options import Options
from klscale.studies.verbs.scale import Scale
from klscale.studies.verbs.score import Scored, score
from klscale.studies.verbs.trajectory import Trajectories


@dataclass(frozen=True, eq=False)
class Report:
    """The page that was written: its `file`, its size in bytes, and the `data` that it shows, with the findings in
    words under `summary`."""

    file: Path
    size: int
    data: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join([f"{row['section']}: {row['text']}" for row in self.data["summary"]] + [str(self.file)])


def report(
    file: str | os.PathLike[str] = "report.html",
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    options: Options = Options(),
) -> Report:
    """Everything that a store holds on a text set as one HTML page, written to `file`: it opens without a network, and
    can be sent. Nothing is scored.

    Raises InputError for a name that does not end in .html, and a store with fewer than two models on the texts;
    StorageError where the file cannot be written.

        print(klscale.report("report.html", store="klscale-store"))
    """
    path, options = Path(file), options.at(texts, store)
    require_ending(path, PAGES)
    place = options.opened()
    data = reports.gather(read_contents(place, options.stored(place), progress=options.progress))
    return Report(path, pages.write(data, path), data)


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo made in `directory`: models, a store, `report.html`, `scale.json`, `scale.png` and, where runs
    are long enough, `trajectory.png`; with the `scale` and the `trajectories` that these show."""

    directory: Path
    scored: Scored
    scale: Scale
    trajectories: Trajectories

    @property
    def page(self) -> Path:
        """The report."""
        return self.directory / "report.html"

    def __str__(self) -> str:
        return f"{self.scale}\n{self.page}"


def demo(
    directory: str | os.PathLike[str] = "klscale-demo", *, quick: bool = False, progress: Progress = SILENT
) -> Demo:
    """Train a small suite of models on this machine's own text, score it, measure its scale, and write the report. All
    of it goes into `directory`. Nothing is downloaded; what is there is not done again. `quick`: shorter runs,
    fewer checkpoints, 200 texts.

    Raises InputError for a directory that cannot be written.

        print(klscale.demo("klscale-demo", quick=True))
    """
    place = Path(directory)
    suite = read_suite(train_pocket_suite(place / "models", quick=quick, progress=progress))
    models = [model for model in suite.models if model.ref.quantization is None or find_spec("bitsandbytes")]
    if len(models) < len(suite.models):
        progress.note("Without quantized variants, which need: pip install 'klscale[quant]'.")
    texts = pocket_texts(QUICK_TEXTS) if quick else suite.texts
    scored = score(models, options=Options(texts=texts, store=place / "store", progress=progress))
    measured = Scale.of(scored.vectors(layers=True))
    seed = scales.worth_of_a_seed(measured.settings, scored.texts)
    entries = [outcome.entry for outcome in scored.outcomes if outcome.entry is not None]
    saved = Counter(entry.ref.run for entry in entries if entry.ref.quantization is None)
    followed = [entry for entry in entries if saved[entry.ref.run] > WINDOW]  # else no exponent can be fitted
    runs = trajectories.analyse_runs(
        scored.store, scored.texts, followed, threshold=seed and seed[0], progress=progress
    )  # fmt: skip
    seeds, source = trajectories.over_seeds(runs), "" if seed is None else seed[1]
    moved = Trajectories(scored.texts, tuple(runs), tuple(seeds), (), source, scored.outcomes)
    made = Demo(place, scored, measured, moved)
    report(made.page, scored.texts, scored.store, options=Options(progress=progress))
    save_json(place / "scale.json", scale_record(measured.vectors, measured.settings))
    save_scale(measured.vectors, measured.settings, place / "scale.png")
    if runs:
        save_trajectories(runs, place / "trajectory.png")
    return made
