"""The report in a real browser: nothing is asked of a network, nothing complains, and it says what the commands say."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import EXAMPLE
from klscale.inputs.texts import TextSet
from klscale.science.estimates import format_estimate, log_interval
from klscale.show import pages, reports
from klscale.show.contents import read_contents
from klscale.show.terminal import for_json
from klscale.store.store import Store
from klscale.studies import scales
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import CONVENTION, Vectors
from mixed_store import HOSTILE, STEPS, mixed_store

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGES = ("mixed", "fourteen", "demo")
PHONE = {"width": 360, "height": 740}
ODD = ("=1+1, \"quoted\" & 'it' &lt;b&gt; $x^2$", "\nnext\u202eeman", "-dash")
"""Names that a spreadsheet, a shell, plotly.js or a reader would take for something else."""
HINTS = ("willReadFrequently", "GPU stall due to ReadPixels")
"""What Chromium advises the authors of plotly, where it draws in three dimensions."""
BURST = 10
"""Files that a page may save in one second; Chromium drops the next one without a word."""


pytestmark = pytest.mark.slow


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
        pages.write(reports.gather(read_contents(store, store.resolve_texts(None))), place / name / "report.html")
    store = mixed_store(place / "odd" / "store", STEPS[:2])
    pages.write(odd(read_contents(store, store.resolve_texts(None))), place / "odd" / "report.html")
    return {"mixed": place / "mixed", "fourteen": place / "fourteen", "demo": quick_demo, "odd": place / "odd"}


def odd(contents):
    """What few stores hold: hostile names, a model that was placed on the map later, a KL of 0, one that is not known
    and one whose interval is too wide for a number."""
    names = contents.vectors.names
    contents.labels.update(zip((names[-4], names[-2], names[-1]), ODD, strict=True))
    data = json.loads(json.dumps(for_json(reports.gather(contents))))
    K = len(names)
    data["title"] += " " + ODD[0]
    data["command"] = "klscale compare --store 'it'\"'\"'s' --texts 0123456789ab --"
    for n, name in zip((K - 4, K - 2, K - 1), ODD, strict=True):
        data["refs"][n], data["words"][n] = name, reports._word(name)
    data["map"]["added"] = [0, K - 1]
    data["map"]["off_map"] = {str(K - 1): "Far off."}
    pairs = data["pairs"]
    value, error = (
        np.frombuffer(base64.b64decode(pairs[key]["float32"]), "<f4").copy() for key in ("value", "standard_error")
    )
    value[0], value[1], (value[2], error[2]) = 0, np.nan, (1e-6, 1)
    for key, column in (("value", value), ("standard_error", error)):
        pairs[key] = {"float32": base64.b64encode(column.tobytes()).decode()}
    return data


def settle(page):
    """Until events that are due, such as those of scrolling, have been dealt with."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


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


def hover(page, plot, model):
    """Point at a model's mark until its card shows: a plot that is drawn anew meanwhile moves its marks.

    Each time from outside: scrolling hides the card, and plotly.js does not tell twice of a mark that the pointer has
    not left."""
    for _ in range(100):
        page.mouse.move(0, 0)
        x, y = point(page, plot, model)
        settle(page)
        page.mouse.move(x, y)
        page.wait_for_timeout(100)
        if page.locator("#hovercard").is_visible():
            return
    raise AssertionError(f"No card shows over {model}.")


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
    page.evaluate("klscale.showAll()")
    page.wait_for_function(
        """[...document.querySelectorAll(".plot")].filter((plot) => plot.checkVisibility())
            .every((plot) => plot.querySelector(".main-svg, canvas"))"""
    )
    settle(page)
    sections = page.evaluate("[...document.querySelectorAll('main section')].map((section) => section.id)")
    assert {*sections} == {*page.evaluate("klscale.data.sections")}
    for plot in page.query_selector_all(".plot"):
        if plot.is_visible():
            assert plot.get_attribute("role") == "img" or plot.query_selector("[role=img]")
            assert plot.query_selector(".main-svg, canvas")
    for figure in page.query_selector_all(".drawing"):
        assert figure.get_attribute("aria-label")
        assert figure.query_selector("svg path, p") or not figure.is_visible()
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
        assert shown["interval"] == pytest.approx([row["interval_low"], row["interval_high"]], rel=1e-5)
        assert shown["placed"] == row["placed"]
        assert {kind(flag) for flag in shown["flags"]} == {kind(told) for told in row["warnings"]}


