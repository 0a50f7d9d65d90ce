"""Results show themselves in a notebook; the notebooks of `examples/` run."""

from __future__ import annotations

import ast
import re
from html.parser import HTMLParser
from importlib.util import find_spec

import pytest

import klscale
from conftest import EXAMPLE, ROOT
from klscale.display import Displayed
from klscale.show import notebooks
from klscale.studies import verbs

HOSTILE = "<img src=x onerror=alert(1)>&[bold]\u202e"


class Page(HTMLParser):
    """Tags, rows of tables as texts, and the other text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.open, self.text = [], [], [], ""
        self.feed(html)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("br", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


@pytest.fixture
def options(fourteen):
    return klscale.Options(store=fourteen)


def test_a_comparison_is_its_table_its_sentences_and_a_picture(options, capsys):
    models = ["EleutherAI/pythia-1b", "EleutherAI/pythia-410m", "EleutherAI/pythia-160m"]
    found = klscale.compare(models, options=options)
    page = Page(found._repr_html_())
    assert page.rows[0][:3] == ["model", "model", "KL ± SE, bits/byte"]
    assert page.rows[1][:3] == ["EleutherAI/pythia-1b", "EleutherAI/pythia-410m", "0.121 ± 0.011"]
    assert "EleutherAI/pythia-1b is better by 0.0444 ± 0.0024 bits/byte." in page.text
    assert page.tags.count("svg") == 1
    assert capsys.readouterr().out == ""
    assert "svg" not in Page(klscale.compare(models[:2], options=options)._repr_html_()).tags


def test_the_scale_and_the_map(options):
    scale = Page(klscale.scale(options=options)._repr_html_())
    assert {"architecture", "size"} <= {row[0] for row in scale.rows}
    found = Page(klscale.map(options=options)._repr_html_())
    assert len(found.rows) == 15
    assert scale.tags.count("svg") == found.tags.count("svg") == 1


def test_names_are_text(tmp_path):
    store = klscale.Store(tmp_path / "store")
    vectors = klscale.read_log_likelihoods(EXAMPLE, id_column="text_id", name=HOSTILE)
    store.import_vectors(vectors, HOSTILE)
    options = klscale.Options(store=store)
    for result in (klscale.scale(options=options), klscale.map(options=options)):
        html = result._repr_html_()
        assert "<img" not in html
        assert "\u202e" not in html
        assert HOSTILE.replace("\u202e", "\\u202e") in Page(html).text


def test_a_picture_that_cannot_be_drawn_is_left_out(monkeypatch, options):
    def nothing(*_):
        raise klscale.InputError("too little to draw")

    monkeypatch.setattr("klscale.show.pictures.scale_ruler", nothing)
    assert "svg" not in Page(klscale.scale(options=options)._repr_html_()).tags


def test_too_little_to_show_is_said(options):
    two = klscale.compare(["EleutherAI/pythia-1b", "EleutherAI/pythia-410m"], options=options).vectors
    page = Page(klscale.Scale(two, (), None)._repr_html_())
    assert "svg" not in page.tags
    assert len(page.text) > 20


def test_every_result_that_is_displayed_has_a_way():
    for file in (ROOT / "src" / "klscale" / "studies" / "verbs").glob("*.py"):
        assert file.parent.as_posix() == str(verbs.__path__[0])
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named = [node.name for node in tree.body if isinstance(node, ast.ClassDef)
                 and any(ast.unparse(base) == Displayed.__name__ for base in node.bases)]  # fmt: skip
        assert {*named} <= {*notebooks.WAYS}, file.name


# ------------------------------------------------------------------------------------------------------------- examples


def run_notebook(name):
    """Each cell in order, as a notebook runs them: the last expression of a cell is shown. Returns what was shown."""
    path = ROOT / "examples" / name
    shown, known = [], {"__file__": str(path), "__name__": "__main__"}
    for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        if cell.startswith(" [markdown]"):
            continue
        body = ast.parse(cell).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), name, "exec"), known)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), name, "eval"), known)
            shown.append(Page(value._repr_html_()))
    return shown


@pytest.mark.slow
def test_the_map_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compared, mapped, scale, placed = run_notebook("map_of_models.py")
    assert "0.121 ± 0.011" in compared.rows[1]
    assert len(mapped.rows) == 15
    assert "svg" in scale.tags
    assert "mamba-1.4b-hf" in placed.text


@pytest.mark.slow
def test_a_training_run_and_its_quantization_ladder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (moved,) = run_notebook("training_run.py")
    printed = capsys.readouterr().out
    assert len(re.findall(r"kl/from_start", printed)) == 2
    assert "12 checkpoints, steps 0 to 110" in moved.text
    assert "svg" in moved.tags
    if find_spec("bitsandbytes") is None:
        pytest.skip("needs bitsandbytes")
    ladder, parts = run_notebook("quantization_ladder.py")
    assert {"svg"} <= {*ladder.tags} & {*parts.tags}
    assert "+nf4" in ladder.text
    assert [row[0] for row in parts.rows if "layers" in row[0]]
