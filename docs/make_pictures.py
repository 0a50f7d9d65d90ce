"""Makes the pictures of the documentation from the example in this repository: `make pictures`."""

from __future__ import annotations

from pathlib import Path

from klscale.imports import read_log_likelihoods
from klscale.pictures import kl_heat_map, save, scale_ruler
from klscale.scales import measure

DOCS = Path(__file__).resolve().parent
EXAMPLE = DOCS.parent / "examples" / "pile-trained-14.csv"


def main(directory: Path = DOCS / "pictures") -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    figures = {
        "pile-trained-14.png": kl_heat_map(vectors),
        "scale-pile-trained-14.png": scale_ruler(measure(vectors), vectors.texts),
    }
    for name, figure in figures.items():
        save(figure, directory / name)
    return [directory / name for name in figures]


if __name__ == "__main__":
    for path in main():
        print(path)
