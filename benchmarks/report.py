"""The report of 1,018 models: seconds to write it, its size, and seconds until it can be used in a browser.

    python benchmarks/report.py            # --quick: tests only that it runs

Synthetic log-likelihoods of 20 families, as in maps.py. Usable: from the start of navigation in headless Chromium (file
on disk, cold cache) until the map is drawn and the page answers. Then a colour, a search and a pair are timed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from maps import PUBLISHED, QUICK, synthetic

from klscale.show import pages, reports
from klscale.show.contents import read_contents
from klscale.store.store import Store

T = TypeVar("T")
OPENED = 5
USABLE = "() => document.querySelector('#map-plot .main-svg') && window.klscale && performance.now()"
ACTIONS = {
    "colour by bits/byte": "const one = document.getElementById('map-colour'); one.value = 'bits_per_byte'; "
    "one.dispatchEvent(new Event('change'));",
    "a search": "const one = document.getElementById('search'); one.value = 'family-7'; "
    "one.dispatchEvent(new Event('input'));",
    "a pair chosen": "klscale.select(3); klscale.select(500);",
    "all figures drawn": "return klscale.showAll();",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    size = QUICK if parser.parse_args().quick else PUBLISHED
    with tempfile.TemporaryDirectory() as directory:
        store, page = Store(f"{directory}/store"), Path(directory) / "report.html"
        store.import_vectors(synthetic(*size), "synthetic")
        texts = store.resolve_texts(None)
        print("| what | |\n|---|---|")
        contents = timed("read: KL of all pairs, the scale, t-SNE in 2-D and 3-D", lambda: read_contents(store, texts))
        data = timed("gather the page's data", lambda: reports.gather(contents))
        timed("write the page", lambda: pages.write(data, page))
        print(f"| size of {size[0]:,} models | {page.stat().st_size / 1e6:.1f} MB |")
        browse(page)


def timed(what: str, run: Callable[[], T]) -> T:
    start = time.perf_counter()
    made = run()
    print(f"| {what} | {time.perf_counter() - start:.2f} s |", flush=True)
    return made


def browse(page: Path) -> None:
    """Medians and ranges of seconds over several rounds, each in its own browser."""
    from playwright.sync_api import sync_playwright

    usable, actions = [], {what: [] for what in ACTIONS}
    with sync_playwright() as running:
        for _ in range(OPENED):
            browser = running.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            opened = browser.new_page()
            opened.goto(page.as_uri(), wait_until="commit")
            usable.append(opened.wait_for_function(USABLE).json_value() / 1000)
            opened.wait_for_timeout(500)
            for what, script in ACTIONS.items():
                start = time.perf_counter()
                opened.evaluate(f"async () => {{ {script} }}")
                opened.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
                actions[what].append(time.perf_counter() - start)
            browser.close()
    for what, seconds in {"usable": usable, **actions}.items():
        print(f"| {what} | {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}) |")


if __name__ == "__main__":
    main()
