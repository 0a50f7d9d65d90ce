"""The report in a real browser: nothing is asked of a network, nothing complains, and it says what the commands say."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import EXAMPLE
from klscale import reports
from klscale.divergence import format_estimate
from klscale.imports import read_log_likelihoods
from klscale.store import Store
from mixed_store import HOSTILE, STEPS, mixed_store

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = ("mixed", "fourteen", "demo")
PHONE = {"width": 360, "height": 740}
HINTS = ("willReadFrequently", "GPU stall due to ReadPixels")
"""What Chromium advises the authors of plotly, where it draws in three dimensions."""


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("needs a browser: there is no chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'klscale[dev]'")
    options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=executable, args=options)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def stores(tmp_path_factory, quick_demo):
    """The stores behind the pages: one of everything, 14 real models, and the demo's."""
    place = tmp_path_factory.mktemp("pages")
    mixed_store(place / "mixed" / "store")
    fourteen = Store(place / "fourteen" / "store")
    fourteen.import_vectors(read_log_likelihoods(EXAMPLE, id_column="text_id"), str(EXAMPLE))
    for name in ("mixed", "fourteen"):
        store = Store(place / name / "store")
        reports.write(reports.gather(reports.read(store, store.resolve_texts(None))), place / name / "report.html")
    return {"mixed": place / "mixed", "fourteen": place / "fourteen", "demo": quick_demo}