def kind(sentence):
    """Which caution a sentence is, with figures or without."""
    starts = (
        "out of",
        "not clipped",
        "heavy tails",
        "different dtypes",
        "rounding noise",
        "below run-to-run noise",
    )
    return next((start for start in starts if sentence.startswith(start)), "texts" if "texts" in sentence else sentence)


def test_rounding_noise_is_said_of_its_pairs_and_on_the_scale(open_page):
    page = open_page("mixed")
    refs = page.evaluate("klscale.data.refs")
    base = f"runs/seed1@step{STEPS[-1]}"
    for kind, words in (("int8", "below run-to-run noise"), ("nf4", "rounding noise is more than 10 %"), ("fp4", "")):
        flags = page.evaluate("([i, j]) => klscale.pair(i, j)", [refs.index(base), refs.index(f"{base}+{kind}")])[
            "flags"
        ]
        assert [flag for flag in flags if "nois" in flag] == [
            flag for flag in flags if words and flag.startswith(words)
        ]
        assert any("nois" in flag for flag in flags) == bool(words)
    assert "Run-to-run noise, KL between two runs of one model: median" in page.locator("#scale").text_content()
    assert "Run-to-run noise" not in open_page("fourteen").locator("#scale").text_content()


@pytest.mark.parametrize("name", PAGES)
def test_two_clicks_on_the_map_say_what_compare_says(open_page, stores, run, name):
    page = open_page(name)
    refs = page.evaluate("klscale.data.refs")
    store = stores[name] / "store"
    points = np.array(page.evaluate("klscale.data.map[klscale.data.map.method === 'pca' ? 'pca' : 'tsne2']"))[:, :2]
    farthest = int(((points - points[0]) ** 2).sum(axis=1).argmax())
    for n, model in enumerate((0, farthest), start=1):
        page.mouse.click(*point(page, "map-plot", model))
        page.wait_for_function("(n) => klscale.selected().length === n", arg=n)
    chosen = page.evaluate("klscale.selected()")
    assert len(chosen) == 2  # of marks that lie on each other, what was chosen is what is compared
    a, b = (refs[place] for place in chosen)
    ((_, row),) = compared(lambda *words: run(*words), store, [a, b]).items()
    panel = page.locator("#pair")
    assert float(panel.get_attribute("data-kl")) == pytest.approx(row["kl"], rel=1e-6)
    assert float(panel.get_attribute("data-standard-error")) == pytest.approx(row["standard_error"], rel=1e-6)
    assert f"{format_estimate(row['kl'], row['standard_error'])} bits/byte" in panel.inner_text()
    assert page.locator("#pair-place").inner_text() == (row["placed"] or "No scale is known for these texts.")
    panel.locator("summary").click()
    low, high = row["interval_low"], row["interval_high"]
    assert f"{low:.3g} to {high:.3g} bits/byte" in panel.inner_text()
    for place, letter in zip(chosen, "AB", strict=True):
        best = Store(store).vectors(Store(store).resolve_texts(None)).bits_per_byte(refs[place])
        text = f"{format_estimate(best.value, best.standard_error)} bits/byte"
        assert panel.locator("dl > dt", has_text=re.compile(f"^{letter} predicts")).locator("+ dd").inner_text() == text
    page.get_by_role("button", name="Swap A and B").click()
    assert page.evaluate("klscale.selected()") == chosen[::-1]
    page.keyboard.press("Escape")
    assert page.evaluate("klscale.selected()") == []


