"""Makes the pictures of README and docs: those of the example in this repository and, with `--demo DIR`, those of what
`klscale demo` left in DIR, from the directory that it was started in. `make pictures` does both."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from klscale import maps, pictures, scales, trajectories
from klscale.diffusion import WINDOW
from klscale.imports import read_log_likelihoods
from klscale.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
EXAMPLE = DOCS.parent / "examples" / "pile-trained-14.csv"


def main(directory: Path = DOCS / "pictures", demo: Path | None = None) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    figures = of_example() | (of_demo(demo) if demo else {})
    for name, figure in figures.items():
        pictures.save(figure, directory / name)
    return [directory / name for name in figures]


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
    if scales.ladders(vectors):  # where bitsandbytes is installed
        figures["ladder-pocket.png"] = pictures.quantization_ladder(vectors, measured)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="What `klscale demo` left.")
    for path in main(demo=parser.parse_args().demo):
        print(path)