@pytest.fixture
def open_page(browser, stores):
    """Opens a report from disk, with no network; whatever it asks for or complains of fails the test."""
    contexts, complaints = [], []

    def told(message):
        if not any(hint in message for hint in HINTS):
            complaints.append(message)

    def opened(name, **options):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, **options}
        )
        context.set_offline(True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: told(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        file = (stores[name] / "report.html").as_uri()
        page.on(
            "request",
            lambda asked: (
                complaints.append(f"request: {asked.url[:200]}")
                if asked.url != file and not asked.url.startswith(("data:", "blob:"))
                else None
            ),
        )
        page.goto(file)
        page.wait_for_function("window.klscale !== undefined")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def compared(run, store, refs):
    """What `klscale compare --json` says of every pair."""
    record = json.loads(run("compare", "--store", store, *refs, "--json").stdout)
    return {(row["a"], row["b"]): row for row in record}


def point(page, plot, model):
    """Where a model's mark is on the screen."""
    return page.evaluate(
        """([plot, model]) => {
            const graph = document.getElementById(plot);
            graph.scrollIntoView({block: "center", behavior: "instant"});
            for (const trace of graph._fullData) {
                const at = (trace.customdata ?? []).findIndex((one) => (Array.isArray(one) ? one[0] : one) === model);
                if (at < 0 || trace.mode === "lines") continue;
                const {xaxis, yaxis, _size} = graph._fullLayout;
                const box = graph.getBoundingClientRect();
                return [box.x + _size.l + xaxis.d2p(trace.x[at]), box.y + _size.t + yaxis.d2p(trace.y[at])];
            }
        }""",
        [plot, model],
    )


# ------------------------------------------------------------------------------------------------- opening and looks


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_it_opens_and_draws_everything(open_page, name, look):
    """Without a complaint or a request, and no wider than the screen."""
    options = {"viewport": PHONE, "has_touch": True} if look == "phone" else {"color_scheme": look}
    page = open_page(name, **options)
    page.evaluate("klscale.drawAll()")
    page.wait_for_timeout(300)
    sections = page.evaluate("[...document.querySelectorAll('main section')].map((section) => section.id)")
    assert sections == page.evaluate("klscale.data.sections")
    for plot in page.query_selector_all(".plot"):
        if plot.is_visible():
            assert plot.get_attribute("role") == "img" or plot.query_selector("[role=img]")
            assert plot.query_selector(".main-svg, canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    for control in page.query_selector_all("main select, main input"):
        labelled = control.evaluate("(one) => one.labels.length > 0 || one.hasAttribute('aria-label')")
        assert labelled, control.get_attribute("id")


def test_dark_and_light_differ_and_can_be_chosen(open_page):
    page = open_page("fourteen", color_scheme="light")

    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    page.select_option("#theme", "dark")
    assert background() != light
    page.select_option("#theme", "auto")
    assert background() == light


# -------------------------------------------------------------------------------------------- the numbers of commands


def test_numbers_are_printed_as_python_prints_them(open_page):
    page = open_page("fourteen")
    generator = np.random.default_rng(0)
    value = np.concatenate([10 ** generator.uniform(-8, 4, 400), [0.0, 0.5, 2.5, 0.125, 1e-9, 12345.678]])
    error = np.concatenate([value[:300] * 10 ** generator.uniform(-4, 1, 300), np.full(106, 0.0095), ])  # fmt: skip
    error[-3:] = 0.0, 9.96e-12, 0.0996
    shown = page.evaluate("(rows) => rows.map(([v, e]) => klscale.formatEstimate(v, e))", np.c_[value, error].tolist())
    assert shown == [format_estimate(*row) for row in np.c_[value, error].tolist()]


@pytest.mark.parametrize("name", ["fourteen", "mixed"])
def test_every_pair_is_what_compare_says(open_page, stores, run, name):
    page = open_page(name)
    refs = page.evaluate("klscale.data.refs")
    rows = compared(run, stores[name] / "store", refs)
    assert len(rows) == len(refs) * (len(refs) - 1) // 2
    for (a, b), row in rows.items():
        shown = page.evaluate("([i, j]) => klscale.pair(i, j)", [refs.index(b), refs.index(a)])
        assert shown["kl"] == pytest.approx(row["kl"], rel=1e-6)
        assert shown["standard_error"] == pytest.approx(row["standard_error"], rel=1e-6)
        assert shown["interval"] == pytest.approx(row["interval"], rel=1e-5)
        assert shown["placed"] == row["placed"]
        assert len(shown["flags"]) == len(row["warnings"])


@pytest.mark.parametrize("name", PAGES)
def test_two_clicks_on_the_map_say_what_compare_says(open_page, stores, run, name):
    page = open_page(name)
    refs = page.evaluate("klscale.data.refs")
    store = stores[name] / "store"
    points = np.array(page.evaluate("klscale.data.map.tsne2.points"))
    farthest = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    for model in (0, farthest):
        page.mouse.click(*point(page, "map-plot", model))
    chosen = page.evaluate("klscale.selected()")
    assert len(chosen) == 2  # of marks that lie on each other, what was chosen is what is compared
    a, b = (refs[place] for place in chosen)
    ((_, row),) = compared(lambda *words: run(*words), store, [a, b]).items()
    panel = page.locator("#pair")
    assert float(panel.get_attribute("data-kl")) == pytest.approx(row["kl"], rel=1e-6)
    assert float(panel.get_attribute("data-standard-error")) == pytest.approx(row["standard_error"], rel=1e-6)
    assert f"{format_estimate(row['kl'], row['standard_error'])} bits/byte" in panel.inner_text()
    assert page.locator("#pair-place").inner_text() == (row["placed"] or "No scale is known for these texts.")
    low, high = row["interval"]
    assert f"{low:.3g} to {high:.3g} bits/byte" in panel.inner_text()
    page.keyboard.press("Escape")
    assert page.evaluate("klscale.selected()") == []


def test_hovering_a_model_shows_what_is_known_of_it(open_page):
    page = open_page("fourteen")
    names = page.evaluate("klscale.data.names")
    model = names.index("EleutherAI/pythia-410m")
    page.mouse.move(*point(page, "map-plot", model))
    page.wait_for_timeout(300)
    text = page.locator("body").inner_text()
    assert "EleutherAI/pythia-410m" in text
    assert "0.942 ± 0.026" in text  # its bits per byte, as in the README


def test_search_finds_and_chooses(open_page):
    page = open_page("fourteen")
    page.fill("#search", "mamba")
    found = sum("mamba" in name for name in page.evaluate("klscale.data.names"))
    assert str(found) in page.locator("#search-count").inner_text()
    page.keyboard.press("Enter")
    (chosen,) = page.evaluate("klscale.selected()")
    assert "mamba" in page.evaluate("klscale.data.names")[chosen]
    assert "Nearest" in page.locator("#pair").inner_text()


def test_colour_by_gives_each_family_the_colour_of_the_pictures(open_page):
    page = open_page("fourteen")
    page.select_option("#map-colour", "family")
    looks = page.evaluate("klscale.data.models.looks.family")
    legend = page.evaluate("document.getElementById('map-plot')._fullData.map((one) => [one.name, one.marker?.color])")
    shown = {name: {*np.atleast_1d(colour)} for name, colour in legend if name in looks}
    assert shown == {name: {look["colour"]} for name, look in looks.items()}
    page.select_option("#map-colour", "bits_per_byte")
    legend = page.evaluate("document.getElementById('map-plot')._fullData.map((one) => one.name)")
    assert not {*legend} & {*looks}


def test_three_dimensions_or_a_word_why_not(open_page):
    page = open_page("fourteen")
    page.select_option("#map-dimensions", "3")
    page.wait_for_timeout(500)
    kinds = page.evaluate("document.getElementById('map-plot')._fullData.map((one) => one.type)")
    said = page.locator("#map-message")
    assert "scatter3d" in kinds or (said.is_visible() and said.inner_text())


def test_the_slider_moves_through_the_checkpoints(open_page, stores, run):
    page = open_page("mixed")
    record = json.loads(run("trajectory", "--store", stores["mixed"] / "store", "--json").stdout)
    (one,) = (row for row in record["runs"] if row["run"] == "runs/seed2")
    page.select_option("#trajectory-run", label="runs/seed2")
    slider = page.locator("#step")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    checkpoint = one["checkpoints"][5]
    shown = page.locator("#step-numbers").inner_text()
    assert f"{STEPS[5]}" in shown
    for kl in ("kl_from_first", "kl_from_previous", "kl_from_last", "bits_per_byte"):
        assert format_estimate(checkpoint[kl]["value"], checkpoint[kl]["standard_error"]) in shown


# ----------------------------------------------------------------------------------------------- tables and downloads


def test_the_table_sorts_and_filters(open_page):
    page = open_page("fourteen")
    rows = page.locator("#models-table tbody tr")
    assert rows.count() == 14
    heading = page.locator("#models-table th", has_text="bits/byte")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") in ("ascending", "descending")
    if heading.get_attribute("aria-sort") == "descending":
        heading.locator("button").click()
    data = page.evaluate("klscale.data")
    (levels,) = (column["values"] for column in data["models"]["columns"] if column["key"] == "bits_per_byte")
    best = data["names"][int(np.argmin(levels))].removeprefix(data["prefix"])
    assert best in rows.nth(0).inner_text()
    page.fill("#models-filter", "rwkv")
    assert rows.count() == sum("rwkv" in name.lower() for name in data["names"])


def downloaded(page, name):
    with page.expect_download() as download:
        page.locator(f"[data-download='{name}']").first.click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def test_all_pairs_can_be_downloaded(open_page, stores):
    page = open_page("mixed")
    rows = downloaded(page, "pairs")
    store = Store(stores["mixed"] / "store")
    matrix = store.vectors(store.resolve_texts(None)).kl()
    assert len(rows) == len(matrix.labels) * (len(matrix.labels) - 1) // 2
    for row, (_, _, kl) in zip(rows, matrix.pairs(), strict=True):
        assert float(row["kl"]) == pytest.approx(kl.value, rel=1e-6)
        assert float(row["standard_error"]) == pytest.approx(kl.standard_error, rel=1e-6)
    assert any(HOSTILE in row["a"] or HOSTILE in row["b"] for row in rows)


def test_every_table_can_be_downloaded(open_page):
    page = open_page("mixed")
    names = set(page.evaluate("[...document.querySelectorAll('[data-download]')].map((one) => one.dataset.download)"))
    assert len(names) >= 8
    for name in names:
        assert downloaded(page, name), name


# --------------------------------------------------------------------------------------------------- hostile names


def test_a_name_that_is_markup_is_shown_as_text(open_page):
    """Everywhere it appears: table, search, panel, legend, hover. The page's policy would stop it too."""
    page = open_page("mixed")
    page.evaluate("klscale.drawAll()")
    model = page.evaluate("klscale.data.names").index(HOSTILE)
    assert page.locator("#models-table", has_text=HOSTILE).count() == 1
    page.fill("#search", "onerror")
    assert HOSTILE in page.locator("#search-results").inner_text()
    page.evaluate("(model) => { klscale.select(model); klscale.select(0); }", model)
    assert HOSTILE in page.locator("#pair").inner_text()
    page.select_option("#map-colour", "family")
    assert page.locator("#map-plot .legend", has_text=HOSTILE).count() == 1
    page.mouse.move(*point(page, "map-plot", model))
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("[...document.querySelectorAll('main i, main b')].length") == 0