def test_a_click_is_not_lost_while_the_map_is_drawn(open_page):
    """Nor does it go to what lay under the pointer before, however fast clicks follow each other."""
    page = open_page("mixed")
    names = page.evaluate("klscale.data.names")
    far = names.index(HOSTILE)
    here, there = (point(page, "map-plot", model) for model in (0, far))
    for _ in range(4):
        page.mouse.click(*here)
        first = page.evaluate("klscale.selected()")
        page.mouse.click(*there)
        assert page.evaluate("klscale.selected()") == [*first, far]
        page.keyboard.press("Escape")
    page.mouse.move(*there)
    page.mouse.down()
    page.evaluate("klscale.select(0)")  # draws the map again
    page.mouse.up()
    assert page.evaluate("klscale.selected()") == [0, far]


def test_hovering_a_model_shows_what_is_known_of_it(open_page):
    page = open_page("fourteen")
    names = page.evaluate("klscale.data.names")
    model = names.index("EleutherAI/pythia-410m")
    place = point(page, "map-plot", model)
    settle(page)  # scrolling takes the card away
    page.mouse.move(*place)
    card = page.locator("#hovercard")
    card.wait_for()
    text = card.inner_text()
    assert "EleutherAI/pythia-410m" in text
    assert "0.942 ± 0.026" in text  # its bits per byte, as in the README
    labels = page.evaluate("document.getElementById('map-plot')._fullData.flatMap((one) => [...(one.text || [])])")
    assert labels == [*page.evaluate("klscale.data.labels"), "A", "B"]
    page.select_option("#map-method", "pca")
    share = page.evaluate("klscale.data.map.share")
    axes = page.evaluate("['xaxis', 'yaxis'].map((a) => document.getElementById('map-plot')._fullLayout[a].title.text)")
    assert [
        f"({part:.0%} of variance)".replace("%", " %") in title for part, title in zip(share, axes, strict=False)
    ] == [True, True]


def test_search_finds_and_chooses(open_page):
    page = open_page("fourteen")
    page.fill("#search", "mamba")
    found = sum("mamba" in name for name in page.evaluate("klscale.data.names"))
    assert str(found) in page.locator("#search-count").inner_text()
    names = page.evaluate("klscale.data.names")
    page.wait_for_function(
        """(found) => "" + document.getElementById("map-plot")._fullData.filter((one) => one.customdata)
            .flatMap((one) => one.customdata.filter((i, n) => one.marker.opacity[n] > 0.5))
            .sort((a, b) => a - b) === "" + found""",
        arg=[n for n, name in enumerate(names) if "mamba" in name],
    )
    page.keyboard.press("Enter")
    (chosen,) = page.evaluate("klscale.selected()")
    assert "mamba" in names[chosen]
    assert "Nearest" in page.locator("#pair").inner_text()
    nearest = page.locator("#pair .link").first
    name = nearest.inner_text()
    nearest.click()
    assert [names[i] for i in page.evaluate("klscale.selected()")] == [names[chosen], name]


def test_colour_by_gives_each_family_the_colour_of_the_pictures(open_page):
    page = open_page("fourteen")
    page.select_option("#map-colour", "family")
    looks = page.evaluate("klscale.data.models.legends.family.looks")
    legend = page.evaluate("document.getElementById('map-plot')._fullData.map((one) => [one.name, one.marker?.color])")
    shown = {name: {*np.atleast_1d(colour)} for name, colour in legend if name in looks}
    assert shown == {name: {rgb(look["colour"])} for name, look in looks.items()}
    page.select_option("#map-colour", "bits_per_byte")
    legend = page.evaluate("document.getElementById('map-plot')._fullData.map((one) => one.name)")
    assert not {*legend} & {*looks}


