"""Makes the study behind docs/validity.md: what `klscale demo` left in DIR is measured (an hour on two cores; what was
finished is kept in DIR), and tables and pictures are written beside this file. `--shared` names a directory with
models/stories260K and texts/public-domain-short-3k.jsonl; without it that part is left out."""

from __future__ import annotations

import argparse
from pathlib import Path

from study.calibration import calibration_picture, calibration_study

from klscale import pictures

DOCS = Path(__file__).resolve().parent


def main(demo: Path, shared: Path | None = None, directory: Path = DOCS) -> list[Path]:
    table = calibration_study(demo, shared)
    files = directory / "study" / "calibration.csv", directory / "pictures" / "calibration.png"
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(files[0], index=False, float_format="%.6g")
    pictures.save(calibration_picture(table), files[1])
    return [*files]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, required=True, metavar="DIR", help="What `klscale demo` left.")
    parser.add_argument("--shared", type=Path, metavar="DIR", help="Holds models/stories260K and texts.")
    arguments = parser.parse_args()
    for path in main(arguments.demo, arguments.shared):
        print(path)
