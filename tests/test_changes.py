"""What changed most, against log-likelihoods of plain loops; and a page of texts that stays text."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import klscale
from conftest import plain_log_likelihoods
from klscale.inputs.references import ModelRef
from klscale.sources.mock import Chain, Parameters
from mocks import plain_mock

BASE, VARIANT, PAIRS = "mock://1", "mock://1?shift=0.3", "mock://2?tokens=pairs"
HOSTILE = '<script>alert(1)</script> & "quotes" \x1b[31m red \u202e turned [bold]x[/bold] $x^2$ |a|b| and so on and on'


@pytest.fixture
def texts(tmp_path):
    generator = np.random.default_rng(5)
    words = ["tree", "grün", "日本", "house", "and", "the", "of\n", "π", "runs", "quite", "often"]
    made = [" ".join(generator.choice(words, size=generator.integers(10, 60))) for _ in range(40)]
    rows = [{"text": text, "domain": "prose" if n % 3 else "<b>code</b>"} for n, text in enumerate([*made, HOSTILE])]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return klscale.load_texts(tmp_path / "t.jsonl")


def loop(ref, data, start, stop):
    """Log-likelihood in nats of the bytes from `start` to `stop`, each given the one before."""
    log_p = Chain.of(Parameters.of(ModelRef.parse(ref))).log_p
    return sum(log_p[256 if n == 0 else data[n - 1], data[n]] for n in range(start, stop))


def test_texts_and_spans_change_as_a_loop_says(texts, tmp_path):
    (found,) = klscale.changes(BASE, [VARIANT], texts, tmp_path / "s", most=5).found
    change = plain_mock(VARIANT, texts) - plain_mock(BASE, texts)
    order = np.argsort(-np.abs(change))[:5]
    assert [one.text.position for one in found.changed_texts] == order.tolist()
    for one in found.changed_texts:
        s = one.text.position
        assert one.change == pytest.approx(change[s], abs=1e-9)
        assert one.per_byte == pytest.approx(-change[s] / texts.bytes[s] / np.log(2))
    spans = found.all_spans
    for text, start, stop, value in zip(spans.text, spans.start, spans.stop, spans.change, strict=True):
        data = texts.texts[text].encode()
        expected = loop(VARIANT, data, start, stop) - loop(BASE, data, start, stop)
        assert value == pytest.approx(expected, abs=1e-4)
    assert spans.share.sum() == pytest.approx(1)
    assert [abs(one.change) for one in found.spans] == sorted(np.abs(spans.change), reverse=True)[:5]
    for one in found.spans:
        data = texts.texts[one.text.position].encode()
        assert one.excerpt.encode() == data[one.start : one.start + one.bytes]


def test_spans_of_two_tokenizers_are_those_that_both_have(texts, tmp_path):
    (found,) = klscale.changes(BASE, [PAIRS], texts, tmp_path / "s").found
    assert {domain.kl.estimator for domain in found.domains} == {"spans"}
    n_spans = len(texts.cuts.spans.bytes)
    assert 0 < len(found.all_spans.text) < n_spans
    by_text = np.bincount(found.all_spans.text, found.all_spans.stop - found.all_spans.start, len(texts))
    there = np.unique(found.all_spans.text)
    assert by_text[there].tolist() == texts.bytes[there].tolist()


def test_domains_are_those_texts_alone(texts, tmp_path):
    """Of each domain: the bits per byte of its texts by a loop, and its KL by exact next-token KL."""
    (found,) = klscale.changes(BASE, [VARIANT], texts, tmp_path / "s").found
    change = (plain_mock(BASE, texts) - plain_mock(VARIANT, texts)) / np.log(2)
    p, q = (Chain.of(Parameters.of(ModelRef.parse(ref))).log_p for ref in (BASE, VARIANT))
    exact = ((np.exp(p) * (p - q)).sum(axis=1) + (np.exp(q) * (q - p)).sum(axis=1)) / 2
    assert {one.domain for one in found.domains} == {"prose", "<b>code</b>"}
    for one in found.domains:
        inside = [s for s, domain in enumerate(texts.domain) if domain == one.domain]
        assert one.n_texts == len(inside)
        n_bytes = texts.bytes[inside].sum()
        assert one.difference.value == pytest.approx(change[inside].sum() / n_bytes)
        nats = sum(exact[before] for s in inside for before in [256, *texts.texts[s].encode()[:-1]])
        assert abs(one.kl.value - nats / n_bytes / np.log(2)) < 4 * one.kl.standard_error
    assert found.domains[0].kl.value >= found.domains[1].kl.value


def test_a_merge_halfway_is_a_quarter_as_far(make_model, tmp_path):
    """The mean of the weights of two near models: KL grows with the square of the step, in each domain too."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(3)
    base, tuned, merged = (make_model(name) for name in ("base", "tuned", "merged"))
    weights = load_file(base / "model.safetensors")
    steps = {name: 0.02 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    for directory, share in ((tuned, 1.0), (merged, 0.5)):
        made = {name: weight + share * steps[name] for name, weight in weights.items()}
        save_file(made, directory / "model.safetensors", metadata={"format": "pt"})
    texts = klscale.TextSet.from_texts("two", [f"{word} {n} of it" * 4 for n in range(20) for word in ("aab", "cde")])
    texts = replace(texts, domain=("a", "c") * 20)
    found = klscale.changes(str(base), [str(tuned), str(merged)], texts, tmp_path / "s").found
    far, near = ({one.domain: one.kl.value for one in of.domains} | {"all": of.kl.value} for of in found)
    assert {*near} == {"a", "c", "all"}
    for domain, value in near.items():
        assert 0.2 < value / far[domain] < 0.3
    for of, directory in zip(found, (tuned, merged), strict=True):
        change = plain_log_likelihoods(directory, texts) - plain_log_likelihoods(base, texts)
        for one in of.domains:
            inside = np.array(texts.domain) == one.domain
            loss = -change[inside].sum() / texts.bytes[inside].sum() / np.log(2)
            assert one.difference.value == pytest.approx(loss, abs=1e-6)


def test_the_command_and_its_files(run, texts, tmp_path):
    shown = run("changes", BASE, VARIANT, PAIRS, "--texts", "t.jsonl", "--most", "3", "--out", "c.html").stdout
    assert shown.count("The spans that changed most") == 2
    beside = shown.split("nearest first\n")[1].split("\n\n")[0].splitlines()[1:]
    in_words = [re.split(r"  +", line) for line in beside]
    found = json.loads(run("changes", BASE, PAIRS, VARIANT, "--texts", "t.jsonl", "--json").stdout)
    ordered = sorted(found["variants"], key=lambda one: one["kl"])
    assert [one["variant"].removeprefix("mock://") for one in ordered] == [words[0] for words in in_words]
    for one, words in zip(ordered, in_words, strict=True):
        assert words[3].startswith(one["domains"][0]["domain"])
    assert "nearest first" not in run("changes", BASE, VARIANT, "--texts", "t.jsonl").stdout
    assert max(len(line) for line in shown.splitlines() if not line.startswith("KL by")) <= 100
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    said = re.findall("<p>(KL .*?)</p>", html.unescape((tmp_path / "c.html").read_text()))
    assert len(said) == 2
    for sentence in said:
        assert sentence in " ".join(shown.split())
        assert re.fullmatch(r"KL .* bits/byte, by [a-z ]+\. Bits per byte: \S+ ± \S+\.", sentence)
    found = json.loads(run("changes", BASE, VARIANT, "--texts", "t.jsonl", "--out", "c.csv", "--json").stdout)
    spans = found["variants"][0]["spans"]
    rows = pd.read_csv(tmp_path / "c.csv")
    counts = np.diff(texts.cuts.spans.starts)
    assert len(rows) == counts[counts > 1].sum()  # a text of one span tells nothing of spans
    first = rows.iloc[rows["change"].abs().idxmax()]
    assert (first["text"], first["start"], first["bytes"]) == (
        spans[0]["text"]["position"], spans[0]["start"], spans[0]["bytes"],
    )  # fmt: skip
    run("changes", BASE, "--texts", "t.jsonl", status=2)
    run("changes", BASE, BASE, "--texts", "t.jsonl", status=2)
    run("changes", BASE, VARIANT, "--texts", "t.jsonl", "--out", "c.png", status=2)


def test_texts_on_the_page_are_text(texts, tmp_path):
    from klscale.show.changes import page_of

    found = klscale.changes(BASE, [VARIANT], texts, tmp_path / "s", most=len(texts))
    page = page_of(found)
    assert re.findall(r"<(?:script|b)\b", page) == []
    assert page.count("default-src 'none'") == 1
    blocks = re.findall(r'<h3>Text (\d+).*?<p class="text">(.*?)</p>', page, re.DOTALL)
    assert len(blocks) == len(texts)
    for number, block in blocks:
        said = html.unescape(re.sub(r"<[^>]*>", "", block))
        text = texts.texts[int(number)]
        if text != HOSTILE:
            assert said == text
    assert "\u202e" not in page


def test_exact_kl_of_each_token(texts, run, tmp_path):
    """Of the texts that changed most, by a loop over bytes; and the page is still the text."""
    from klscale.show.changes import page_of

    found = klscale.changes(BASE, [VARIANT, PAIRS], texts, tmp_path / "s", most=4, exact=True)
    one, other = found.found
    p, q = (Chain.of(Parameters.of(ModelRef.parse(ref))).log_p for ref in (BASE, VARIANT))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert {*one.exact} == {changed.text.position for changed in one.changed_texts}
    for text, read in one.exact.items():
        data = texts.texts[text].encode()
        assert read.kl == pytest.approx(kl[[256, *data[:-1]]])
        assert read.start.tolist() == [*range(len(data))]
        assert read.stop.tolist() == [*range(1, len(data) + 1)]
    assert one.tokens(3)[0].kl == pytest.approx(max(read.kl.max() for read in one.exact.values()))
    assert not other.exact  # another tokenizer
    page = page_of(found)
    assert page.count("Exact KL of next tokens") == 4
    assert re.findall(r"<(?:script|b)\b", page) == []
    assert "Nearest first" in page
    for changed, block in zip(
        one.changed_texts, re.findall(r'on:</p><p class="text">(.*?)</p>', page, re.DOTALL), strict=True
    ):
        assert html.unescape(re.sub(r"<[^>]*>", "", block)) == texts.texts[changed.text.position]
    shown = run("changes", BASE, VARIANT, PAIRS, "--texts", "t.jsonl", "--exact")
    assert "whose prediction changed most" in shown.stdout
    assert "No exact KL" in shown.stderr


def test_models_that_are_the_same_have_no_negative_zeros(texts, run, tmp_path):
    store = ("--texts", texts.name, "--store", tmp_path / "s")
    klscale.score(["mock://1", "mock://1?shift=0"], texts, tmp_path / "s")
    assert "-0.000" not in run("changes", "mock://1", "mock://1?shift=0", *store).stdout
    assert "1 of them without a KL above 0" in run("validate", "mock://1", "mock://1?shift=0", *store).stdout


def test_imported_models_have_no_spans(fourteen):
    found = klscale.changes("EleutherAI/pythia-1b", ["EleutherAI/pythia-410m"], store=fourteen).found[0]
    assert found.all_spans is None
    assert found.spans == ()
    assert len(found.changed_texts) == 10


@pytest.mark.slow
def test_the_page_in_a_browser(texts, tmp_path):
    """Nothing is run or fetched, worse and better differ, and no text is wider than a narrow window."""
    import shutil

    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("needs a browser: there is no chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'klscale[dev]'")
    from klscale.show.changes import save_changes

    save_changes(klscale.changes(BASE, [VARIANT], texts, tmp_path / "s"), tmp_path / "c.html")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 360, "height": 740})
        told, asked = [], []
        page.on("console", lambda said: told.append(said.text))
        page.on("dialog", lambda dialog: told.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "c.html").as_uri())
        width = page.evaluate("document.documentElement.scrollWidth")
        colours = page.evaluate(
            "['.w8', '.b8'].map((it) => getComputedStyle(document.querySelector(it)).backgroundColor)"
        )
        browser.close()
    assert told == []
    assert asked == [(tmp_path / "c.html").as_uri()]
    assert width <= 360
    assert colours[0] != colours[1]