def test_groups_that_the_legend_does_not_name_have_one_mark_of_their_own(open_page, stores, tmp_path, monkeypatch):
    """Of 60 families those with more than one model: their long names, alike at both ends, stay different."""
    rng = np.random.default_rng(1)
    names = [f"m{n}" for n in range(63)]
    family = [f"a-family-with-a-rather-long-name-{n // 2 if n < 6 else n}-of-the-first-version" for n in range(63)]
    texts = TextSet.from_texts("made", [f"{n:0100d}" for n in range(40)])
    known = {name: {"family": of, "convention": CONVENTION} for name, of in zip(names, family, strict=True)}
    store = Store(tmp_path / "store")
    store.import_vectors(Vectors.from_arrays(rng.normal(-100, 9, (63, 40)), names, texts, known), "made")
    pages.write(reports.gather(read_contents(store, store.resolve_texts(None))), tmp_path / "report.html")
    monkeypatch.setitem(stores, "families", tmp_path)
    page = open_page("families")
    page.select_option("#map-colour", "family")
    seen = "[one.name, one.customdata.length, one.marker.color, one.marker.symbol[0]]"
    found = "document.getElementById('map-plot')._fullData.filter((one) => one.customdata)"
    traces = page.evaluate(f"{found}.map((one) => {seen})")
    called = [name for name, *_ in traces]
    assert [n for _, n, *_ in traces] == [2, 2, 2, 57]
    assert called[-1] == "one model each: 57"
    assert len({*called}) == 4
    assert all(len(name) <= 40 for name in called)
    assert len({(str(colour), symbol) for _, _, colour, symbol in traces}) == 4


def rgb(colour):
    return "rgb({}, {}, {})".format(*(int(colour[n : n + 2], 16) for n in (1, 3, 5)))


def test_three_dimensions_or_a_word_why_not(open_page):
    page = open_page("fourteen")
    page.select_option("#map-dimensions", "3")
    page.wait_for_function(
        """() => {
            const said = document.getElementById("map-message");
            return document.getElementById("map-plot")._fullData.some((one) => one.type === "scatter3d")
                || (said.checkVisibility() && said.innerText);
        }"""
    )


def test_the_slider_moves_through_the_checkpoints(open_page, stores, run):
    page = open_page("mixed")
    record = json.loads(run("trajectory", "--store", stores["mixed"] / "store", "--json").stdout)
    (one,) = (row for row in record["runs"] if row["run"] == "runs/seed2")
    page.locator("#trajectories > details > summary").click()
    page.select_option("#trajectory-run", label="runs/seed2")
    slider = page.locator("#step")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    checkpoint = one["checkpoints"][5]
    shown = page.locator("#step-numbers").inner_text()
    assert f"{STEPS[5]}" in shown
    for key in ("kl_from_first", "kl_from_previous", "kl_from_last", "bits_per_byte"):
        found = checkpoint[key]
        assert format_estimate(found.get("kl", found.get("value")), found["standard_error"]) in shown
    marks = page.evaluate("[...document.querySelectorAll('#run-1 .checkpoint line')].map((one) => one.outerHTML)")
    run_of_page = page.evaluate("klscale.data.runs[1]")
    assert len(marks) == sum(panel[5] is not None for panel in run_of_page["marks"]) > 3
    page.keyboard.press("ArrowRight")
    moved = page.evaluate("[...document.querySelectorAll('#run-1 .checkpoint line')].map((one) => one.outerHTML)")
    assert all(one not in marks for one in moved)
    assert page.locator("#run-0").is_hidden()


# ----------------------------------------------------------------------------------------------- tables and downloads


def test_the_table_sorts_and_filters(open_page):
    page = open_page("fourteen")
    page.locator("#models > details > summary").click()
    rows = page.locator("#models-table tbody tr:not([hidden])")
    assert rows.count() == 14
    heading = page.locator("#models-table th", has_text="bits/byte")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") in ("ascending", "descending")
    if heading.get_attribute("aria-sort") == "descending":
        heading.locator("button").click()
    data = page.evaluate("klscale.data")
    (levels,) = (column["values"] for column in data["models"]["columns"] if column["key"] == "bits_per_byte")
    best = data["brief"][int(np.argmin(levels))]
    assert best in rows.nth(0).inner_text()
    page.fill("#models-filter", "rwkv")
    assert rows.count() == sum("rwkv" in name.lower() for name in data["names"])


