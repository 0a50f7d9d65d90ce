"""Makes the pictures of README and docs: those of the example in this repository and, with `--demo DIR`, those of what
`klscale demo` left in DIR, from the directory that it was started in. `make pictures` does both. The report is
photographed where there are chromium and playwright."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from klscale.science.diffusion import WINDOW
from klscale.show import pages, pictures, reports
from klscale.show.contents import read_contents
from klscale.store.store import Store
from klscale.studies import maps, relatives, scales, trajectories
from klscale.vectors.imports import read_log_likelihoods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
CHOSEN = ("EleutherAI/pythia-1b", "EleutherAI/pythia-410m")
EXAMPLE = DOCS.parent / "examples" / "pile-trained-14.csv"


def main(directory: Path = DOCS / "pictures", demo: Path | None = None) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    figures = of_example() | (of_demo(demo) if demo else {})
    for name, figure in figures.items():
        pictures.save(figure, directory / name)
    browser = shutil.which("chromium") if find_spec("playwright") else None
    pages = [directory / "report.png"] if browser else []
    for file in pages:
        photograph(str(browser), file)
    return [*(directory / name for name in figures), *pages]


def photograph(browser: str, file: Path) -> None:
    """The first screen of the report of the example in a browser, with two models chosen."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as directory, sync_playwright() as running:
        store, page = Store(f"{directory}/store"), Path(directory) / "report.html"
        store.import_vectors(read_log_likelihoods(EXAMPLE, id_column="text_id"), EXAMPLE.name)
        pages.write(reports.gather(read_contents(store, store.resolve_texts(None))), page)
        launched = running.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        opened = launched.new_page(viewport={"width": 1180, "height": 1000}, device_scale_factor=2)
        opened.goto(page.as_uri())
        opened.evaluate(
            "(names) => names.forEach((name) => klscale.select(klscale.data.names.indexOf(name)))", [*CHOSEN]
        )
        opened.add_style_tag(content=".bar { display: none }")  # else it lies on the section
        opened.wait_for_timeout(500)
        opened.locator(".first").screenshot(path=file)
        launched.close()


def of_example() -> dict[str, Figure]:
    """Fourteen models trained on the Pile."""
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    return {
        "pile-trained-14.png": pictures.kl_heat_map(vectors),
        "map-pile-trained-14.png": pictures.model_map(maps.model_map(vectors), vectors),
        "scale-pile-trained-14.png": pictures.scale_ruler(scales.measure(vectors), vectors.texts),
    }


def of_demo(demo: Path) -> dict[str, Figure]:
    """The models that `klscale demo` trains, their checkpoints, layers and quantized variants."""
    store = Store(demo / "store")
    texts = store.resolve_texts(None)
    vectors, with_layers = store.vectors(texts), store.vectors(texts, layers=True)
    measured = scales.measure(with_layers)
    seed = scales.worth_of_a_seed(measured, texts)
    saved = Counter(ref.run for ref in vectors.models if ref.quantization is None)
    followed = [entry for entry in store.entries(texts.id) if saved[entry.ref.run] > WINDOW]
    runs = trajectories.analyse_runs(store, texts, followed, threshold=seed and seed[0])
    checkpoints = vectors.subset([ref for ref in vectors.models if ref.quantization is None])
    figures = {
        "map-pocket.png": pictures.model_map(maps.model_map(checkpoints), checkpoints, colour_by="seed"),
        "trajectory-pocket.png": pictures.training_trajectories(runs),
        "layers-pocket.png": pictures.layer_threads(with_layers),
    }
    if relatives.ladders(vectors):  # where bitsandbytes is installed
        figures["ladder-pocket.png"] = pictures.quantization_ladder(vectors, measured)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="What `klscale demo` left.")
    for path in main(demo=parser.parse_args().demo):
        print(path)