def downloaded(page, name):
    with page.expect_download() as download:
        page.locator(f"[data-download='{name}']").first.dispatch_event("click")
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
        assert [float(row["interval_low"]), float(row["interval_high"])] == pytest.approx(list(kl.interval), rel=1e-5)
    assert {row["a"] for row in rows} | {row["b"] for row in rows} == {*matrix.labels}
    page.evaluate("klscale.showAll()")
    cells, across, down = page.evaluate(
        """(({_fullData, _fullLayout}) => [_fullData[0].z.map((row) => [...row]), _fullLayout.xaxis.ticktext,
            _fullLayout.yaxis.ticktext])(document.getElementById("heat-plot"))"""
    )
    order, names = page.evaluate("[klscale.data.pairs.order, klscale.data.names]")
    with np.errstate(divide="ignore"):
        expected = np.log10(matrix.value[np.ix_(order, order)])
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(np.array(cells, dtype=float), expected, atol=1e-5)
    assert across == down == [names[model].replace("<", "&lt;").replace(">", "&gt;") for model in order]


def test_every_table_can_be_downloaded(open_page, stores):
    page = open_page("mixed")
    store = Store(stores["mixed"] / "store")
    vectors = store.vectors(store.resolve_texts(None))
    settings = downloaded(page, "scale")
    known = [beside.median if (beside := scales.published_beside(row["setting"])) else None for row in settings]
    assert [float(row["published_median"] or "nan") for row in settings] == pytest.approx(
        [np.nan if value is None else value for value in known], nan_ok=True
    )
    page.evaluate("klscale.showAll()")
    rows = page.locator("#quantization table tbody tr")
    variants = downloaded(page, "quantization")
    assert rows.count() == len(variants) == 3
    for n, row in enumerate(variants):
        worse = vectors.bits_per_byte(row["variant"], row["base"])
        assert float(row["bits_per_byte_difference"]) == worse.value
        assert format_estimate(worse.value, worse.standard_error, sign=True) in rows.nth(n).inner_text()
    names = page.evaluate("[...document.querySelectorAll('[data-download]')].map((one) => one.dataset.download)")
    assert {*names} == {"pairs", *page.evaluate("Object.keys(klscale.data.files)")}
    for start in range(0, len(names), BURST):
        other = open_page("mixed")
        for name in names[start : start + BURST]:
            assert downloaded(other, name), name
    drawings = page.query_selector_all("[data-drawing]")
    assert len(drawings) <= BURST - 2
    page.select_option("#trajectory-run", "1")
    for drawing in drawings:
        with page.expect_download() as download:
            drawing.click()
        svg = Path(download.value.path()).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        assert "light-dark" not in svg
        if drawing.get_attribute("data-drawing") == "trajectories":
            assert 'id="run-1-' in svg  # of the run that is shown


# -------------------------------------------------------------------------------------------------- the first screen


@pytest.mark.parametrize("name", PAGES)
def test_the_first_screen_answers_for_one_pair(open_page, stores, name):
    """The two best models, their KL where it lies on the scale, in 1280 x 900 pixels; all else is folded."""
    page = open_page(name)
    a, b = page.evaluate("klscale.data.chosen")
    assert page.evaluate("klscale.selected()") == [a, b]
    found = page.evaluate("([a, b]) => klscale.pair(a, b)", [a, b])
    assert not page.evaluate("[...document.querySelectorAll('section > details')].some((one) => one.open)")
    box = page.locator("#ruler svg").bounding_box()
    assert box["y"] + box["height"] < 900
    line = page.locator(".chosen-pair line").first
    ends = page.evaluate("klscale.data.ruler")
    along = (float(line.get_attribute("x1")) - ends["left"]) / (ends["right"] - ends["left"])
    assert 10 ** (ends["low"] + along * (ends["high"] - ends["low"])) == pytest.approx(found["on_scale"], rel=1e-6)
    shown = f": {format_estimate(found['kl'], found['standard_error'])}"
    if found["on_scale"] != found["kl"]:
        shown = f" by spans: {format_estimate(found['on_scale'], float('nan'))}"
    assert f"this pair{shown}" in page.locator("#ruler").text_content()
    page.evaluate("([a, b]) => klscale.select(a === 0 || b === 0 ? 1 : 0)", [a, b])
    assert page.locator(".chosen-pair").count() == 0


def test_a_pair_is_named_by_its_own_setting(open_page, stores):
    page = open_page("mixed")
    refs = page.evaluate("klscale.data.refs")
    store = Store(stores["mixed"] / "store")
    measured = {row.setting: row for row in scales.measure(store.vectors(store.resolve_texts(None), layers=True))}
    for setting, words in (("seed", "Two seeds of one recipe"), ("8-bit (int8)", "quantized variant, 8-bit (int8)")):
        ((a, b),) = measured[setting].pairs
        page.evaluate(
            "([a, b]) => { klscale.clear(); klscale.select(a); klscale.select(b); }", [refs.index(a), refs.index(b)]
        )
        assert words in page.locator("#pair-setting").inner_text()


def test_the_answer_says_which_is_better_whichever_is_a(open_page, stores):
    page, vectors = open_page("fourteen"), Store(stores["fourteen"] / "store")
    vectors = vectors.vectors(vectors.resolve_texts(None))
    best, other = page.evaluate("klscale.data.chosen")
    names = page.evaluate("klscale.data.refs")
    more = vectors.bits_per_byte(names[other], names[best])
    assert more.interval[0] > 0  # else neither is
    by = f"is better by {format_estimate(more.value, more.standard_error)} bits/byte."
    assert page.locator("#pair-better").inner_text() == f"A {by}"
    page.evaluate("([a, b]) => { klscale.clear(); klscale.select(b); klscale.select(a); }", [best, other])
    assert page.locator("#pair-better").inner_text() == f"B {by}"


def test_names_and_letters_on_the_map_leave_each_other_room(open_page):
    page = open_page("fourteen")
    boxes = page.evaluate(
        """[...document.querySelectorAll("#map-plot .textpoint")].map((one) => {
          const { left, top, right, bottom } = one.getBoundingClientRect();
          return [left, top, right, bottom];
        })"""
    )
    assert len(boxes) == 14 + 2
    for n, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:n]:
            wide, high = min(right, other[2]) - max(left, other[0]), min(bottom, other[3]) - max(top, other[1])
            assert wide <= 0 or high <= 6  # a line of text is higher than its letters


# --------------------------------------------------------------------------------------------------- hostile names


def test_a_name_that_is_markup_is_shown_as_text(open_page):
    """Everywhere it appears: table, search, panel, legend, hover. The page's policy would stop it too."""
    page = open_page("mixed")
    page.evaluate("klscale.showAll()")
    model = page.evaluate("klscale.data.names").index(HOSTILE)
    assert page.locator("#models-table td, #models-table th", has_text=HOSTILE).count() >= 1
    page.fill("#search", "onerror")
    assert HOSTILE in page.locator("#search-results").inner_text()
    page.evaluate("(model) => { klscale.select(model); klscale.select(0); }", model)
    assert HOSTILE in page.locator("#pair").inner_text()
    page.select_option("#map-colour", "family")
    assert page.locator("#map-plot .legend", has_text=HOSTILE).count() == 1
    hover(page, "map-plot", model)
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert page.evaluate("[...document.querySelectorAll('main i, main b')].length") == 0


def test_odd_names_are_shown_as_they_are_and_go_safely_into_files_and_commands(open_page):
    page = open_page("odd")
    page.evaluate("klscale.showAll()")
    K = page.evaluate("klscale.data.models.length")
    shown = "\\nnext\\u202eeman"
    assert page.locator("h1").inner_text().endswith(ODD[0])
    assert page.title().endswith(ODD[0])
    assert page.locator("#models-table", has_text=shown).count() == 1
    assert (
        ODD[0][-15:] in page.locator("#heat-plot .xaxislayer-above").first.text_content()
    )  # neither entities nor formulas
    assert {row["b"] for row in downloaded(page, "pairs")} >= {"'" + name for name in ODD}
    page.evaluate("(K) => { klscale.select(K - 4); klscale.select(K - 1); }", K)
    words = ["klscale", "compare", "--store", "it's", "--texts", "0123456789ab", "--", ODD[0], ODD[2]]
    assert shlex.split(page.locator("#pair .command code").text_content()) == words
    assert "Far off." in page.locator("#pair").text_content()
    pressed = page.evaluate(
        "[...document.querySelectorAll('#models-table [aria-pressed=true]')].map((b) => b.ariaLabel)"
    )
    assert pressed == [f"Choose {ODD[0]} as A", f"Choose {ODD[2]} as B"]


def test_what_few_stores_hold_is_said(open_page):
    """Models placed later, KL of 0, unknown KL, an interval without end."""
    page = open_page("odd")
    page.evaluate("klscale.showAll()")

    def traces(plot, fields):
        return page.evaluate(f"[...document.getElementById('{plot}')._fullData].map((one) => {fields})")

    (marks,) = (symbols for name, symbols in traces("map-plot", "[one.name, one.marker?.symbol]") if name == "mixed")
    assert not marks[0].endswith("-open")
    assert marks[-1].endswith("-open")
    rows = downloaded(page, "pairs")
    assert [row["kl"] for row in rows[:3]] == ["0", "", "0.000001"]
    assert [(row["interval_low"], row["interval_high"]) for row in rows[:2]] == [("0", "0"), ("", "")]
    assert page.evaluate("klscale.pair(0, 2).kl") is None
    low, high = log_interval(1e-6, 1.0, 1.96)  # as wide as Python makes it
    assert page.evaluate("klscale.pair(0, 3).interval") == pytest.approx([low, high], rel=1e-6)
    cells = traces("heat-plot", "one.z && one.z.map((row) => [...row])")[0]
    order = page.evaluate("klscale.data.pairs.order")
    first, second, third = (order.index(n) for n in (0, 1, 2))
    heat = np.array(cells, dtype=float)
    assert heat[first, second] == heat[second, first] == np.nanmin(heat)
    assert np.isnan(heat[first, third])
    assert np.isnan(heat).sum() == len(order) + 2
    assert "KL of 0" in page.locator("#heat-note").inner_text()


def test_the_search_finds_models_that_are_not_on_a_page_of_a_sample(open_page, stores, tmp_path, monkeypatch):
    monkeypatch.setattr("klscale.show.contents.MOST_MODELS", 13)
    monkeypatch.setattr("klscale.show.contents.SAMPLE", 6)
    store = Store(stores["fourteen"] / "store")
    contents = read_contents(store, store.resolve_texts(None))
    pages.write(reports.gather(contents), tmp_path / "report.html")
    monkeypatch.setitem(stores, "sample", tmp_path)
    page, others = open_page("sample"), contents.others
    here = sum("pythia" in name for name in contents.vectors.names)
    there = [n for n, name in enumerate(others.names) if "pythia" in name]
    page.fill("#search", "pythia")
    assert (
        page.inner_text("#search-count")
        == f"{here} {'match' if here == 1 else 'matches'}, {len(there)} elsewhere in the store"
    )
    shown = page.locator("#search-results li").all_inner_texts()
    assert len(shown) == here + len(there)
    for n, text in zip(there, shown[here:], strict=True):
        assert text.startswith(f"{others.names[n]} is not on this page")
        assert format_estimate(others.kl[n], others.standard_error[n]) in text
    nearest = contents.vectors.names[others.nearest[there[-1]]]
    page.locator("#search-results li button").last.click()
    assert nearest in page.inner_text("#pair")
